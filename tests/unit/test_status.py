"""`nemo-tvkd status`: what it prints, with stand-ins for Slurm's commands (a real Slurm is tested in tests/slurm)."""

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import SFT_ROWS, TVKD_ROWS, chain, stage, submission, trained, write

from nemo_tvkd.cluster import queue
from nemo_tvkd.cluster.queue import Job, SlurmUnavailable, job_states
from nemo_tvkd.commands.status import main
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime.outputs import progress_file

SCONTROL_ENDED = (
    "JobId={job} {array}JobName=x UserId=me(1000) JobState={state} Reason={reason} Dependency=(null) Requeue=1 "
    "Restarts=0 BatchFlag=1 Reboot=0 ExitCode={code} RunTime=00:01:00 NodeList=node1 StdOut=/x y/z.log\n"
)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put stand-ins on PATH that answer what a test says: command -> (output, exit code)."""
    folder = tmp_path / "stand-ins"
    folder.mkdir()

    def install(**answers: tuple[str, int]) -> Path:
        for name, (text, code) in answers.items():
            (folder / f"{name}.answer").write_text(text)
            script = folder / name
            out = 1 if code == 0 else 2
            script.write_text(
                f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n'
                f'if [[ {name} == scontrol ]]; then grep -E "(JobId|ArrayJobId)=${{@: -1}} " {folder}/{name}.answer '
                f"|| {{ echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1; }}\n"
                f"else cat {folder}/{name}.answer >&{out}; exit {code}; fi\n"
            )
            script.chmod(0o755)
        return folder / "calls"

    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    # Nothing of a Slurm on this machine is asked.
    install(squeue=("", 0), scontrol=("", 0), sacct=("Slurm accounting storage is disabled", 1))
    return install


def status(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, dict[str, str]], str]:
    """The table, by stage and column, and all that was printed."""
    capsys.readouterr()
    assert main(str(run_dir)) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("stage"))
    columns = {match[0]: match.start() for match in re.finditer(r"(?<!\S)(time left|\S+)", lines[at])}
    edges = [*columns.values(), None]
    found = {}
    for line in lines[at + 1 :]:
        cells = [line[start:end].strip() for start, end in itertools.pairwise(edges)]
        found[cells[0].split(" ")[0]] = dict(zip(columns, cells, strict=True))
    return found, text


def progress(output: Path, phase: str, done: int, total: int, rate: float) -> None:
    """What a training job writes of itself."""
    output.mkdir(parents=True, exist_ok=True)
    values = {"phase": phase, "done": done, "total": total, "unit": "steps", "rate": rate, "updated": 1.0}
    progress_file("train", output).write_text(json.dumps(values))


def test_a_chain_in_the_queue(tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = chain(tmp_path / "run")
    lines = [
        "13_2|RUNNING|node[1-2]|None",
        "14_2|PENDING||Dependency",
        "15_2|PENDING||Priority",
        "99|RUNNING|node9|None",
    ]
    slurm(squeue=("\n".join(lines) + "\n", 0))
    progress(run_dir / "train" / "2", "training", 20, 100, 80 / 605)
    progress(run_dir / "train" / "1", "training", 5, 77, 0.1)
    found, text = status(run_dir, capsys)
    assert text.startswith("tvkd_tiny on example_bare, submitted 2026-11-21T12:00:00+00:00\n")
    assert "Slurm does not answer" not in text
    running = found["train-2"]
    assert (running["job"], running["state"], running["nodes"]) == ("13_2", "RUNNING", "node[1-2]")
    assert (running["step"], running["loss"], running["accuracy"]) == ("20/100", "0.7733", "0.6250")
    assert (running["time left"], running["restarts"], running["failures"]) == ("00:10:05", "3", "1")
    assert (found["export-2"]["state"], found["export-2"]["nodes"]) == ("PENDING (Dependency)", "")
    assert found["teacher_sft"]["state"] == "done"
    assert found["teacher_dpo"]["state"] == "replaced"
    assert (found["train-1"]["step"], found["train-1"]["time left"]) == ("100/100", "")
    assert (found["student_sft"]["step"], found["student_sft"]["loss"]) == ("150/150", "0.7165")
    assert found["score"]["step"] == "100 %"
    assert "node9" not in text
    assert len(found) == 16


def test_what_has_ended_is_asked_of_scontrol_then_of_accounting(
    tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("kept", "crashed", "killed", "timed", "lost", "array")
    stages = [stage(name, "train", job_id=20 + i) for i, name in enumerate(names[:-1])]
    stages.append(stage("array", "train", job_id=30, tasks=3, sweep=[[f"trainer.seed={i}"] for i in range(3)]))
    run_dir = submission(tmp_path / "run", stages)
    trained(run_dir / "kept", SFT_ROWS, "sft", 150)
    known = [(20, "COMPLETED", "0:0"), (21, "FAILED", "3:0"), (22, "CANCELLED", "0:15")]
    text = "".join(SCONTROL_ENDED.format(job=j, array="", state=s, reason="None", code=c) for j, s, c in known)
    text += SCONTROL_ENDED.format(
        job=31, array="ArrayJobId=30 ArrayTaskId=0 ", state="FAILED", reason="NonZeroExitCode", code="0:9"
    )
    text += SCONTROL_ENDED.format(
        job=30, array="ArrayJobId=30 ArrayTaskId=1-2%1 ", state="PENDING", reason="JobArrayTaskLimit", code="0:0"
    )
    calls = slurm(scontrol=(text, 0), sacct=("23|TIMEOUT|0:0\n23.batch|CANCELLED|0:15\n20|FAILED|9:0\n", 0))
    found, _ = status(run_dir, capsys)
    states = {name: row["state"] for name, row in found.items()}
    assert states == {
        "kept": "COMPLETED",
        "crashed": "FAILED (exit code 3)",
        "killed": "CANCELLED",
        "timed": "TIMEOUT",
        "lost": "not done (Slurm no longer knows the job)",
        "array-0": "FAILED (exit code 137)",
        "array-1": "PENDING (JobArrayTaskLimit)",
        "array-2": "PENDING (JobArrayTaskLimit)",
    }
    asked = calls.read_text().splitlines()
    assert asked[0] == "squeue --me -h -r -o %i|%T|%N|%r"
    assert asked[1:7] == [f"scontrol show job -o {job}" for job in (20, 21, 22, 23, 24, 30)]
    assert asked[7].startswith("sacct -n -P")
    assert "-j 23,24,30 " in asked[7]  # an array's forgotten tasks may be known there


def test_a_job_that_completed_without_output_is_no_success(
    tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = submission(tmp_path / "run", [stage("export", "export-hf", job_id=5)])
    slurm(scontrol=(SCONTROL_ENDED.format(job=5, array="", state="COMPLETED", reason="None", code="0:0"), 0))
    assert status(run_dir, capsys)[0]["export"]["state"] == "COMPLETED (but its output is missing)"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)\nmore", 1, "Unable to contact"),
        (None, 0, "squeue is not installed here"),
    ],
)
def test_without_slurm_the_files_tell(
    tmp_path: Path,
    slurm: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    code: int,
    said: str,
) -> None:
    if text is None:
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    else:
        slurm(squeue=(text, code))
    run_dir = chain(tmp_path / "run")
    (run_dir / "jobs" / "export-2.ends").write_text("2026-11-21T12:00:00Z job 14 restart 0 code 2 ended\n")
    found, printed = status(run_dir, capsys)
    notes = [line for line in printed.splitlines() if "Slurm does not answer" in line]
    assert len(notes) == 1
    assert said in notes[0]
    states = {name: row["state"] for name, row in found.items()}
    assert (states["train-0"], states["train-2"]) == ("done", "started, not done")
    assert (states["export-2"], states["evaluate-2"]) == ("FAILED (exit code 2)", "submitted")


def test_a_controller_that_does_not_answer_is_given_up(
    tmp_path: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "SECONDS", 0.3)
    (tmp_path / "stand-ins" / "squeue").write_text("#!/bin/bash\nexec sleep 60\n")
    with pytest.raises(SlurmUnavailable, match=r"did not answer within 0\.3 s"):
        job_states([1])


def test_no_job_asks_nobody(tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    calls = slurm()
    run_dir = submission(tmp_path / "run", [stage("a", "train"), stage("b", "score", state="unneeded")])
    found, _ = status(run_dir, capsys)
    assert (found["a"]["state"], found["b"]["state"]) == ("not submitted", "not needed")
    assert not calls.exists()


def test_scoring_shows_its_share(tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = submission(tmp_path / "run", [stage("score", "score", job_id=12)])
    slurm(squeue=("12|RUNNING|node1|None\n", 0))
    file = progress_file("score", run_dir / "score")
    file.write_text(json.dumps({"phase": "scoring", "done": 42, "total": 100, "unit": "pairs", "rate": 5.8}))
    row = status(run_dir, capsys)[0]["score"]
    assert (row["step"], row["time left"]) == ("42 %", "00:00:10")


def test_a_phase_beside_training_is_shown_and_a_damaged_file_is_none(
    tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [stage(name, "train", job_id=3 + i, max_steps=30) for i, name in enumerate(("saving", "damaged"))]
    run_dir = submission(tmp_path / "run", stages)
    progress(run_dir / "saving", "saving", 3, 30, 27 / 90_003)
    (run_dir / "damaged").mkdir()
    (run_dir / "damaged" / "progress.json").write_text('{"phase": "trai')
    slurm(squeue=("3|RUNNING|node1|None\n4|RUNNING|node2|None\n", 0))
    found, _ = status(run_dir, capsys)
    assert (found["saving"]["step"], found["saving"]["time left"]) == ("3/30 (saving)", "25:00:03")
    assert (found["damaged"]["step"], found["damaged"]["time left"]) == ("", "")


def test_steps_without_a_log(tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [stage("known", "train", job_id=3, max_steps=100), stage("unknown", "train", job_id=4)]
    run_dir = submission(tmp_path / "run", stages)
    for name in ("known", "unknown"):
        trained(run_dir / name, TVKD_ROWS + '{"step": 110, "lo', "tvkd", 100, finished=False)
    found, _ = status(run_dir, capsys)
    assert (found["known"]["step"], found["unknown"]["step"]) == ("100/100", "100")
    assert found["known"]["accuracy"] == "0.7500"  # of the last training row, not of the validation behind it


def test_a_long_metrics_file_is_read_from_its_end(
    tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = submission(tmp_path / "run", [stage("train", "train", job_id=3)])
    lines = "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, 20001))
    trained(run_dir / "train", lines, "sft", 30000, finished=False)
    row = status(run_dir, capsys)[0]["train"]
    assert (row["step"], row["loss"]) == ("20000", "0.0001")


def test_a_terminal_shows_colours_and_brackets_as_they_are(
    tmp_path: Path, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = submission(tmp_path / "run", [stage("[red]x", "train", job_id=3)], recipe="[bold]r")
    slurm(squeue=("3|RUNNING|node[1-2]|None\n", 0))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(str(run_dir)) == 0
    assert "\x1b[36mRUNNING" in out.getvalue()
    plain = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())
    assert all(word in plain for word in ("[red]x", "[bold]r", "node[1-2]"))


@pytest.mark.parametrize("content", [None, "{}"])
def test_no_submission(tmp_path: Path, content: str | None) -> None:
    trained(tmp_path, SFT_ROWS, "sft", 150)  # one training run is none
    if content is not None:
        (tmp_path / "submission.json").write_text(content)
    with pytest.raises(UserError, match=r"submission\.json"):
        main(str(tmp_path))


@pytest.mark.parametrize(
    ("command", "mark"),
    [
        ("train", "finished.json"),
        ("score", "manifest.json"),
        ("export-hf", "config.json"),
        ("evaluate", "preferences.json"),
        ("benchmark", "results.json"),
    ],
)
def test_what_makes_a_stage_done(
    tmp_path: Path, slurm: Any, capsys: pytest.CaptureFixture[str], command: str, mark: str
) -> None:
    slurm(squeue=("", 1))
    run_dir = submission(tmp_path / "run", [stage("it", command, job_id=3)])
    assert status(run_dir, capsys)[0]["it"]["state"] == "submitted"
    write(run_dir / "it" / "other.json", {})
    assert status(run_dir, capsys)[0]["it"]["state"] == "started, not done"
    write(run_dir / "it" / mark, {"step": 3})
    assert status(run_dir, capsys)[0]["it"]["state"] == "done"


def test_tasks_as_slurm_writes_them(slurm: Any) -> None:
    lines = [
        "7_[0-2,5%2]|PENDING||Resources",
        "8_[1-5:2]|PENDING||Resources",
        "9_4|COMPLETING|n1|None",
        "10|RUNNING|n|a|b",
    ]
    slurm(squeue=("\n".join(lines), 0))
    found = job_states([7, 8, 9, 10])
    assert {key for key in found if key[0] < 9} == {(7, 0), (7, 1), (7, 2), (7, 5), (8, 1), (8, 3), (8, 5)}
    assert found[9, 4] == Job("COMPLETING", "", "n1")
    assert not found[9, 4].ended
    assert Job("OUT_OF_MEMORY").ended
