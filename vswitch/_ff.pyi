# cffi generates this module; fastpath.py and packing.py are the only ones that touch it.
from typing import Any

ffi: Any
lib: Any
