# SPDX-License-Identifier: Apache-2.0
"""The groups of measurements, each a module with a `GROUP`."""
