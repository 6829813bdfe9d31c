# SPDX-License-Identifier: Apache-2.0
"""Only what setup.cfg cannot say: setuptools reads cffi_modules from here alone, and the protocols are generated."""

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Generates the protocols' modules first, so that they are packed with the others."""

    def run(self) -> None:
        generate = Path(__file__).resolve().parent / "controller" / "proto" / "generate.py"
        subprocess.run([sys.executable, str(generate)], check=True)
        super().run()


setup(cffi_modules=["vswitch/fastpath/build.py:ffibuilder"], cmdclass={"build_py": BuildPy})
