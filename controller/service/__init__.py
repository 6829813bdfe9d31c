# SPDX-License-Identifier: Apache-2.0
"""The controller process: what stands in the store, and who is told."""
