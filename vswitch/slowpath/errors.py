# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the slow path; str() of each is one line for people."""

from __future__ import annotations


class SwitchError(Exception):
    """Something cannot be done now: the command line exits with 1."""

    code = -32000  # JSON-RPC 2.0 section 5.1: -32000..-32099 are the server's own


class BadParams(SwitchError):
    """The caller's words are off: the command line exits with 2."""

    code = -32602


class StartError(SwitchError):
    """The daemon cannot start."""


def one_line(text: str) -> str:
    """`text` with every run of white space and control characters folded into one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
