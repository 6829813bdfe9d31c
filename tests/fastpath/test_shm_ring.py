# SPDX-License-Identifier: Apache-2.0
"""shm_ring.h alone: against a deque, with the other side in Python, and between threads under ThreadSanitizer."""

from __future__ import annotations

import ctypes
import subprocess
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.memport.rings import CHAIN_MAX, Borrower, Buffer, Lender, Ring, ring_bytes

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'vswitch/fastpath'}"]
SIZE = 64
BATCH = 64
LAP = 3  # enum ff_ring_fault


def build(source: str, program: Path, *flags: str) -> Path:
    subprocess.run(["clang", *FLAGS, *flags, "-o", program, ROOT / "tests/fastpath" / source, "-pthread"], check=True)
    return program


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = build("shm_ring_lib.c", tmp_path_factory.mktemp("shm") / "shm_ring.so", "-O2", "-shared", "-fPIC")
    lib = ctypes.CDLL(str(path))
    for name in ("lender_new", "borrower_new"):
        getattr(lib, name).restype = ctypes.c_void_p
        getattr(lib, name).argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    rest: dict[str, list[Any]] = {
        "lender_room": [],
        "lender_put": [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p],
        "lender_reclaim": [ctypes.c_void_p],
        "lender_seize": [ctypes.c_void_p],
        "borrower_take": [ctypes.c_void_p, ctypes.c_void_p],
        "borrower_give": [ctypes.c_uint16],
        "borrower_holds": [],
    }
    for name, arguments in rest.items():
        getattr(lib, name).argtypes = [ctypes.c_void_p, *arguments]
    return lib


