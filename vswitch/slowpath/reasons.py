# SPDX-License-Identifier: Apache-2.0
"""Sentences for people: why a frame goes where it goes."""

from __future__ import annotations

from vswitch.slowpath.bridge import Bridge, Verdict
from vswitch.slowpath.learning import Admission, Fdb, Station
from vswitch.slowpath.overlay import Binding
from vswitch.slowpath.types import TUNNEL_RDMA, ActionType, Drop, FdbEntry, Key, Port
from vswitch.slowpath.vlan import Tag


def mac_text(mac: bytes) -> str:
    """02:00:00:00:00:01."""
    return mac.hex(":")


def explain(key: Key, verdict: Verdict, bridge: Bridge, fdb: Fdb, now: float) -> tuple[str, ...]:
    """Why `verdict` was given on `key`: one sentence a step, in the order in which they were taken."""
    sentences = [_admission_to_vlan(key, verdict, bridge)]
    if verdict.drop is Drop.RESERVED_MAC:
        sentences.append(f"{mac_text(key.eth_dst)} never leaves its link (IEEE 802.1Q table 8-1): dropped")
    src, dst = verdict.depends.src, verdict.depends.dst
    told = _told(key, verdict, bridge)
    if verdict.drop in (Drop.SPOOFED, Drop.DENIED):
        sentences += told
    elif src is not None and dst is not None:
        source = f"source {mac_text(src.mac)} " + _source(key.in_port, verdict, bridge, fdb.entry(src), now)
        sentences.append(source)
        if told:
            sentences += told
        elif verdict.drop is not Drop.MOVE_HOLD:
            destination = _destination(dst, verdict, bridge, fdb.entry(dst), now)
            sentences.append(f"destination {mac_text(dst.mac)} " + destination)
    sentences += _on_the_way(verdict, bridge)
    return tuple(sentences)


def _admission_to_vlan(key: Key, verdict: Verdict, bridge: Bridge) -> str:
    port = bridge.ports.get(key.in_port)
    if port is None:
        return f"there is no port {key.in_port}: dropped"
    name = port.config.name
    if verdict.drop is Drop.POLICY:
        return f"{name} is a mirror port, and what it sends is not bridged: dropped"
    if verdict.drop is Drop.NOT_TUNNEL:
        return f"{name} is an uplink, and this is no tunnel's frame for one of its addresses: dropped"
    tag = Tag.of(key)
    form = f"tagged {tag.vid}" if tag.vid else "priority-tagged" if tag.tpid else "untagged"
    kind = f"an access port of VLAN {port.config.tag}" if port.config.tag else "a trunk"
    if verdict.vlan is None:
        return f"{form} on {name}, {kind} that does not take this: dropped"
    return f"{form} on {name}, {kind}: VLAN {verdict.vlan}"


def _told(key: Key, verdict: Verdict, bridge: Bridge) -> list[str]:
    """What a controller's word makes of the frame; nothing where it has none on it."""
    port = bridge.ports.get(key.in_port)
    src, dst = verdict.depends.src, verdict.depends.dst
    if port is None or src is None or dst is None or not bridge.overlay.controls(port.config.network):
        return []
    network = port.config.network
    sender, to = (bridge.overlay.at(network, mac) for mac in (src.mac, dst.mac))
    if verdict.drop is Drop.SPOOFED:
        return [_spoofed(src, sender, port)]
    if verdict.drop is Drop.DENIED:
        return [f"a policy denies this from {sender.name if sender else ''} to {to.name if to else ''}: dropped"]
    if verdict.asks:
        return ["it asks for an address: the switch answers where it knows the endpoint, and drops the question"]
    if verdict.drop is Drop.NO_ENDPOINT:
        return [f"destination {mac_text(dst.mac)} is no endpoint of this host in network {network}: dropped"]
    if to is None:
        return []
    whose = f"destination {mac_text(dst.mac)} is endpoint {to.name}, "
    if to.port is not None:
        return [whose + f"on {_name(bridge, to.port)}" + (": dropped" if verdict.drop else "")]
    if verdict.drop is Drop.TUNNEL_DOWN:
        return [whose + "on another host to which there is no way: dropped"]
    way = bridge.overlay.way(sender, to)
    if way is None:
        return []
    number = way.remote & ~TUNNEL_RDMA
    by = f"by RDMA while a peer is active, else by VXLAN, tunnel end {number}"
    if not way.remote & TUNNEL_RDMA:
        by = f"by tunnel end {number}"
    elif number == to.rdma:
        by = f"by RDMA only, tunnel end {number}"
    return [whose + f"on another host, {by}; a packet of more than {way.mtu} bytes is answered: too big"]


