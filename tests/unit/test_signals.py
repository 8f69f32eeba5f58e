"""A signal at any time: real processes, of which the main thread is where Python runs no handler."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime import exits, signals

NOTHING = "nemo-tvkd: stopped by a signal, nothing to save; run the same command again to continue\n"
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "4"}

BLOCKED = """
def blocked():
    # As a wait of gloo or NCCL does: in C++, for ever, and no signal interrupts it.
    import ctypes
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    libc.pthread_mutex_lock(mutex)
"""
"""In C++ for ever; no signal interrupts it."""


def start(program: str, **variables: str) -> subprocess.Popen:
    """A Python process with `blocked`, `signals` and `exits`, that has printed "ready"."""
    head = "import os, signal, subprocess, sys, time\nfrom nemo_tvkd.runtime import exits, signals\n"
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "SLURM_STEP_NUM_TASKS")} | variables
    process = subprocess.Popen(
        [sys.executable, "-c", head + BLOCKED + textwrap.dedent(program)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs tests in the background has Ctrl-C ignored in all that it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def end(process: subprocess.Popen, *numbers: int) -> tuple[int, str]:
    """Exit code and stderr after the signals."""
    for number in numbers:
        process.send_signal(number)
    try:
        errors = process.communicate(timeout=10)[1]
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_blocked_command_ends_at_once(number: int) -> None:
    process = start("sys.exit(exits.guarded(blocked))")
    began = time.monotonic()
    assert end(process, number) == (85, NOTHING)
    assert time.monotonic() - began < 2


def test_the_wait_of_these_tests_is_one_that_python_cannot_leave() -> None:
    """By a handler alone the process would still wait: these tests can fail."""
    process = start("signal.signal(signal.SIGUSR1, lambda *args: os._exit(85))\nblocked()")
    time.sleep(0.5)  # from "ready" to where it waits
    process.send_signal(signal.SIGUSR1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.kill()
    process.communicate()


def test_ctrl_c_stays_an_interrupt() -> None:
    process = start("def wait():\n    print('ready', flush=True)\n    time.sleep(60)\nsys.exit(exits.guarded(wait))")
    assert end(process, signal.SIGINT) == (130, "nemo-tvkd: interrupted\n")


def test_lightnings_answer_to_ctrl_c() -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert exits.guarded(interrupted) == 130
    with pytest.raises(SystemExit):
        exits.guarded(sys.exit, 3)


@pytest.mark.parametrize(("number", "variables", "expected"), [
    (signal.SIGUSR1, {**SRUN, "SLURM_PROCID": "0"}, (85, NOTHING)),
    (signal.SIGUSR1, {**SRUN, "SLURM_PROCID": "3"}, (85, "")),
    (signal.SIGTERM, {**SRUN, "SLURM_PROCID": "0"}, (1, "")),
    (signal.SIGTERM, {"RANK": "0"}, (85, "")),
    (signal.SIGTERM, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (85, NOTHING)),
])  # fmt: skip
def test_ranks(number: int, variables: dict[str, str], expected: tuple[int, str]) -> None:
    """Where one rank fails srun sends SIGTERM to the others and reports the highest code: the failed one's (1 or 2)."""
    assert end(start("sys.exit(exits.guarded(blocked))", **variables), number) == expected


