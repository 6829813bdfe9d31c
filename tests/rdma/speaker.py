# SPDX-License-Identifier: Apache-2.0
"""The messages of ff_rdma.h spoken by pyverbs alone: the fast path's other end, honest or not. Runs in a guest.

    speaker.py DEVICE GID_INDEX

Prints its end as JSON, reads "{end, epoch}" of its peer from PEER, and connects. Then each line of TODO is a list of
messages to be sent as they are, in hexadecimal, and of how many frames to wait for and send back: [[...], n].
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

PEER, TODO = "/tmp/speaker.peer", "/tmp/speaker.todo"
HEADER = struct.Struct("<IBB10sIIII")  # magic, version, type, virtio-net header, VNI or mark, epoch, length, limit
MAGIC, VERSION = 0x44524646, 1
DATA, CREDIT, MARK, MARKED = 1, 2, 3, 4
CREDITS, SPARE, SIZE = 16, 8, 65600
SECONDS = 60.0
PSN = 77


class Speaker:
    """One queue pair."""

    def __init__(self, device: str, gid_index: int) -> None:
        self.context = Context(name=device)
        self.gid_index = gid_index
        self.domain = PD(self.context)
        self.sent, self.came = CQ(self.context, 64), CQ(self.context, 64)
        cap = QPCap(max_send_wr=32, max_recv_wr=CREDITS + SPARE)
        self.pair = QP(self.domain, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.sent, rcq=self.came, cap=cap))
        self.out = MR(self.domain, 2 * SIZE, e.IBV_ACCESS_LOCAL_WRITE)
        self.into = MR(self.domain, (CREDITS + SPARE) * SIZE, e.IBV_ACCESS_LOCAL_WRITE)
        self.limit = self.told = CREDITS  # of the other, for data to us
        self.may, self.done = 0, 0  # data messages that we may send, and did
        self.epoch = 0

    def end(self) -> dict[str, Any]:
        """What the other end has to know."""
        gid = self.context.query_gid(1, self.gid_index).gid.replace(":", "")
        return {"gid": gid, "lid": 0, "mtu": 1024, "credits": CREDITS, "queue_pairs": [[self.pair.qp_num, PSN]]}

    def connect(self, end: dict[str, Any], epoch: int) -> None:
        """Meet the other end."""
        self.epoch, self.may = epoch, end["credits"]
        ((number, psn),) = end["queue_pairs"]
        gid = GID(":".join(end["gid"][i : i + 4] for i in range(0, 32, 4)))
        route = GlobalRoute(dgid=gid, sgid_index=self.gid_index)
        attr = QPAttr(port_num=1)
        attr.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        attr.dest_qp_num, attr.rq_psn, attr.sq_psn = number, psn, PSN
        attr.path_mtu, attr.min_rnr_timer = e.IBV_MTU_1024, 12
        attr.timeout, attr.retry_cnt, attr.rnr_retry = 14, 7, 6
        attr.max_rd_atomic = attr.max_dest_rd_atomic = 0
        self.pair.to_rts(attr)
        for buffer in range(CREDITS + SPARE):
            self.post(buffer)

    def post(self, number: int) -> None:
        """Give a buffer to the device."""
        place = SGE(self.into.buf + number * SIZE, SIZE, self.into.lkey)
        self.pair.post_recv(RecvWR(wr_id=number, sg=[place], num_sge=1))

    def send(self, message: bytes) -> str:
        """Send a message as it is; the status of its completion."""
        self.out.write(message, len(message))
        place = SGE(self.out.buf, len(message), self.out.lkey)
        self.pair.post_send(
            SendWR(wr_id=1, sg=[place], num_sge=1, opcode=e.IBV_WR_SEND, send_flags=e.IBV_SEND_SIGNALED)
        )
        (done,) = self.wait(self.sent)
        return "ok" if done.status == e.IBV_WC_SUCCESS else f"status {done.status}"

    def wait(self, queue: CQ) -> list[Any]:
        """The next completion."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            n, found = queue.poll()
            if n:
                return list(found)
        raise TimeoutError("nothing has completed")

    def header(self, kind: int, vni: int = 0, length: int = 0, offload: bytes = bytes(10)) -> bytes:
        """A header that tells the newest limit."""
        self.told = self.limit
        return HEADER.pack(MAGIC, VERSION, kind, offload, vni, self.epoch, length, self.told)

    def receive(self) -> tuple[int, bytes, bytes]:
        """The next frame, with its VNI and its virtio-net header; marks are answered and credits given on the way."""
        while True:
            (done,) = self.wait(self.came)
            message = self.into.read(done.byte_len, done.wr_id * SIZE)
            self.post(done.wr_id)
            magic, version, kind, offload, vni, epoch, length, self.may = HEADER.unpack(message[: HEADER.size])
            assert (magic, version, epoch) == (MAGIC, VERSION, self.epoch)
            if kind == MARK:
                self.send(self.header(MARKED, vni))
            if kind != DATA:
                continue
            self.limit += 1
            if self.limit - self.told >= CREDITS // 2:
                self.send(self.header(CREDIT))
            assert length == len(message) - HEADER.size
            return vni, offload, message[HEADER.size :]

    def send_back(self) -> None:
        """Return the next frame to where it came from."""
        vni, offload, frame = self.receive()
        assert self.done < self.may
        self.done += 1
        assert self.send(self.header(DATA, vni, len(frame), offload) + frame) == "ok"


def main(device: str, gid_index: str) -> None:
    """Do what the two pipes say."""
    speaker = Speaker(device, int(gid_index))
    for path in (PEER, TODO):
        Path(path).unlink(missing_ok=True)
        os.mkfifo(path)
    print(json.dumps(speaker.end()), flush=True)
    speaker.connect(**json.loads(Path(PEER).read_text(encoding="utf-8")))
    print("connected", flush=True)
    while True:
        messages, n = json.loads(Path(TODO).read_text(encoding="utf-8"))
        for message in messages:
            speaker.done += 1
            print(speaker.send(bytes.fromhex(message)), flush=True)
        for _ in range(n):
            speaker.send_back()
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
