"""A program of two ranks that wait for each other in gloo, for tests of signals: CASE MARK METHOD."""

import os
import signal
import sys
import time
from datetime import timedelta
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime import exits, launch


def entry(case: str, mark: str) -> None:
    """A rank: says by the file MARK-rank-N that it is there."""
    rank = exits.rank()
    open(f"{mark}-rank-{rank}", "w").close()
    if case == "crash" and rank == 1:
        raise ValueError("the first rank waits in gloo")
    if case == "mistake" and rank == 0:
        raise UserError("the second rank waits in gloo")
    if case == "slow" and rank == 1:  # the first one waits in gloo
        time.sleep(100)
    import torch.distributed as dist

    meeting = os.environ.get(exits.MEETING_POINT, f"file://{mark}-meeting")
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=100))
    dist.barrier()


def start(case: str, mark: str, method: str) -> int:
    """Start the ranks as a command does, by "fork" or "spawn"."""
    config = launch._launch_config

    def configured(ranks: int) -> Any:
        if case == "early":  # when no rank is there yet to pass it on to
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.2)
        made = config(ranks)
        made.start_method = method
        return made

    launch._launch_config = configured
    return launch.run(entry, (case, mark), 2)


def main(words: list[str]) -> int:
    return exits.guarded(start, *words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