def test_a_process_that_it_started_is_not_left_behind(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    process = start(f"""
        def work():
            child = subprocess.Popen(["sh", "-c", "sleep 100 & echo $! > {file}; wait"])
            while not os.path.exists({str(file)!r}) or not open({str(file)!r}).read().strip():
                time.sleep(0.01)
            blocked()
        sys.exit(exits.guarded(work))
    """)
    sleeper = psutil.Process(int(file.read_text()))
    assert sleeper.is_running()
    assert end(process, signal.SIGTERM)[0] == 85
    _, alive = psutil.wait_procs([sleeper], timeout=5)
    assert not alive or alive[0].status() == psutil.STATUS_ZOMBIE


def test_children_start_with_default_signals() -> None:
    process = start("""
        def work():
            print("ready", flush=True)
            subprocess.run(["grep", "^Sig[BCI]", "/proc/self/status"], check=True, stdout=sys.stderr)
        sys.exit(exits.guarded(work))
    """)
    masks = {line.split(":")[0]: int(line.split(":")[1], 16) for line in end(process)[1].splitlines()}
    bits = 1 << (signal.SIGUSR1 - 1) | 1 << (signal.SIGTERM - 1)
    assert {name: mask & bits for name, mask in masks.items()} == {"SigBlk": 0, "SigIgn": 0, "SigCgt": 0}


def test_a_forked_worker_ends_alone() -> None:
    process = start("""
        def work():
            child = os.fork()
            if child == 0:
                time.sleep(60)
            time.sleep(0.2)
            os.kill(child, signal.SIGUSR1)
            print("ready", flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)
            time.sleep(0.5)
        sys.exit(exits.guarded(work))
    """)
    assert end(process) == (0, "138\n")


def test_hand_over_and_back(tmp_path: Path) -> None:
    """Within a training loop a handler remembers; before and after it a signal ends the process."""
    process = start("""
        seen = []
        def work():
            back = signals.take_over(lambda number, frame: seen.append(number), exits.SAVE_SIGNALS)
            for number in exits.SAVE_SIGNALS:
                os.kill(os.getpid(), number)
            time.sleep(0.3)
            assert seen == list(exits.SAVE_SIGNALS), seen
            back()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            blocked()
        sys.exit(exits.guarded(work))
    """)
    assert end(process, signal.SIGUSR1) == (85, NOTHING)


def test_two_signals_leave_one_line() -> None:
    process = start("sys.exit(exits.guarded(lambda: exits.guarded(blocked)))")
    code, errors = end(process, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1)
    assert (code, errors) == (85, NOTHING)


@pytest.mark.parametrize(("number", "code"), [("SIGUSR1", 85), ("SIGTERM", 1)])
def test_a_rank_that_lost_another_after_a_signal(number: str, code: int) -> None:
    """SIGUSR1: the other was told to stop too. SIGTERM: the other has failed, and its end is the run's."""
    process = start(f"""
        exits.PEER_GRACE_SECONDS = 0
        def work():
            signals.take_over(lambda number, frame: None, exits.SAVE_SIGNALS)
            print("ready", flush=True)
            os.kill(os.getpid(), signal.{number})
            raise RuntimeError("Connection closed by peer")
        sys.exit(exits.guarded(work))
    """)
    assert end(process)[0] == code


def test_a_program_keeps_its_handlers() -> None:
    """Nothing is replaced by importing, or after a command that a program has run."""
    watched = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    mine = lambda *args: None  # noqa: E731
    before = {number: signal.signal(number, mine) for number in watched}
    try:
        handlers: list = []
        assert exits.guarded(lambda: handlers.extend(signal.getsignal(n) for n in exits.STOP_SIGNALS)) == 0
        assert mine not in handlers

        def mistaken() -> None:
            raise UserError("no")

        assert exits.guarded(mistaken) == 2
        assert [signal.getsignal(number) for number in watched] == [mine] * 3
        descriptor = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(descriptor)
        assert descriptor == -1
        back = signals.take_over(lambda number, frame: None, watched)
        assert signal.getsignal(signal.SIGUSR1) is not mine
        back()
        back()
        assert [signal.getsignal(number) for number in watched] == [mine] * 3
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_while_python_shuts_down_changes_nothing() -> None:
    """The work is done; torch and NCCL take seconds to go."""
    process = start("""
        class Slow:
            def __del__(self):
                print("ready", flush=True)
                time.sleep(1)
        import atexit
        slow = Slow()
        atexit.register(lambda: slow)
        sys.exit(exits.guarded(lambda: 0))
    """)
    assert end(process, signal.SIGUSR1, signal.SIGTERM) == (0, "")


def test_no_descriptor_is_left_open() -> None:
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        assert exits.guarded(lambda: 0) == 0
    time.sleep(0.2)
    assert len(os.listdir("/proc/self/fd")) <= count + 1


def test_in_another_thread_nothing_happens() -> None:
    process = start("""
        import threading, json
        codes = []
        thread = threading.Thread(target=lambda: codes.append(exits.guarded(lambda: 7)))
        thread.start(); thread.join()
        signals.take_over(print, exits.SAVE_SIGNALS)()
        print("ready")
        print(json.dumps([codes, signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL]), file=sys.stderr)
    """)
    assert json.loads(end(process)[1]) == [[7], True]
