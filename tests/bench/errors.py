# SPDX-License-Identifier: Apache-2.0
"""What every part of the benchmarks raises."""


class BenchError(Exception):
    """A benchmark cannot go on; the message is one line for people."""
