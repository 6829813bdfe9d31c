# SPDX-License-Identifier: Apache-2.0
"""Keys, actions and what memory ports are given as the structures of ff.h."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from vswitch._ff import ffi
from vswitch.slowpath.types import Action, Key, MemConf, Shortcut

# struct ff_key. Addresses, eth_type and L4 ports are big-endian, the rest native (x86: little).
_KEY_HEAD = struct.Struct("<6s6s2sH2H2H4B2s2s16s16s")


def pack_key(key: Key) -> bytes:
    """The 64 bytes of a struct ff_key."""
    return _KEY_HEAD.pack(
        key.eth_dst,
        key.eth_src,
        key.eth_type.to_bytes(2, "big"),
        key.in_port,
        *key.vlan_tpid,
        *key.vlan_tci,
        key.ip_proto,
        key.ip_tos,
        key.ip_frag,
        key.tcp_flags,
        key.l4_src.to_bytes(2, "big"),
        key.l4_dst.to_bytes(2, "big"),
        key.ip_src,
        key.ip_dst,
    )


def unpack_key(raw: Any) -> Key:
    """A Key from a pointer to a struct ff_key."""
    (dst, src, etype, in_port, tpid0, tpid1, tci0, tci1, proto, tos, frag, flags, sport, dport, ip_src, ip_dst) = (
        _KEY_HEAD.unpack(ffi.buffer(raw))
    )
    return Key(
        dst,
        src,
        int.from_bytes(etype, "big"),
        in_port,
        (tpid0, tpid1),
        (tci0, tci1),
        proto,
        tos,
        frag,
        flags,
        int.from_bytes(sport, "big"),
        int.from_bytes(dport, "big"),
        ip_src,
        ip_dst,
    )


def pack_actions(actions: Sequence[Action]) -> Any:
    """An array of struct ff_action, of at least one; the caller keeps it as long as C reads it."""
    packed = ffi.new("struct ff_action[]", max(len(actions), 1))
    for c_action, action in zip(packed, actions, strict=False):
        c_action.type, c_action.arg, c_action.tpid = action.type, action.arg, action.tpid
    return packed


def pack_mem_conf(conf: MemConf) -> tuple[Any, tuple[Any, ...]]:
    """A struct ff_mem_conf, and the arrays that it points to, which the caller keeps as long as C reads them."""
    regions = ffi.new("struct ff_mem_file[]", [(file.fd, file.offset, file.size) for file in conf.regions])
    kick_fds = ffi.new("int[]", list(conf.kick_fds))
    packed = ffi.new("struct ff_mem_conf *")
    packed.regions, packed.n_regions, packed.first_region = regions, len(conf.regions), conf.first_region
    packed.rx_queues, packed.tx_queues, packed.ring_size = conf.rx_queues, conf.tx_queues, conf.ring_size
    packed.rings_fd, packed.table_fd, packed.kick_fds = conf.rings_fd, conf.table_fd, kick_fds
    return packed, (regions, kick_fds)


def pack_shortcut(shortcut: Shortcut) -> Any:
    """A struct ff_shortcut."""
    packed = ffi.new("struct ff_shortcut *")
    setattr(packed, "from", shortcut.sender)
    packed.to, packed.out, packed.epoch = shortcut.receiver, shortcut.out_number, shortcut.epoch
    setattr(packed, "in", shortcut.in_number)
    ffi.buffer(packed.mac)[:] = shortcut.mac
    packed.max_len, packed.queues = shortcut.max_len, shortcut.queues
    return packed
