"""`nemo-tvkd submit` against stand-ins for sbatch, squeue, scontrol and scancel, which write down what they are told.

What a real Slurm makes of the scripts is tested in tests/slurm.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails, write_rows
from submit_stand_ins import Mine, Slurm

from nemo_tvkd import __main__ as command_line
from nemo_tvkd.commands import doctor
from nemo_tvkd.commands.doctor.check import Check

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

ORDER = ["first", "second", "judge", "third", "export", "verdict"]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What `doctor` finds here; nothing unless a test says so."""
    found: list[Check] = []
    monkeypatch.setattr(doctor, "check_recipe", lambda submission: found)
    return found


@pytest.fixture
def mine(tmp_path: Path, slurm: Slurm, checks: list[Check]) -> Mine:
    return Mine(tmp_path / "a folder")


def dependency(options: list[str]) -> set[str]:
    """The words of --dependency, each KIND:JOB."""
    (found,) = [option.removeprefix("--dependency=") for option in options if option.startswith("--dependency=")]
    return set(found.split(","))


def test_a_chain(mine: Mine, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert mine.submit() == 0
    assert set(slurm.submitted) == set(ORDER)
    jobs = {stage: job for stage, (job, _) in slurm.submitted.items()}
    reads = {"judge": ["first"], "third": ["first", "second", "judge"], "export": ["third"], "verdict": ["export"]}
    for stage, (_, options) in slurm.submitted.items():
        assert "--parsable" in options
        if stage in reads:
            assert dependency(options) == {f"afterok:{jobs[other]}" for other in reads[stage]}
            assert "--kill-on-invalid-dep=yes" in options
            assert all(jobs[other] < jobs[stage] for other in reads[stage])
        else:
            assert not any("dependency" in option for option in options), stage
    for stage in ORDER:
        script = mine.run_dir / "jobs" / f"{stage}.sbatch"
        assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert (mine.run_dir / "logs").is_dir()
    assert (mine.run_dir / "recipe.yaml").is_file()
    said = capsys.readouterr().out
    for stage, job in jobs.items():
        assert any(stage in line and str(job) in line for line in said.splitlines()), said


def test_what_is_written_down(mine: Mine, slurm: Slurm, tmp_path: Path) -> None:
    mine.finish("second")
    assert mine.submit(f"first={tmp_path}", "third.trainer.seed=1,2", "third.cluster.nodes=4") == 0
    record = mine.record
    assert (record["version"], record["recipe"], record["cluster"]) == (1, "mine", "home")
    assert record["run_dir"] == str(mine.run_dir)
    assert record["submitted"][:2] == "20"
    stages = {stage["name"]: stage for stage in record["stages"]}
    states = {name: stage["state"] for name, stage in stages.items()}
    assert states == dict.fromkeys(ORDER, "submitted") | {"first": "replaced", "second": "done"}
    for name, stage in stages.items():
        job = slurm.submitted.get(name, (None,))[0]
        assert stage["job_id"] == job, name
        assert stage["output"] == (str(tmp_path) if name == "first" else name)
        assert stage["tasks"] == (2 if name in ("third", "export", "verdict") else None)
    assert stages["third"]["nodes"] == 4
    assert stages["third"]["after"] == ["second", "first", "judge"]
    assert stages["third"]["script"] == "jobs/third.sbatch"
    assert [[word for word in words if "seed" in word] for words in stages["third"]["sweep"]] == [
        ["trainer.seed=1"],
        ["trainer.seed=2"],
    ]


def test_tasks_wait_for_the_same_task_and_for_all_of_a_single_job(mine: Mine, slurm: Slurm) -> None:
    assert mine.submit("first.optim.lr=1e-5,2e-5") == 0
    jobs = {stage: job for stage, (job, _) in slurm.submitted.items()}
    assert dependency(slurm.submitted["judge"][1]) == {f"aftercorr:{jobs['first']}"}
    third = {f"aftercorr:{jobs['first']}", f"aftercorr:{jobs['judge']}", f"afterok:{jobs['second']}"}
    assert dependency(slurm.submitted["third"][1]) == third


def test_nothing_stays_when_one_is_refused(mine: Mine, slurm: Slurm, fails: Fails) -> None:
    (slurm.place / "sbatch.fail").write_text("3")
    line = fails(*mine.words())
    assert "sbatch" in line
    assert "invalid account" in line
    assert [set(words.split()) for words in slurm.lines("scancel")] == [{"101", "102"}]
    assert len(slurm.submitted) == 3
    assert not (mine.run_dir / "submission.json").exists()


def test_a_script_that_cannot_be_written_submits_nothing(mine: Mine, slurm: Slurm, fails: Fails) -> None:
    mine.cluster["environment"] = {"not a name": "1"}
    assert "not a name" in fails(*mine.words())
    assert slurm.submitted == {}


def test_no_sbatch(mine: Mine, slurm: Slurm, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    (slurm.place / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(slurm.place))  # without a real one, which may be installed here
    line = fails(*mine.words())
    assert "sbatch is not installed" in line
    assert "--dry-run" in line


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED"])
def test_a_chain_in_the_queue_is_not_submitted_again(mine: Mine, slurm: Slurm, fails: Fails, state: str) -> None:
    assert mine.submit() == 0
    before = mine.record
    slurm.queue(f"103|{state}|node1|None", "999|RUNNING|node1|None")
    line = fails(*mine.words())
    assert str(mine.run_dir) in line
    assert "scancel 103" in line
    assert len(slurm.submitted) == 6
    assert len(slurm.lines("sbatch")) == 6
    assert mine.record == before


def test_a_chain_that_has_ended_goes_on_with_what_is_left(mine: Mine, slurm: Slurm) -> None:
    assert mine.submit() == 0
    slurm.queue("999|RUNNING|node1|None", "102|CANCELLED|node1|None")
    mine.finish("first", "second", "judge")
    assert mine.submit() == 0
    assert len(slurm.lines("sbatch")) == 6 + 3
    stages = {stage["name"]: (stage["state"], stage["job_id"]) for stage in mine.record["stages"]}
    assert stages["first"] == ("done", None)
    assert stages["third"] == ("submitted", 107)


def test_a_dry_run_writes_and_submits_nothing(mine: Mine, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    mine.finish("first")
    before = mine.files()
    assert mine.submit("--dry-run") == 0
    assert mine.files() == before
    assert slurm.submitted == {}
    printed = capsys.readouterr().out
    for stage in set(ORDER) - {"first"}:
        assert f"= {stage} =" in printed
    assert printed.count("#!/bin/bash") == 5


def test_a_dry_run_of_a_rehearsal_makes_no_models(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    assert mine.submit("--dry-run", "recipe_scale=tiny") == 0
    assert not mine.run_dir.exists()
    assert "trainer.max_steps=4" in capsys.readouterr().out


def test_a_dry_run_of_a_second_start_moves_nothing(mine: Mine, capsys: pytest.CaptureFixture[str]) -> None:
    mine.finish(*ORDER)
    before = mine.files()
    assert mine.submit("--dry-run", "--from", "third") == 0
    assert mine.files() == before
    assert capsys.readouterr().out.count("#!/bin/bash") == 3


def test_from_a_stage_on_everything_is_done_again_and_nothing_is_lost(mine: Mine, slurm: Slurm) -> None:
    mine.finish(*ORDER)
    (mine.run_dir / "third" / "weights").write_text("precious")
    assert mine.submit("--from", "third") == 0
    assert set(slurm.submitted) == {"third", "export", "verdict"}
    assert not any("dependency" in option for option in slurm.submitted["third"][1])
    for stage in ("third", "export", "verdict"):
        (aside,) = mine.run_dir.glob(f"{stage}.before-*")
        assert list(aside.iterdir())
        assert not (mine.run_dir / stage).exists()
    assert next(mine.run_dir.glob("third.before-*/weights")).read_text() == "precious"
    assert (mine.run_dir / "second").is_dir()


def test_from_an_early_stage_runs_also_what_later_ones_miss(mine: Mine, slurm: Slurm) -> None:
    """The student's start was deleted when the run was done; the training that is done again reads it."""
    mine.finish("first", "judge", "third", "export", "verdict")
    assert mine.submit("--from", "judge") == 0
    assert set(slurm.submitted) == {"judge", "second", "third", "export", "verdict"}
    jobs = {stage: job for stage, (job, _) in slurm.submitted.items()}
    assert f"afterok:{jobs['second']}" in dependency(slurm.submitted["third"][1])


def test_a_refused_start_puts_outputs_back(mine: Mine, slurm: Slurm, fails: Fails) -> None:
    mine.finish(*ORDER)
    (slurm.place / "sbatch.fail").write_text("2")
    fails(*mine.words("--from", "third"))
    assert {place.name for place in mine.run_dir.iterdir()} == {*ORDER, "jobs", "logs", "recipe.yaml"}


def test_a_start_that_doctor_refuses_moves_nothing(mine: Mine, checks: list[Check]) -> None:
    mine.finish(*ORDER)
    before = mine.files()
    checks.append(Check("third: layout", "FAIL", "TP3 does not divide", "take TP2"))
    assert mine.submit("--from", "third") == 2
    assert mine.files() == before


def test_what_doctor_fails_is_not_submitted(
    mine: Mine, slurm: Slurm, checks: list[Check], capsys: pytest.CaptureFixture[str]
) -> None:
    checks += [Check("first: data", "OK", "fine"), Check("third: layout", "FAIL", "TP3 does not divide", "take TP2")]
    assert mine.submit() == 2
    assert slurm.submitted == {}
    assert not mine.run_dir.exists()
    said = capsys.readouterr().err
    assert "third: layout" in said
    assert "take TP2" in said
    assert "first: data" not in said


def test_what_doctor_warns_of_is_submitted(mine: Mine, slurm: Slurm, checks: list[Check]) -> None:
    checks.append(Check("third: layout", "WARN", "slow"))
    assert mine.submit() == 0
    assert len(slurm.submitted) == 6


# --- one stage here ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations that commands were run with in this process; each answers 85."""
    configs: list[Any] = []
    run = command_line.run

    def recorded(command: str, *arguments: Any, **options: Any) -> Any:
        if command in ("submit", "doctor"):
            return run(command, *arguments, **options)
        configs.append((command, *arguments))
        return 85

    monkeypatch.setattr(command_line, "run", recorded)
    return configs


def test_one_stage_here_runs_its_command_and_returns_its_code(mine: Mine, slurm: Slurm, run_here: list[Any]) -> None:
    assert mine.submit("--here", "judge", "judge.data.max_length=77") == 85
    ((command, config),) = run_here
    assert command == "score"
    assert config.score.model == str(mine.run_dir / "first")
    assert config.score.output == str(mine.run_dir / "judge")
    assert config.data.max_length == 77
    assert slurm.submitted == {}


def test_a_done_stage_is_not_run_here(mine: Mine, run_here: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    mine.finish("judge")
    assert mine.submit("--here", "judge") == 0
    assert run_here == []
    assert str(mine.run_dir / "judge") in capsys.readouterr().out


def test_an_array_is_not_run_here(mine: Mine, run_here: list[Any], fails: Fails) -> None:
    line = fails(*mine.words("--here", "third", "third.trainer.seed=1,2"))
    assert "--here third" in line
    assert "2 jobs" in line
    assert run_here == []


# --- with all that doctor checks --------------------------------------------------------------------------------------


@pytest.fixture
def checked(tmp_path: Path, slurm: Slurm, mistral_file: str) -> Mine:
    """A rehearsal with a real tokenizer and rows, so that nothing is to be complained of."""
    made = Mine(tmp_path / "a folder")
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(40)]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    made.recipe["datasets"] = {"small": {"train": str(pairs)}}
    for role, name in (("big", "mistral-7b"), ("little", "danube3-500m")):
        made.recipe["models"][role] |= {"tokenizer": mistral_file, "architecture": name}
    for stage, key, role in (
        *(("first", "student.path", "big"), ("judge", "score.model", "big"), ("second", "student.path", "little")),
        *(("third", "student.path", "little"), ("third", "teacher.path", "big"), ("export", "checkpoint", "little")),
        ("verdict", "checkpoint", "little"),
    ):
        made.recipe["stages"][stage].setdefault("models", {})[key] = role
    return made


def test_a_rehearsal_is_checked_and_submitted(checked: Mine, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the check looks through the jobs' eyes
    assert checked.submit("recipe_scale=tiny") == 0
    assert len(slurm.submitted) == 6
    assert (checked.run_dir / "tiny" / "big" / "model.safetensors").is_file()


MISTAKES = {
    "third.optim.lrr=1": ["stage third", "optim.lrr", "optim.lr?"],
    "first.parallel.tensor_model_parallel_size=3": ["first: layout", "3"],
    "second.trainer.global_batch_size=6": ["second: batch", "6"],
    "judge.data.train=/no/rows.jsonl": ["judge: data", "/no/rows.jsonl"],
}


def test_mistakes_of_all_stages_are_told_before_anything_is_queued(
    checked: Mine, slurm: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    assert checked.submit("recipe_scale=tiny", *MISTAKES) == 2
    assert slurm.submitted == {}
    failed = [line for line in capsys.readouterr().err.split("│ FAIL │") if line]
    for said in MISTAKES.values():
        assert any(all(part in line for part in said) for line in failed), (said, failed)
