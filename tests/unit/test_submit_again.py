"""`nemo-tvkd submit` where jobs are queued already, inside another job, and on this machine; Slurm is a stand-in."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails
from submit_stand_ins import Mine, Slurm

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands import doctor

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture
def mine(tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Mine:
    monkeypatch.setattr(doctor, "check_recipe", lambda submission: [])
    made = Mine(tmp_path / "a folder")
    (made.run_dir / "jobs").mkdir(parents=True)
    return made


@pytest.mark.parametrize(
    ("file", "queued"), [("third", "555|RUNNING|node1|None"), ("third-2", "555_[1-3%2]|PENDING||None")]
)
def test_a_job_that_was_started_by_hand(mine: Mine, slurm: Slurm, fails: Fails, file: str, queued: str) -> None:
    (mine.run_dir / "jobs" / f"{file}.job").write_text("555\n")
    slurm.queue(queued, "999|RUNNING|node1|None")
    line = fails(*mine.words())
    assert f"jobs of {mine.run_dir} are still queued" in line
    assert "`scancel 555`" in line
    assert slurm.submitted == {}
    slurm.queue("999|RUNNING|node1|None")  # it has ended
    assert mine.submit() == 0


def test_a_job_by_hand_beside_those_of_the_submission(mine: Mine, slurm: Slurm, fails: Fails) -> None:
    assert mine.submit() == 0
    mine.finish("first", "second", "judge", "third")
    (mine.run_dir / "jobs" / "export.job").write_text("555\n")
    slurm.queue("555|RUNNING|node1|None", "104|PENDING||Dependency", "101|COMPLETED|node1|None")
    assert "`scancel 104 555`" in fails(*mine.words("--from", "third"))
    assert not list(mine.run_dir.glob("*.before-*"))


@pytest.mark.parametrize("content", [b"", b"\n", b"job 12\n", b"\xff\xfe\x00", b"-1\n", b"9" * 5000, "²".encode()])
def test_a_damaged_job_file_says_nothing(mine: Mine, slurm: Slurm, content: bytes) -> None:
    (mine.run_dir / "jobs" / "third.job").write_bytes(content)
    (mine.run_dir / "jobs" / "first.job").mkdir()
    assert mine.submit() == 0
    assert len(slurm.submitted) == 6


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1}', b"\xff\xfe", {"stages": 3}, {"version": 2}])
def test_a_damaged_submission_is_one_line(mine: Mine, slurm: Slurm, fails: Fails, content: Any) -> None:
    assert mine.submit() == 0
    file = mine.run_dir / "submission.json"
    if isinstance(content, dict):
        content = json.dumps(mine.record | content)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(file) in fails(*mine.words())
    assert len(slurm.submitted) == 6


@pytest.mark.parametrize("job", ["103", [103], {"id": 103}, 1.5])
def test_a_submission_whose_job_is_no_number(mine: Mine, slurm: Slurm, fails: Fails, job: Any) -> None:
    """Its job may be queued still, so it is not passed over."""
    assert mine.submit() == 0
    record = mine.record
    record["stages"][2]["job_id"] = job
    (mine.run_dir / "submission.json").write_text(json.dumps(record))
    line = fails(*mine.words())
    assert str(mine.run_dir / "submission.json") in line
    assert "job_id" in line


def test_sbatch_inside_another_job_does_not_take_over_its_options(
    mine: Mine, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an interactive job, say: SLURM_MEM_PER_NODE and others count as options of sbatch."""
    for name, value in {
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "3",
        "SLURM_MEM_PER_NODE": "1",
        "SLURM_CONF": "/c",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_RESERVATION", "mine")
    sbatch = slurm.place / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("\n", '\nenv >>"$0.environment"\n', 1))
    assert mine.submit() == 0
    lines = (slurm.place / "sbatch.environment").read_text().splitlines()
    assert {line for line in lines if line.startswith("SLURM")} == {"SLURM_CONF=/c"}
    assert {f"PATH={os.environ['PATH']}", "SBATCH_RESERVATION=mine"} <= set(lines)


def test_this_machine_has_no_queue(mine: Mine, slurm: Slurm, fails: Fails) -> None:
    words = [word if word != "cluster=home" else "cluster=local" for word in mine.words("cluster.node_type=4gpus")]
    for more in ([], ["--dry-run"], ["--from", "third"]):
        line = fails(*words, *more)
        assert "cluster=local" in line
        assert "--here STAGE" in line
    assert slurm.submitted == {}


@pytest.mark.parametrize("command", ["submit", "doctor"])
@pytest.mark.parametrize("what", ["nothing", "file"])
def test_a_folder_of_recipes_that_is_none(fails: Fails, tmp_path: Path, command: str, what: str) -> None:
    (tmp_path / "file").touch()
    line = fails(command, "recipe=mine", "cluster=home", "--config-dir", tmp_path / what)
    assert line.startswith(f"--config-dir {tmp_path / what} is not a folder")


def test_variables_of_the_jobs_reach_a_stage_run_here(mine: Mine, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, str]] = []
    monkeypatch.setattr("nemo_tvkd.commands.score.main", lambda config: found.append(dict(os.environ)) or 0)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    mine.cluster["environment"] = {"HF_HOME": "/models", "MINE": "of all"}
    words = mine.words("--here", "judge", "judge.cluster.environment={MINE:its own}")
    assert main([str(word) for word in words]) == 0
    assert [(env["HF_HOME"], env["MINE"]) for env in found] == [("/models", "its own")]
