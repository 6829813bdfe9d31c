# SPDX-License-Identifier: Apache-2.0
"""Who is who: the authority, certificates, tokens, and channels that check them."""
