# SPDX-License-Identifier: Apache-2.0
"""Make the Python modules of each .proto file here, with types. `setup.py` and `make build` run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLUGINS = ("mypy", "mypy_grpc")


def generate() -> None:
    """Write `X_pb2.py`, `X_pb2_grpc.py` and their stubs beside each `X.proto`; raises CalledProcessError.

    In a process of its own: protoc as a library keeps state from one run to the next.
    """
    outputs = [f"--{kind}_out={ROOT}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    plugins = [f"--plugin=protoc-gen-{name}={Path(sys.executable).parent / f'protoc-gen-{name}'}" for name in PLUGINS]
    protos = [str(path) for path in sorted(HERE.glob("*.proto"))]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", *plugins, *outputs, *protos], check=True)


if __name__ == "__main__":
    generate()
