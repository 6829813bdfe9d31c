# SPDX-License-Identifier: Apache-2.0
"""Join tokens: a secret that the controller knows the hash of, and the key of the authority that the host is to trust.

With the latter a host that knows nothing else can tell the controller from an impostor before it says the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from controller.security.authority import SecurityError

_SECRET_BYTES = 18
_POINT_BYTES = 33


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`authority` is the compressed point of the authority's key."""

    secret: str
    authority: bytes

    def __str__(self) -> str:
        return f"{self.secret}.{_text(self.authority)}"


def new_token(authority: bytes) -> JoinToken:
    """A token that nobody can guess."""
    return JoinToken(_text(secrets.token_bytes(_SECRET_BYTES)), authority)


def read_token(text: str) -> JoinToken:
    """What `ffctl token create` printed; raises SecurityError."""
    secret, dot, key = text.strip().partition(".")
    try:
        point = base64.urlsafe_b64decode(key)
    except (binascii.Error, ValueError):
        point = b""
    if not dot or not secret or len(point) != _POINT_BYTES or point[0] not in (2, 3):
        raise SecurityError("the join token is not one of `ffctl token create`: copy the whole line")
    return JoinToken(secret, point)


def token_hash(secret: str) -> str:
    """What the controller keeps of a secret. It is random and long, so that a plain hash does."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()
