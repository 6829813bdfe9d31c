# SPDX-License-Identifier: Apache-2.0
"""`ffcontroller` and `ffctl`."""
