# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys in directories: the controllers' state directory, an operator's and a host's.

Each file is replaced as a whole, so that whoever reads one at any time finds the old or the new.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import cast

import grpc

from controller.security.authority import (
    Authority,
    KeyPair,
    SecurityError,
    check_times,
    read_certificate,
)

AUTHORITY = "ca"
SERVER = "server"
ADMIN = "admin"
HOST = "host"
# A certificate is renewed when less than this part of its life is left.
RENEW_AT = 1 / 3


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a client is, and which authority it trusts: PEM texts."""

    pair: KeyPair
    authority: bytes

    def credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a controller."""
        return grpc.ssl_channel_credentials(self.authority, self.pair.key, self.pair.certificate)

    def renewal_due(self, now: datetime) -> bool:
        """Whether it is time for a new certificate."""
        return renewal_due(self.pair.certificate, now)


def renewal_due(certificate: bytes, now: datetime) -> bool:
    """Whether less than RENEW_AT of a certificate's life is left."""
    found = read_certificate(certificate, "the certificate")
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return found.not_valid_after_utc - now < life * RENEW_AT


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` atomically and durably. Raises OSError."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_pair(directory: Path, name: str, pair: KeyPair) -> None:
    """Both in one file, `NAME.pem`, the key first: certificate and key never come from two renewals."""
    write_file(directory / f"{name}.pem", pair.key + pair.certificate, 0o600)


def load_pair(directory: Path, name: str) -> KeyPair:
    """What `save_pair` wrote; raises SecurityError."""
    path = directory / f"{name}.pem"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SecurityError(f"{path}: {error.strerror}") from None
    key, mark, certificate = text.partition(b"-----BEGIN CERTIFICATE-----")
    if not mark or b"PRIVATE KEY-----" not in key:
        raise SecurityError(f"{path} does not hold a private key and then a certificate")
    return KeyPair(mark + certificate, key)


def save_identity(directory: Path, name: str, identity: Identity) -> None:
    """Write `NAME.pem` and `ca.crt` to the directory, which is made when it does not exist. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(directory / "ca.crt", identity.authority, 0o644)
    save_pair(directory, name, identity.pair)


def load_identity(directory: Path, name: str, now: datetime) -> Identity:
    """What `save_identity` wrote; raises SecurityError, also for a certificate that is not valid `now`."""
    pair = load_pair(directory, name)
    path = directory / "ca.crt"
    try:
        authority = path.read_bytes()
    except OSError as error:
        raise SecurityError(f"{path}: {error.strerror}") from None
    check_times(read_certificate(pair.certificate, str(directory / f"{name}.pem")), f"{directory}/{name}.pem", now)
    return Identity(pair, authority)


def initialise(directory: Path, now: datetime) -> None:
    """Make authority, server and operator certificates in `directory`.

    Raises SecurityError when there is an authority already, OSError.
    """
    if (directory / f"{AUTHORITY}.pem").exists():
        raise SecurityError(f"{directory} has an authority already: nothing was changed")
    authority, pair = Authority.create(now)
    save_identity(directory, SERVER, Identity(authority.issue_server(now), pair.certificate))
    save_identity(directory, ADMIN, Identity(authority.issue_admin(now), pair.certificate))
    # Last: a directory with an authority is a whole one.
    save_pair(directory, AUTHORITY, pair)


def load_authority(directory: Path) -> Authority:
    """The authority of a controller's state directory; raises SecurityError."""
    pair = load_pair(directory, AUTHORITY)
    return Authority(pair.certificate, pair.key)


class ServerFiles:
    """A controller's certificate, read again for each new connection when its file has changed."""

    def __init__(self, directory: Path) -> None:
        """Raises SecurityError when the files are not there."""
        self._directory = directory
        self._load()

    def credentials(self, *, clients: bool) -> grpc.ServerCredentials:
        """For a server; with `clients`, only whoever has a certificate of the authority comes in."""
        seen = self._stamp()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """gRPC asks before each handshake. Files that cannot be read leave what there was."""
            nonlocal seen
            with contextlib.suppress(SecurityError):
                stamp = self._stamp()
                if stamp != seen:
                    loaded, seen = self._load(), stamp
                    return loaded
            return None

        # gRPC frees a configuration once it has taken it over: each is handed out once, and None means no change.
        checked = cast(Callable[[], grpc.ServerCertificateConfiguration], fetch)
        return grpc.dynamic_ssl_server_credentials(self._load(), checked, clients)

    def renew(self, authority: Authority, now: datetime) -> bool:
        """Write a new certificate when the old one nears its end."""
        if not renewal_due(load_pair(self._directory, SERVER).certificate, now):
            return False
        save_pair(self._directory, SERVER, authority.issue_server(now))
        return True

    def _files(self) -> tuple[Path, Path]:
        return self._directory / f"{SERVER}.pem", self._directory / "ca.crt"

    def _stamp(self) -> tuple[int, ...]:
        try:
            found = [path.stat() for path in self._files()]
        except OSError as error:
            raise SecurityError(f"{error.filename}: {error.strerror}") from None
        return tuple(number for stat in found for number in (stat.st_mtime_ns, stat.st_ino))

    def _load(self) -> grpc.ServerCertificateConfiguration:
        pair = load_pair(self._directory, SERVER)
        try:
            trusted = self._files()[1].read_bytes()
        except OSError as error:
            raise SecurityError(f"{error.filename}: {error.strerror}") from None
        return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], trusted)
