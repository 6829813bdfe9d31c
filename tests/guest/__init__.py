# SPDX-License-Identifier: Apache-2.0
"""Virtual machines with Debian's kernel for tests: Linux's own drivers at the switch's ports."""
