# SPDX-License-Identifier: Apache-2.0
"""What the controller remembers: one interface, SQLite and etcd behind it."""
