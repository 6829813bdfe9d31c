# SPDX-License-Identifier: Apache-2.0
"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# The same examples each time, however slow the machine is.
settings.register_profile("ffswitch", derandomize=True, deadline=None)
settings.load_profile("ffswitch")
