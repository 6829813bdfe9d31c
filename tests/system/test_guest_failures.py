# SPDX-License-Identifier: Apache-2.0
"""A virtual machine that fails says so at once, with the end of its console."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.guest.guest import RESET_STATUS, Guest, GuestError, Nic

DEADLINE = 30.0
STARTER = """
import asyncio
from tests.guest.guest import Guest

async def main():
    async with Guest("left-behind", []) as guest:
        print(guest.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


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


async def test_a_reset_ends_the_jobs() -> None:
    async with Guest("guest", []) as guest:
        await guest.booted()
        async with guest.job("sleep 1000") as job:
            guest.reset()
            assert await job.status() == (RESET_STATUS, "guest was reset")
            await guest.booted()
            async with guest.job("echo said") as next_job:
                assert await next_job.wait() == "said\n"


async def test_a_killed_test_leaves_no_machine() -> None:
    starter = await asyncio.create_subprocess_exec(sys.executable, "-c", STARTER, stdout=asyncio.subprocess.PIPE)
    assert starter.stdout
    pid = int(await starter.stdout.readline())
    machine = os.pidfd_open(pid)
    try:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(machine, ended.set)
        assert not ended.is_set()
        starter.kill()
        async with asyncio.timeout(DEADLINE):
            await ended.wait()
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        asyncio.get_running_loop().remove_reader(machine)
        os.close(machine)
        await starter.wait()