def test_threads_under_the_sanitizer(tmp_path: Path) -> None:
    program = build("shm_ring.c", tmp_path / "ring", "-O1", "-fsanitize=thread")
    done = subprocess.run([program], check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


class CLender:
    """Lender of rings.py by shm_ring.h."""

    def __init__(self, lib: Any, ring: Any) -> None:
        self.lib, self.it = lib, lib.lender_new(ring, SIZE)
        self.slots = (ctypes.c_uint16 * BATCH)()
        self.lent: dict[int, int] = {}  # offset by slot

    def room(self) -> int:
        return int(self.lib.lender_room(self.it))

    def put(self, offset: int, n: int) -> None:
        self.lib.lender_put(self.it, offset, n, self.slots)
        for i in range(n):
            assert self.slots[i] not in self.lent
            self.lent[self.slots[i]] = offset + i

    def reclaim(self) -> list[int]:
        return self._back(self.lib.lender_reclaim(self.it, self.slots))

    def seize(self) -> list[int]:
        return self._back(self.lib.lender_seize(self.it, self.slots))

    def _back(self, n: int) -> list[int]:
        return [self.lent.pop(slot) for slot in self.slots[:n]]


class PythonLender:
    def __init__(self, view: memoryview) -> None:
        self.it = Lender(Ring(view, SIZE, 1))

    def room(self) -> int:
        return len(self.it.free)

    def put(self, offset: int, n: int) -> None:
        self.it.put([Buffer(0, offset + i, 1) for i in range(n)])
        self.it.publish()

    def reclaim(self) -> list[int]:
        return [buffer.offset for buffer in self.it.reclaim()]

    def seize(self) -> list[int]:
        return [buffer.offset for buffer in self.it.seize()]


class CBorrower:
    """Borrower of rings.py by shm_ring.h."""

    def __init__(self, lib: Any, ring: Any) -> None:
        self.lib, self.it = lib, lib.borrower_new(ring, SIZE)
        self.offsets, self.slots = (ctypes.c_uint32 * CHAIN_MAX)(), (ctypes.c_uint16 * CHAIN_MAX)()

    def take(self) -> list[tuple[int, int]]:
        """Offset and slot of each buffer of a frame."""
        n = self.lib.borrower_take(self.it, self.offsets, self.slots)
        assert n >= 0, f"fault {-n}"
        return list(zip(self.offsets[:n], self.slots[:n], strict=True))

    def give(self, slot: int) -> None:
        self.lib.borrower_give(self.it, slot)

    def holds(self) -> int:
        return int(self.lib.borrower_holds(self.it))


class PythonBorrower:
    def __init__(self, view: memoryview) -> None:
        self.it = Borrower(Ring(view, SIZE, 1))

    def take(self) -> list[tuple[int, int]]:
        return [(desc.offset, desc.slot) for desc in self.it.take() or []]

    def give(self, slot: int) -> None:
        self.it.give(slot)

    def holds(self) -> int:
        return len(self.it.held)


class Machine(RuleBasedStateMachine):
    """The model: a deque of frames on their way, and the set of buffers that are held."""

    sides: tuple[Any, Any]

    def __init__(self, lib: Any, c_lends: bool, c_borrows: bool) -> None:
        super().__init__()
        self.lib, self.c_lends, self.c_borrows = lib, c_lends, c_borrows
        self.next = 0
        self._begin()

    def _begin(self) -> None:
        self.memory = ctypes.create_string_buffer(ring_bytes(SIZE) + 64)
        address = -(-ctypes.addressof(self.memory) // 64) * 64
        view = memoryview((ctypes.c_uint8 * ring_bytes(SIZE)).from_address(address)).cast("B")
        Ring.make(view, SIZE, 1)
        self.lender: Any = CLender(self.lib, address) if self.c_lends else PythonLender(view)
        self.borrower: Any = CBorrower(self.lib, address) if self.c_borrows else PythonBorrower(view)
        self.way: deque[list[int]] = deque()
        self.held: dict[int, int] = {}  # slot by offset
        self.given: set[int] = set()  # offsets that the lender does not have back yet
        self.first = self.next  # offset
        self.leaving = False

    def _used(self) -> bool:
        """Whether each slot was lent before."""
        return self.next - self.first > 2 * SIZE

    @precondition(lambda self: not self.leaving)
    @rule(n=st.integers(1, CHAIN_MAX))
    def put(self, n: int) -> None:
        if n > self.lender.room():
            return
        self.lender.put(self.next, n)
        self.way.append([*range(self.next, self.next + n)])
        self.next += n

    @precondition(lambda self: not self.leaving)
    @rule(frames=st.integers(1, 40))
    def put_many(self, frames: int) -> None:
        for _ in range(frames):
            self.put(1)

    @rule(frames=st.integers(1, 40))
    def take(self, frames: int) -> None:
        for _ in range(frames):
            got = self.borrower.take()
            assert [offset for offset, _ in got] == (self.way.popleft() if self.way else [])
            self.held |= dict(got)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), most=st.integers(1, 64))
    def give(self, data: st.DataObject, most: int) -> None:
        offsets = [*self.held]
        start = data.draw(st.integers(0, len(offsets) - 1))
        for offset in offsets[start : start + most]:
            self.borrower.give(self.held.pop(offset))
            self.given.add(offset)

    @rule()
    def reclaim(self) -> None:
        back = self.lender.reclaim()
        assert len(set(back)) == len(back)
        assert self.given.issuperset(back)
        self.given.difference_update(back)

    @precondition(_used)
    @rule()
    def leaves(self) -> None:
        """The receiver is told to leave (DROP): the sender puts nothing any more, and what is on its way goes back."""
        self.leaving = True
        while self.way:
            got = self.borrower.take()
            assert [offset for offset, _ in got] == self.way.popleft()
            for offset, slot in got:
                self.borrower.give(slot)
                self.given.add(offset)

    @precondition(lambda self: self.leaving)
    @rule()
    def ends(self) -> None:
        """Once it says that it holds nothing the sender takes back all there is (RECLAIM); then another ring."""
        if self.borrower.holds() > 0:
            return
        assert not self.held, "the sender takes back what is held"
        back = self.lender.seize()
        assert sorted(back) == sorted(self.given)
        assert self.lender.room() == SIZE
        self._begin()

    @precondition(_used)
    @rule()
    def dies(self) -> None:
        """The receiver is dead: held, on its way, given back, all of it is the sender's."""
        back = self.lender.seize()
        assert sorted(back) == sorted([*self.held, *self.given, *(offset for frame in self.way for offset in frame)])
        assert self.lender.room() == SIZE
        self._begin()

    @invariant()
    def it_says_what_it_holds(self) -> None:
        assert self.borrower.holds() == len(self.held)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.lender.room() + sum(map(len, self.way)) + len(self.held) + len(self.given) == SIZE

    def teardown(self) -> None:
        """All that was given back comes back, whatever is still held."""
        for _ in range(4):
            self.reclaim()
        assert not self.given


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("c_lends", "c_borrows"), [(True, False), (False, True), (True, True)])
def test_a_ring_against_a_deque(library: Any, c_lends: bool, c_borrows: bool) -> None:
    class Here(Machine):
        def __init__(self) -> None:
            super().__init__(library, c_lends, c_borrows)

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=60,
            stateful_step_count=60,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_is_held_is_not_taken_again(library: Any) -> None:
    """A sender that takes back what its receiver holds, and lends it again, breaks a rule."""
    machine = Machine(library, c_lends=False, c_borrows=True)
    machine.put(1)
    machine.take(1)
    ((offset, slot),) = machine.held.items()
    sender = machine.lender.it
    sender.free = deque([slot])
    sender.put([Buffer(0, offset, 1)])
    sender.publish()
    offsets, slots = machine.borrower.offsets, machine.borrower.slots
    assert library.borrower_take(machine.borrower.it, offsets, slots) == -LAP
    assert machine.borrower.holds() == 1
