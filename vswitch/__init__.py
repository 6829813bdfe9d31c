# SPDX-License-Identifier: Apache-2.0
"""ffswitch: a userspace virtual switch for containers."""

__version__ = "0.1.0"
