# SPDX-License-Identifier: Apache-2.0
"""A program on pyverbs for guests: a reliable-connected queue pair that does what it is told, line by line.

A request is a JSON object on standard input that says what to "do"; its answer is one on standard output. Run by
Debian's Python, which has pyverbs.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from typing import Any

import pyverbs.enums as e
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR

PORT = 1
DEPTH = 64
SLOT = 65536  # bytes of a message at most; one slot a receive, and the last for what is sent
PSN = 0
TIMEOUT = 14  # of an acknowledgement: 4.096 µs * 2^14 = 67 ms
RETRIES = 5
COMPLETION_SECONDS = 60.0


class Peer:
    """One queue pair with its memory; `do_X` answers the request X."""

    def __init__(self, device: str, gid_index: int) -> None:
        self.context = Context(name=device)
        self.gid_index = gid_index
        domain = PD(self.context)
        self.memory = MR(domain, (DEPTH + 1) * SLOT, e.IBV_ACCESS_LOCAL_WRITE)
        self.sent, self.received = CQ(self.context, DEPTH), CQ(self.context, DEPTH)
        capacity = QPCap(max_send_wr=DEPTH, max_recv_wr=DEPTH, max_send_sge=1, max_recv_sge=1)
        setting = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.sent, rcq=self.received, cap=capacity)
        self.pair = QP(domain, setting, QPAttr(port_num=PORT))

    def do_describe(self) -> dict[str, Any]:
        """The device, its port and its GIDs, of which the types are enum ibv_gid_type's."""
        port = self.context.query_port(PORT)
        gids = []
        for index in range(port.gid_tbl_len):
            gid = self.context.query_gid(PORT, index).gid
            if gid.replace(":", "").strip("0"):
                gids.append({"index": index, "gid": gid, "type": self.context.query_gid_ex(PORT, index).gid_type})
        return {"device": self.context.name, "state": port.state, "active_mtu": port.active_mtu, "gids": gids}

    def do_endpoint(self) -> dict[str, Any]:
        """What the other peer's `connect` takes."""
        return {"number": self.pair.qp_num, "gid": self.context.query_gid(PORT, self.gid_index).gid}

    def do_connect(self, number: int, gid: str) -> dict[str, Any]:
        """Go to Ready To Send, with DEPTH receives posted."""
        route = GlobalRoute(dgid=GID(gid), sgid_index=self.gid_index, hop_limit=64)
        attributes = QPAttr(port_num=PORT)
        attributes.ah_attr = AHAttr(gr=route, is_global=1, port_num=PORT)
        attributes.dest_qp_num = number
        attributes.path_mtu = self.context.query_port(PORT).active_mtu
        attributes.rq_psn = attributes.sq_psn = PSN
        attributes.min_rnr_timer = 12
        attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = TIMEOUT, RETRIES, 7
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        self.pair.to_rts(attributes)
        for slot in range(DEPTH):
            self._post_receive(slot)
        return {}

    def do_send(self, data: str) -> dict[str, Any]:
        """Send a message (base64) and wait for its completion."""
        message = base64.b64decode(data)
        offset = DEPTH * SLOT
        self.memory.write(message, len(message), offset)
        sge = SGE(self.memory.buf + offset, len(message), self.memory.lkey)
        self.pair.post_send(SendWR(num_sge=1, sg=[sge], opcode=e.IBV_WR_SEND, send_flags=e.IBV_SEND_SIGNALED))
        return {"status": self._completion(self.sent).status}

    def do_receive(self) -> dict[str, Any]:
        """Wait for the next message and answer with it, in base64."""
        completion = self._completion(self.received)
        message = self.memory.read(completion.byte_len, completion.wr_id * SLOT)
        self._post_receive(completion.wr_id)
        return {"status": completion.status, "data": base64.b64encode(message).decode()}

    def _post_receive(self, slot: int) -> None:
        sge = SGE(self.memory.buf + slot * SLOT, SLOT, self.memory.lkey)
        self.pair.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[sge]))

    @staticmethod
    def _completion(queue: CQ) -> Any:
        deadline = time.monotonic() + COMPLETION_SECONDS
        while time.monotonic() < deadline:
            count, completions = queue.poll(1)
            if count:
                return completions[0]
            time.sleep(0.001)
        raise SystemExit(f"no completion within {COMPLETION_SECONDS:.0f} s")


if __name__ == "__main__":
    peer = Peer(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        print(json.dumps(getattr(peer, f"do_{what}")(**request)), flush=True)
