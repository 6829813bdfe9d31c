"""ffswitch: a userspace virtual switch for containers."""

__version__ = "0.1.0"
