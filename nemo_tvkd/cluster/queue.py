"""Asking Slurm how jobs stand: squeue, then scontrol for those that have just ended, then sacct where there is one."""

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SECONDS = 30
"""A controller that does not answer is given up after that long."""
Key = tuple[int, int | None]
"""Job id and the index of the array task (None: no array)."""
ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("DEADLINE", "BOOT_FAIL", "PREEMPTED", "REVOKED"),
)


class SlurmUnavailable(Exception):
    """Slurm's commands are missing or fail; the message is one line that says how."""


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job."""

    state: str
    """PENDING, RUNNING, COMPLETED, FAILED, ... as Slurm names them."""
    reason: str = ""
    """Why it is pending."""
    nodes: str = ""
    """Where it runs."""
    code: int | None = None
    """The exit code of one that ended."""

    @property
    def ended(self) -> bool:
        """Whether it is neither queued nor running any more."""
        return self.state in ENDED


def job_states(jobs: Sequence[int]) -> dict[Key, Job]:
    """The state of jobs and of all their array tasks; those that Slurm has forgotten are missing.

    Raises:
        SlurmUnavailable: squeue is missing or fails.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    found = {key: job for key, job in _squeue() if key[0] in wanted}
    _complete(found, wanted, _scontrol)
    _complete(found, wanted, _sacct)
    return found


def _complete(found: dict[Key, Job], wanted: set[int], ask: Callable[[set[int]], Iterator[tuple[Key, Job]]]) -> None:
    """Add what another command knows. An array is asked about again: some of its tasks may have ended."""
    missing = {job for job in wanted if (job, None) not in found}
    if missing:
        try:
            for key, job in ask(missing):
                if key[0] in missing:
                    found.setdefault(key, job)
        except SlurmUnavailable:  # there is no accounting, say
            return


def _run(*words: str) -> str:
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise SlurmUnavailable(f"{words[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{words[0]} did not answer within {SECONDS} s") from None
    except OSError as error:
        raise SlurmUnavailable(f"{words[0]}: {error}") from None
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise SlurmUnavailable(f"{words[0]} failed: {said}")
    return done.stdout


def _squeue() -> Iterator[tuple[Key, Job]]:
    """Everything of this user that is queued, one line for each array task (-r)."""
    for line in _run("squeue", "--me", "-h", "-r", "-o", "%i|%T|%N|%r").splitlines():
        job, _, rest = line.strip().partition("|")
        state, _, rest = rest.partition("|")
        nodes, _, reason = rest.partition("|")
        for key in _keys(job):
            yield key, Job(state, reason if state == "PENDING" else "", nodes)


def _scontrol(jobs: set[int]) -> Iterator[tuple[Key, Job]]:
    """What the controller still remembers (some minutes after the end). It fails for a job that it does not know."""
    for job in sorted(jobs):
        try:
            text = _run("scontrol", "show", "job", "-o", str(job))
        except SlurmUnavailable:
            continue
        for line in text.splitlines():
            fields = dict(re.findall(r"(?<!\S)(JobId|Array\w+Id|JobState|Reason|NodeList|ExitCode)=(\S+)", line))
            if "JobState" not in fields:
                continue
            state = fields["JobState"]
            array = f"{fields['ArrayJobId']}_{fields.get('ArrayTaskId', '')}" if "ArrayJobId" in fields else ""
            for key in _keys(array or fields.get("JobId", "")):
                yield (
                    key,
                    Job(
                        state,
                        fields.get("Reason", "") if state == "PENDING" else "",
                        fields.get("NodeList", "").replace("(null)", ""),
                        _code(fields.get("ExitCode", "")),
                    ),
                )


def _sacct(jobs: set[int]) -> Iterator[tuple[Key, Job]]:
    """What the site's accounting remembers; many sites and every private Slurm have none."""
    ids = ",".join(map(str, sorted(jobs)))
    for line in _run("sacct", "-n", "-P", "-X", "-j", ids, "-o", "JobID,State,ExitCode").splitlines():
        job, _, rest = line.strip().partition("|")
        state, _, code = rest.partition("|")
        for key in _keys(job):
            yield key, Job(state.split(" ")[0], code=_code(code))  # "CANCELLED by 1000"


def _code(text: str) -> int | None:
    """Of CODE:SIGNAL, as a shell has it."""
    match = re.match(r"(\d+):(\d+)$", text)
    return None if match is None else int(match[1]) or (128 + int(match[2]) if int(match[2]) else 0)


def _keys(job: str) -> list[Key]:
    """12, 12_3, or pending tasks together: 12_[0-3,7%2], 12_[0-8:4]. A job's steps (12.batch) are none."""
    match = re.match(r"(\d+)(?:_\[?([\d,:-]+)(?:%\d+)?\]?)?$", job)
    if match is None:
        return []
    if match[2] is None:
        return [(int(match[1]), None)]
    keys: list[Key] = []
    for part in match[2].split(","):
        span = re.match(r"(\d+)(?:-(\d+)(?::(\d+))?)?$", part)
        if span is not None:
            last = int(span[2] or span[1])
            keys += [(int(match[1]), index) for index in range(int(span[1]), last + 1, int(span[3] or 1))]
    return keys
