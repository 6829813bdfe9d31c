# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that fails says so at once, with the end of its console."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guest.guest import Guest, GuestError, Nic


async def test_a_panic_ends_every_wait_and_a_complaint_fails_the_end() -> None:
    async with Guest("guest", []) as guest:
        await guest.booted()
        assert await guest.status("echo said; false") == (1, "said\n")
        with pytest.raises(GuestError, match="'ls /none' ended with 1: ls: /none: No such file"):
            await guest.run("ls /none")
        with pytest.raises(GuestError, match="has not answered 'sleep 1' within 0 s"):
            await guest.run("sleep 1", 0.01)
        await guest.run("echo '<4>WARNING: on purpose' >/dev/kmsg")
        with pytest.raises(GuestError, match=re.compile("^guest panicked; .*sysrq triggered crash", re.DOTALL)):
            await guest.run("echo c >/proc/sysrq-trigger")
        with pytest.raises(GuestError, match="panicked"):  # nor does any later command wait
            await guest.run("true")
        with pytest.raises(GuestError, match=r"^guest: .*WARNING: on purpose"):
            await guest.stop()


async def test_a_qemu_that_does_not_start_ends_the_wait_for_the_boot(tmp_path: Path) -> None:
    async with Guest("guest", [Nic(tmp_path / "none/vhost.sock", "02:00:00:00:00:01")]) as guest:
        with pytest.raises(GuestError, match=r"^guest ended with status 1; its console:\n.*none/vhost.sock"):
            await guest.booted()
