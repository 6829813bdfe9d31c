# cffi generates this module; fastpath.py is the only one that touches it.
from typing import Any

ffi: Any
lib: Any
