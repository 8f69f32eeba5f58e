"""Stands in for `python -m nemo_tvkd COMMAND OVERRIDES...` in a batch script: does what its plan=... override says.

A plan has one word for each attempt, separated by slashes; the last one stays. All ranks meet, then:

    a number   exit with this code
    wait       wait for USR1 or TERM, take a second to "save" and exit with 85; a rank that loses its peer crashes (1)
    alone      as wait, but without an eye on its peer
    dull       sleep without a handler of signals, as Python does while it imports
    A+B        rank 0 does A, the others do B

Each rank of each attempt leaves ATTEMPT-RANK.json in $RECORDS/JOB/ (JOB: 12, or 12_3 for an array's task): its
arguments and environment, whom it met, the signals it got and its exit code (none: it was killed). Whatever else the
script asks of `python` ends with the code $PREPARATION.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

PATIENCE = 150
SAVE_SECONDS = 1.0
PREEMPTED = 85
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class Rank:
    """One process of one attempt."""

    def __init__(self, arguments: list[str]) -> None:
        env = os.environ
        self.rank, self.world = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
        self.attempt = int(env.get("SLURM_RESTART_COUNT", "0"))
        job = env["SLURM_JOB_ID"]
        if "SLURM_ARRAY_JOB_ID" in env:
            job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        self.file = Path(env["RECORDS"], job, f"{self.attempt}-{self.rank}.json")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"rank": self.rank, "arguments": arguments, "signals": [], "code": None}
        self.record |= {"environment": dict(env), "node": env["SLURMD_NODENAME"], "folder": os.getcwd(), "met": []}
        self.peers: list[socket.socket] = []
        for number in SIGNALS:
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.record["signals"].append(signal.Signals(number).name)

    def note(self) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.record))
        part.rename(self.file)

    def meet(self) -> None:
        """Rank 0 listens at the meeting point; every other rank tells it its number and hears whom it has met."""
        if self.world == 1:
            return
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if self.rank == 0:
            with socket.create_server(address) as server:
                server.settimeout(PATIENCE)
                self.peers = [server.accept()[0] for _ in range(self.world - 1)]
            self.record["met"] = sorted(int(peer.recv(16)) for peer in self.peers)
            for peer in self.peers:
                peer.sendall(b"0")
        else:
            self.peers = [_connect(address)]
            self.peers[0].sendall(str(self.rank).encode())
            self.record["met"] = [int(self.peers[0].recv(16))]

    def act(self, action: str) -> int:
        if action == "dull":
            time.sleep(PATIENCE)
        if action == "alone":
            self.peers = []
        return int(action) if action.isdigit() else self._wait()

    def _wait(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.record["signals"]:
                time.sleep(SAVE_SECONDS)
                return PREEMPTED
            if select.select(self.peers, [], [], 0.1)[0] and not self.record["signals"]:
                return 1  # the other side is closed: its rank is gone
        return 99

    def main(self) -> int:
        plan = next(word.removeprefix("plan=") for word in self.record["arguments"] if word.startswith("plan="))
        of_ranks = _of(plan.split("/"), self.attempt).split("+")
        action = _of(of_ranks, self.rank)
        self.meet()
        if action == "dull":
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        print(f"rank {self.rank} of {self.world} is ready in attempt {self.attempt}", flush=True)
        self.note()
        self.record["code"] = self.act(action)
        self.note()
        return self.record["code"]


def _of(words: list[str], index: int) -> str:
    """The last word holds for all after it."""
    return words[min(index, len(words) - 1)]


def _connect(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(address, timeout=PATIENCE)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    if sys.argv[1:3] == ["-m", "nemo_tvkd"]:
        os._exit(Rank(sys.argv[3:]).main())  # as ranks of nemo_tvkd do
    sys.exit(int(os.environ.get("PREPARATION", "0")))
