# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: each module with a `main` is one `make bench-...`."""
