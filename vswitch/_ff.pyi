# cffi generates this module; only fastpath.py, packing.py, and of memory/ wire.py and files.py touch it.
from typing import Any

ffi: Any
lib: Any
