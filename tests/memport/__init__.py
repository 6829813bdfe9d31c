# SPDX-License-Identifier: Apache-2.0
"""A container with memory ports (what net_ff plays in a real one) in Python, for tests."""

from tests.memport.container import Container, Shape

__all__ = ["Container", "Shape"]
