# SPDX-License-Identifier: Apache-2.0
"""Memory ports: the containers behind them, and the shortcuts between these."""