def _spoofed(src: Station, sender: Binding | None, port: Port) -> str:
    name, mac = port.config.name, mac_text(src.mac)
    if sender is None:
        return f"source {mac} is not the address of {name}'s endpoint: dropped as forged"
    if sender.port != port.id:
        return f"source {mac} is that of endpoint {sender.name}, which is not on {name}: dropped as forged"
    return f"endpoint {sender.name} sends from an IP address that is not its own: dropped as forged"


def _source(in_port: int, verdict: Verdict, bridge: Bridge, entry: FdbEntry | None, now: float) -> str:
    here = _name(bridge, in_port)
    there = _name(bridge, entry.port) if entry else ""
    match verdict.admission:
        case Admission.HELD:
            left = max(0.0, entry.held_until - now) if entry else 0.0
            return f"moved too often and is held on {there} for {left:.0f} s more: dropped"
        case Admission.NEW:
            return f"is new: learned on {here}"
        case Admission.MOVE:
            return f"moves from {there} to {here}"
        case Admission.QUOTA:
            return f"is not learned: {here} has as many addresses as it may"
        case Admission.STATIC:
            return f"is static on {there}"
        case Admission.KNOWN:
            return f"is known on {here}"
    port = bridge.member(in_port)
    return "is behind the tunnel: not learned" if port and port.tunnel else "is nobody's address: not learned"


def _destination(dst: Station, verdict: Verdict, bridge: Bridge, entry: FdbEntry | None, now: float) -> str:
    if verdict.target is None:
        what = "is a group" if dst.mac[0] & 1 else "is not known"
        result = "no other port of the VLAN is up: dropped" if verdict.drop else "flooded in the VLAN"
        return f"{what}: {result}"
    there = _name(bridge, verdict.target)
    if verdict.drop is Drop.SAME_PORT:
        return f"is on {there}, where the frame came from: dropped"
    if verdict.drop is Drop.NO_DEST:
        return f"is static on {there}, which does not carry the VLAN: dropped"
    if entry is None or entry.static:
        return f"is static on {there}"
    return f"is on {there}, heard {max(0.0, now - entry.last_seen):.0f} s ago"


def _on_the_way(verdict: Verdict, bridge: Bridge) -> list[str]:
    """What the actions do besides output."""
    sentences = []
    for action in verdict.actions:
        match action.type:
            case ActionType.MIRROR:
                sentences.append(f"copied to mirror port {_name(bridge, action.arg)}")
            case ActionType.VLAN_POP:
                sentences.append("the outer tag is taken off for " + _names_after(verdict, bridge, action.type))
            case ActionType.VLAN_PUSH:
                sentences.append("a tag is put on for " + _names_after(verdict, bridge, action.type))
            case ActionType.OUTPUT if not bridge.ports[action.arg].up:
                sentences.append(f"{_name(bridge, action.arg)} is down: it will be lost there (port-down)")
    return sentences


def _names_after(verdict: Verdict, bridge: Bridge, change: ActionType) -> str:
    """The ports that get the frame as it is after a VLAN action."""
    types = [action.type for action in verdict.actions]
    after = verdict.actions[types.index(change) + 1 :]
    return ", ".join(_name(bridge, action.arg) for action in after if action.type is ActionType.OUTPUT)


def _name(bridge: Bridge, port_id: int) -> str:
    port = bridge.ports.get(port_id)
    return port.config.name if port else f"port {port_id}"
