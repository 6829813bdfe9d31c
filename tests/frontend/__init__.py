# SPDX-License-Identifier: Apache-2.0
"""A vhost-user front-end (the driver's side, what virtio-user plays in a container) in Python, for tests."""

from tests.frontend.frontend import FrontEnd, wait_any
from tests.frontend.protocol import Feature, FrontEndError

__all__ = ["Feature", "FrontEnd", "FrontEndError", "wait_any"]
