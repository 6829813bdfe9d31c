# SPDX-License-Identifier: Apache-2.0
"""Commands about ports: add-port, del-port, list-ports, show, set, get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from vswitch.cli import containers
from vswitch.cli.client import ANSWER_WITHIN, Client, ClientError, RpcError
from vswitch.cli.render import (
    STATE_COLOURS,
    count,
    duration,
    listing,
    output_option,
    paint,
    plural,
    print_json,
    print_table,
    since,
    size,
)

Port = Mapping[str, Any]

CONTAINER_FORMS = ("eal", "docker", "podman", "k8s")
_NUMBERS = (
    "mtu",
    "tag",
    "native_vlan",
    "mac_quota",
    "upcall_budget",
    "mac_age",
    "flow_idle",
    "idle_spin",
    "idle_sleep",
    "shortcut_quota",
    "shortcut_rate",
    "shortcut_idle",
)


def complete_port(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of ports for the shell's completion; none when there is no daemon to ask."""
    try:
        with Client(context.find_root().params["run_dir"]) as client:
            names = [port["name"] for port in client.call("port.list", wait=1.0)]
    except (ClientError, RpcError, KeyError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def vlan_list(text: str) -> list[int]:
    """ "10,20-22" -> [10, 20, 21, 22]; "" -> []. Raises click.BadParameter."""
    vlans: set[int] = set()
    for part in filter(None, text.split(",")):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise click.BadParameter(f"'{part}' is not a VLAN or a range of them, such as 10,20-29")
        first, last = int(low), int(high or low)
        if not 1 <= first <= last <= 4094:
            raise click.BadParameter(f"'{part}' is not within VLANs 1 to 4094")
        vlans.update(range(first, last + 1))
    return sorted(vlans)


@click.command("add-port")
@click.argument("name")
@click.option(
    "--type",
    type=click.Choice(["vhost-user", "pmd", "packet", "ff"]),
    help="Default: pmd with --devargs, else vhost-user.",
)
@click.option("--socket", metavar="PATH", help="vhost-user: socket.  [default: RUN_DIR/ports/NAME/vhost.sock]")
@click.option(
    "--role", type=click.Choice(["client", "server"]), help="vhost-user: the switch's role.  [default: client]"
)
@click.option(
    "--devargs",
    metavar="ARGS",
    help="pmd: device, such as net_pcap0,iface=eth0 or a PCI address; packet: kernel interface, such as eth0.",
)
@click.option("--mac", help="The container's MAC address.  [default: made from NAME]")
@click.option("--ip", "ips", multiple=True, metavar="ADDRESS", help="An address of the container; may be repeated.")
@click.option("--network", help="Network that the port belongs to.")
@click.option("--trust-domain", metavar="LABEL", help="Ports that share this label may share memory.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="For policies; may be repeated.")
@click.option("--queues", type=int, help="Queue pairs.  [default: 1]")
@click.option("--mtu", type=int, help="Largest IP packet, in bytes.  [default: 1500]")
@click.option("--tag", type=int, metavar="VLAN", help="Access port of this VLAN.  [default: a trunk of all]")
@click.option("--trunks", type=vlan_list, metavar="VLANS", help="Trunk of these VLANs, such as 10,20-29.")
@click.option("--native-vlan", type=int, metavar="VLAN", help="Trunk: VLAN of untagged frames.")
@click.option("--may-exist", is_flag=True, help="Not an error when the port exists as asked for.")
@click.option("--wait", type=click.FloatRange(min=0), metavar="SECS", help="Wait so long for it to be ready, or fail.")
@click.option("--no-wait", is_flag=True, help="Return at once.  [the default]")
@output_option(*CONTAINER_FORMS)
@click.pass_obj
def add_port(
    run_dir: Path,
    /,
    *,
    name: str,
    wait: float | None,
    no_wait: bool,
    output: str,
    **options: Any,
) -> None:
    """Add a port, and print what its container needs.

    The forms docker and podman are whole command lines, k8s is part of a pod's specification, eal the
    arguments of a DPDK application.
    """
    if wait is not None and no_wait:
        raise click.UsageError("--wait and --no-wait exclude each other")
    if options["type"] is None and options["devargs"]:
        options["type"] = "pmd"
    if options["type"] in ("pmd", "packet") and output in CONTAINER_FORMS:
        what = f"no container is behind a {options['type']} port"
        raise click.UsageError(f"-o {output} is for vhost-user and ff ports: {what}")
    params = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    params = {key: value for key, value in params.items() if value not in (None, [], False)}
    with Client(run_dir) as client:
        if wait:
            params["wait_s"] = wait
        port = client.call("port.add", {"name": name, **params}, wait=ANSWER_WITHIN + (wait or 0))
        workers = client.call("version")["workers"] if output in ("docker", "podman") else []
    if output == "json":
        print_json(port)
    elif output in CONTAINER_FORMS:
        click.echo(_container_form(port, output, [worker["cpu"] for worker in workers]).rstrip("\n"))
    else:
        _print_added(port)
    _check_placed(port, wait)
    if wait and port["state"] != "ready":
        raise click.ClickException(
            f"port {name} is {port['state']} after {wait:g} s ({port['reason']}); it stays, and gets ready by itself"
        )


def _check_placed(port: Port, wait: float | None) -> None:
    """Where a controller has a say in the port's network, tell when it has not said yes."""
    placement = port.get("endpoint")
    if placement is None or placement["state"] == "placed":
        return
    name, reason = port["name"], placement["reason"]
    if placement["state"] == "refused":
        raise click.ClickException(f"port {name} stays, but the controller refuses it: {reason}")
    if wait or placement["state"] == "waiting":
        raise click.ClickException(f"port {name} stays, but has no address from the controller: {reason}")
    click.echo(f"port {name} has no address from the controller yet: {reason}", err=True)


def _container_form(port: Port, form: str, worker_cpus: Sequence[int]) -> str:
    if form == "eal":
        return containers.eal_line(port)
    if form == "k8s":
        return containers.k8s_snippet(port)
    host = containers.host_facts(worker_cpus)
    return containers.podman_line(port, host) if form == "podman" else containers.docker_line(port, host)


def _print_added(port: Port) -> None:
    _print_port(port)
    if port["type"] not in ("vhost-user", "ff"):
        return
    stale = containers.stale_socket(port)
    click.echo()
    click.echo(f"Its container mounts {containers.port_directory(port)} and runs:")
    if stale:
        click.echo(f"    rm -f {stale}")
    click.echo(f"    YOUR-DPDK-APP {containers.eal_line(port)}")
    click.echo("As a whole command line, or a pod's specification:")
    click.echo(f"    ffswitch add-port {port['name']} --may-exist -o podman|docker|k8s")


@click.command("del-port")
@click.argument("name", shell_complete=complete_port)
@click.option("--if-exists", is_flag=True, help="Not an error when there is no such port.")
@output_option()
@click.pass_obj
def del_port(run_dir: Path, name: str, if_exists: bool, output: str) -> None:
    """Delete a port, its flows and its learned MACs."""
    with Client(run_dir) as client:
        result = client.call("port.del", {"name": name, "if_exists": if_exists})
    if output == "json":
        print_json(result)


def vlan_text(port: Port) -> str:
    """How a port takes part in VLANs: "10" (access), "trunk", "trunk 10-12 native 5"."""
    if port.get("tag"):
        return str(port["tag"])
    words = ["trunk"]
    if port.get("trunks"):
        words.append(listing(port["trunks"]))
    if port.get("native_vlan"):
        words.append(f"native {port['native_vlan']}")
    return " ".join(words)


def _why(port: Port) -> str:
    words = list(port.get("warnings", ())) if port["state"] == "ready" else [str(port.get("reason") or "")]
    placement = port.get("endpoint")
    if placement is not None and placement["state"] != "placed":
        words.append(placement["reason"])
    return "; ".join(filter(None, words))


@click.command("list-ports")
@output_option()
@click.pass_obj
def list_ports(run_dir: Path, output: str) -> None:
    """List the ports, their states, and why one is down or stuck."""
    with Client(run_dir) as client:
        ports = client.call("port.list")
    if output == "json":
        print_json(ports)
        return
    rows = [
        [
            port["name"],
            port["type"],
            port["state"],
            since(port.get("since")),
            port["mac"] or "-",
            vlan_text(port),
            count(port["stats"]["rx_packets"]),
            count(port["stats"]["tx_packets"]),
            count(port["stats"]["dropped"]),
            _why(port),
        ]
        for port in ports
    ]
    headers = ["PORT", "TYPE", "STATE", ">FOR", "MAC", "VLAN", ">RX PKTS", ">TX PKTS", ">DROPPED", "WHY"]
    if not any(row[-1] for row in rows):
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    print_table(headers, rows, "no ports yet: 'ffswitch add-port NAME' adds one", STATE_COLOURS)


@click.command()
@output_option()
@click.pass_obj
def show(run_dir: Path, output: str) -> None:
    """Show the switch and its ports."""
    with Client(run_dir) as client:
        found = client.call("show")
    if output == "json":
        print_json(found)
        return
    version, switch = found["version"], found["switch"]
    cpus = listing([worker["cpu"] for worker in version["workers"]])
    workers = plural(len(version["workers"]), "worker")
    dpdk = version["dpdk"].removeprefix("DPDK ")
    click.echo(f"ffswitch {version['version']} on DPDK {dpdk}, up {duration(version['uptime_s'])}")
    click.echo(f"    daemon   pid {version['pid']}, in {version['run_dir']}, {workers} on CPU {cpus}")
    click.echo(f"    tables   {plural(found['flows'], 'flow')}, {plural(found['macs'], 'MAC')}")
    click.echo("    settings " + ", ".join(f"{key} {_plain(value)}" for key, value in switch.items()))
    for port in found["ports"]:
        _print_port(port)


def _print_port(port: Port) -> None:
    state, reason = port["state"], _why(port)
    why = f" ({reason})" if reason else ""
    click.echo(f"Port {port['name']}: {paint(state, STATE_COLOURS.get(state, ''))} for {since(port.get('since'))}{why}")
    for line in port_lines(port):
        click.echo(f"    {line}")


def port_lines(port: Port) -> list[str]:
    """Return what `show` says of a port below its name and state."""
    whats = {
        "vhost-user": f"vhost-user {port['role']}, {port['socket']}",
        "pmd": f"pmd {port['devargs']}",
        "packet": f"packet {port['devargs']}",
        "ff": f"ff, {port['socket']}",
    }
    what = whats.get(port["type"]) or f"vxlan {port.get('vni')}, the other hosts of network {port['network']}"
    lines = [f"{what}, {plural(port['queues'], 'queue')}, mtu {port['mtu']}"]
    words = [f"mac {port['mac']}"] if port["mac"] else []
    words += [f"ip {' '.join(port['ips'])}"] if port["ips"] else []
    words += [f"vlan {vlan_text(port)}" if port["tag"] else vlan_text(port)]
    words += [f"network {port['network']}"] if port["network"] != "default" else []
    words += [f"trust domain {port['trust_domain']}"] if port["trust_domain"] else []
    words += ["memory read-only"] if port.get("memory") == "read-only" else []
    words += [f"mirrored to {port['mirror']}"] if port["mirror"] else []
    words += [f"labels {' '.join(port['labels'])}"] if port.get("labels") else []
    words += [f"uplink {' '.join(port['uplink'])}"] if port.get("uplink") else []
    lines.append(", ".join(words))
    lines += _shortcut_lines(port.get("shortcuts"))
    stats = port["stats"]
    if stats["rx_packets"] or stats["tx_packets"] or stats["dropped"]:
        lines.append(
            f"received {plural(stats['rx_packets'], 'packet')} ({size(stats['rx_bytes'])}), "
            f"sent {stats['tx_packets']} ({size(stats['tx_bytes'])}), dropped {stats['dropped']}"
        )
    return lines


def _shortcut_lines(shortcuts: Mapping[str, Any] | None) -> list[str]:
    if shortcuts is None:
        return []
    lines = [f"shortcuts {way} {' '.join(shortcuts[way])}" for way in ("to", "from") if shortcuts[way]]
    if shortcuts["rx_packets"] or shortcuts["tx_packets"]:
        sent, sent_bytes = plural(shortcuts["rx_packets"], "packet"), size(shortcuts["rx_bytes"])
        taken, taken_bytes = shortcuts["tx_packets"], size(shortcuts["tx_bytes"])
        lines.append(f"by shortcuts it sent {sent} ({sent_bytes}) and was sent {taken} ({taken_bytes})")
    return lines


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key}={_plain(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _read_values(pairs: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"'{pair}' is not KEY=VALUE")
        key = key.replace("-", "_")
        try:
            values[key] = _read_value(key, value)
        except click.BadParameter as error:
            raise click.UsageError(f"{key}: {error.message}") from None
    return values


def _read_value(key: str, value: str) -> Any:
    """Give a value the type that its key has; what does not read as that is left for the daemon to refuse."""
    if key == "trunks":
        return vlan_list(value)
    if key == "ips":
        return [item.strip() for item in value.split(",") if item.strip()]
    if key in _NUMBERS:
        with suppress(ValueError):
            return float(value) if "." in value else int(value)
    return value


def _print_settings(settings: Mapping[str, Any]) -> None:
    print_table(["KEY", "VALUE"], [[key, _plain(value)] for key, value in settings.items()], "nothing is set")


def _split_target(switch: bool, words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    if switch:
        return None, words
    if not words:
        raise click.UsageError("name a port, or say --switch")
    return words[0], words[1:]


@click.command("set")
@click.option("--switch", is_flag=True, help="Settings of the switch instead of a port's.")
@click.argument("words", nargs=-1, metavar="[PORT] KEY=VALUE...", shell_complete=complete_port)
@output_option()
@click.pass_obj
def set_values(run_dir: Path, switch: bool, words: Sequence[str], output: str) -> None:
    """Change settings of a port or the switch.

    \b
    ffswitch set web0 tag=10
    ffswitch set web0 trunks=10,20-29 native_vlan=10 mtu=9000
    ffswitch set web0 rxq-affinity=0:1,1:0
    ffswitch set --switch mac_age=60

    Keys of a port: mac ips network trust_domain labels mtu tag trunks native_vlan mirror mac_quota
    upcall_budget rxq_affinity uplink uplink_gateway; of an ff port, too: memory shortcut_quota. Keys of
    the switch: mac_age flow_idle idle_spin idle_sleep shortcut_rate shortcut_idle auto_lb log_level.
    "KEY=" empties a text or a list.
    """
    name, pairs = _split_target(switch, words)
    if not pairs:
        raise click.UsageError("say what to change, as KEY=VALUE")
    values = _read_values(pairs)
    with Client(run_dir) as client:
        if name is None:
            result = client.call("switch.set", {"values": values})
        else:
            result = client.call("port.set", {"name": name, "values": values})
    if output == "json":
        print_json(result)
    else:
        _print_settings({key: result.get(key) for key in values})


@click.command("get")
@click.option("--switch", is_flag=True, help="Settings of the switch instead of a port's.")
@click.argument("words", nargs=-1, metavar="[PORT] [KEY]...", shell_complete=complete_port)
@output_option()
@click.pass_obj
def get_values(run_dir: Path, switch: bool, words: Sequence[str], output: str) -> None:
    """Print settings and state of a port.

    With --switch, print those of the switch.

    With one KEY the value alone is printed: ffswitch get web0 state
    """
    name, keys = _split_target(switch, words)
    keys = [key.replace("-", "_") for key in keys]
    with Client(run_dir) as client:
        found = client.call("switch.get") if name is None else client.call("port.get", {"name": name})
    unknown = [key for key in keys if key not in found]
    if unknown:
        raise click.UsageError(f"unknown key '{unknown[0]}'; known are {', '.join(found)}")
    chosen = {key: found[key] for key in keys or found}
    if output == "json":
        print_json(chosen[keys[0]] if len(keys) == 1 else chosen)
    elif len(keys) == 1:
        click.echo(_plain(chosen[keys[0]]))
    else:
        _print_settings(chosen)


COMMANDS = (add_port, del_port, list_ports, show, set_values, get_values)
