"""How a process ends: exit codes, one line for a mistake or a signal, a traceback that names its rank for a crash."""

import atexit
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime import signals

EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 85
EXIT_INTERRUPTED = 130
EXIT_NOBODY_READS = 141
"""Standard output was closed (`... | head -1`): what a shell reports for a process that SIGPIPE ended."""
PEER_GRACE_SECONDS = 3.0
SIGNAL_GRACE_SECONDS = 0.5
"""So long after another rank the signal may come that ended it: then there is nothing to say of lost contact."""
SAVE_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""A training run answers these with a checkpoint and exit code 85."""
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
"""Where there is nothing to save, these end a command at once, with exit code 85 too."""
EXIT_AFTER_ANOTHER_RANK = 1
NOTHING_TO_SAVE = "nemo-tvkd: stopped by a signal, nothing to save; run the same command again to continue"

MEETING_POINT = "NEMO_TVKD_MEETING_POINT"
"""Variable with the file where forked ranks meet. At the agent's own TCP store the first ranks would connect while
later ones are forked: its thread then resolves their addresses, and a rank forked at that moment inherits glibc's
resolver lock as taken and hangs."""


class Preempted(Exception):
    """A checkpoint is saved after a signal; the same command continues it (exit code 85)."""


def under_launcher() -> bool:
    """Whether torchrun or srun started this process as one of several ranks (a batch script is no rank)."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def rank_variables() -> dict[str, int]:
    """rank, world, local_rank and local_world as the launcher set them; one rank without a launcher."""
    env = os.environ
    if "RANK" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    elif under_launcher():
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    else:
        return {"rank": 0, "world": 1, "local_rank": 0, "local_world": 1}
    rank, world = int(env[names[0]]), int(env.get(names[1], "1"))
    local_world = re.match(r"\d+", env.get(names[3], ""))  # Slurm writes 8(x2) for two nodes of eight
    return {
        "rank": rank,
        "world": world,
        "local_rank": int(env.get(names[2], rank)),
        "local_world": int(local_world.group()) if local_world else world,
    }


def rank() -> int:
    """This process's rank as its launcher set it; 0 without a launcher."""
    return rank_variables()["rank"]


def is_rank_zero() -> bool:
    """Whether this process speaks for the job."""
    return rank() == 0


def guarded(entry: Callable[..., int | None], *args: Any) -> int:
    """Call `entry` and turn how it ends into an exit code; a user's mistake is one line from each node.

    While it runs, SIGUSR1 and SIGTERM end the process at once, but in a training loop.
    """
    try:
        with signals.acting(_end_at_once, STOP_SIGNALS):
            return _guarded(entry, *args)
    finally:
        atexit.unregister(signals.ignore)
        atexit.register(signals.ignore, STOP_SIGNALS)  # what is done is done: no crash while Python shuts down


def _end_at_once(signum: int) -> None:
    code, line = EXIT_PREEMPTED, NOTHING_TO_SAVE if is_rank_zero() else ""
    if signum == signal.SIGTERM and under_launcher():
        # When a rank fails, srun --kill-on-bad-exit and torchrun send this to the others. srun then reports the
        # highest code of all: it must be that rank's, or a mistake would be repeated for ever as a preemption.
        code, line = (code if "RANK" in os.environ else EXIT_AFTER_ANOTHER_RANK), ""
    signals.end(code, line)


def _guarded(entry: Callable[..., int | None], *args: Any) -> int:
    try:
        code = entry(*args) or 0
        print(end="", flush=True)  # a pipe that nobody reads is noticed here, not when Python exits
        return code
    except UserError as error:
        if os.environ.get("NEMO_TVKD_DEBUG") == "1":
            traceback.print_exc()
        elif rank_variables()["local_rank"] == 0:
            print("nemo-tvkd:", " ".join(str(error).splitlines()), file=sys.stderr)
        return EXIT_USER_ERROR
    except Preempted as stop:
        if is_rank_zero():
            print(f"nemo-tvkd: {stop}", file=sys.stderr, flush=True)
        else:  # the launcher ends all ranks after the first that has ended: let rank 0 speak before
            time.sleep(SIGNAL_GRACE_SECONDS)
        return EXIT_PREEMPTED
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning's answer to a Ctrl-C in its own loops
            return _interrupted()
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_NOBODY_READS
        if _lost_a_peer(error):
            # Not this rank's fault: let the launcher see the rank that died first, and its error instead of ours.
            told = signals.told_to_stop()  # so was the other, which had nothing to save yet, or nothing more
            time.sleep(0 if told else SIGNAL_GRACE_SECONDS)
            print(f"nemo-tvkd: rank {rank()} lost contact with another rank and stops", file=sys.stderr, flush=True)
            time.sleep(0 if told else PEER_GRACE_SECONDS)
            return EXIT_PREEMPTED if told else 1
        sys.stderr.write(f"nemo-tvkd: rank {rank()} failed\n{traceback.format_exc()}")
        return 1


def _interrupted() -> int:
    if is_rank_zero():
        print("nemo-tvkd: interrupted", file=sys.stderr)
    return EXIT_INTERRUPTED


def _nobody_reads() -> bool:
    """Whether standard output is a pipe that nobody reads any more; Python's own flush at exit is then kept quiet."""
    try:
        out = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # no file behind it
        return False
    watch = select.poll()
    watch.register(out, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), out)
    return True


def _lost_a_peer(error: Exception) -> bool:
    text = str(error)
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError"))
