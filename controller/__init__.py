# SPDX-License-Identifier: Apache-2.0
"""The central controller: what it knows (`model`), what it decides (`decide`), and who has to be told (`view`)."""
