# SPDX-License-Identifier: Apache-2.0
"""`ffswitch`, the command line."""
