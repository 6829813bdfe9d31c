# SPDX-License-Identifier: Apache-2.0
"""Commands about this host: drivers and doctor. They need no daemon."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vswitch.cli.render import output_option, paint, print_json, print_table

if TYPE_CHECKING:
    from vswitch.slowpath.doctor import Finding
    from vswitch.slowpath.drivers import Driver, PciDevice

_LEVEL_COLOURS = {"ok": "green", "warn": "yellow", "error": "red"}


@click.command("drivers")
@click.argument("name", required=False)
@output_option()
def drivers_command(name: str | None, output: str) -> None:
    """List network drivers and PCI devices.

    With NAME, tell all about one of DPDK's drivers.
    """
    from vswitch.slowpath import drivers  # noqa: PLC0415

    try:
        known: Sequence[Driver] = drivers.load_drivers()
    except drivers.DevargsError as error:
        raise click.ClickException(str(error)) from None
    devices = drivers.pci_network_devices()
    if name:
        known = [driver for driver in known if name in (driver.name, driver.alias)]
        if not known:
            raise click.ClickException(f"no driver {name}; 'ffswitch drivers' lists the known ones")
    owners = {device.address: drivers.driver_for_pci(device.ids, known) for device in devices}
    if name:
        devices = [device for device in devices if owners[device.address]]
    if output == "json":
        print_json(
            {
                "drivers": [asdict(driver) for driver in known],
                "devices": [
                    {**asdict(device), "pmd": owner.name if owner else None}
                    for device in devices
                    for owner in [owners[device.address]]
                ],
            }
        )
        return
    if name:
        _print_details(known[0])
    else:
        _print_drivers(known)
    if devices:
        click.echo()
        _print_devices(devices, owners)


def _print_drivers(known: Sequence[Driver]) -> None:
    rows = [
        [driver.name, driver.bus, str(len(driver.pci_ids)) if driver.pci_ids else "-", " ".join(driver.params) or "-"]
        for driver in sorted(known, key=lambda driver: (driver.bus != "vdev", driver.bus, driver.name))
    ]
    print_table(["DRIVER", "BUS", ">PCI IDS", "PARAMETERS"], rows, "no drivers")


def _print_details(driver: Driver) -> None:
    device = f"{driver.name}0" if driver.bus == "vdev" else "ADDRESS"
    keys = ",KEY=VALUE..." if driver.params else ""
    rows = [
        ["driver", driver.name + (f", or {driver.alias}" if driver.alias else "")],
        ["object", driver.path],
        ["bus", driver.bus],
        ["devargs", device + keys],
        ["keys", " ".join(driver.params) or "none declared"],
        ["values", driver.params_text or "-"],
        ["kernel", driver.kmod or "-"],
        ["PCI ids", " ".join(f"{vendor:04x}:{device:04x}" for vendor, device, *_ in driver.pci_ids) or "-"],
    ]
    width = max(len(row[0]) for row in rows)
    for label, text in rows:
        click.echo(f"{label:{width}}  {text}")


def _print_devices(devices: Sequence[PciDevice], owners: dict[str, Driver | None]) -> None:
    rows = []
    for device in devices:
        owner = owners[device.address]
        rows.append(
            [
                device.address,
                f"{device.ids[0]:04x}:{device.ids[1]:04x}",
                " ".join(device.interfaces) or "-",
                device.driver or "-",
                owner.name if owner else "-",
            ]
        )
    print_table(["PCI DEVICE", "ID", "INTERFACE", "BOUND TO", "PMD"], rows, "")


@click.command()
@output_option()
@click.pass_context
def doctor(context: click.Context, output: str) -> None:
    """Say what this host lacks, and what to do.

    Exits with 1 when there is an error.
    """
    from vswitch.slowpath import doctor as slowpath_doctor  # noqa: PLC0415

    findings = slowpath_doctor.diagnose(slowpath_doctor.gather(context.find_object(Path) or Path()))
    if output == "json":
        print_json([asdict(finding) for finding in findings])
    else:
        _print_findings(findings)
    if any(finding.level is slowpath_doctor.Level.ERROR for finding in findings):
        context.exit(1)


def _print_findings(findings: Sequence[Finding]) -> None:
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        level = paint(f"{finding.level:5}", _LEVEL_COLOURS[finding.level])
        click.echo(f"{level}  {finding.topic:{width}}  {finding.what}")
        if finding.todo:
            click.echo(f"{'':{9 + width}}-> {finding.todo}")


COMMANDS = (drivers_command, doctor)
