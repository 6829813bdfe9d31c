# SPDX-License-Identifier: Apache-2.0
"""A host's side of the controller: what it reports, what it is told, and what follows for the switch."""
