"""A tiny TVKD recipe on two virtual nodes, from submit to an evaluated Hugging Face checkpoint, through what happens to
jobs on a cluster: a warning before the time limit, preemption, a node that dies, mistakes, arrays.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chain import Chain, rows, train_uninterrupted, write_inputs
from rank_pool import Layout, RankPool
from slurm_cluster import SlurmCluster

from nemo_tvkd.cluster.recipe import load_recipe

pytestmark = pytest.mark.timeout(1800)  # a minute and a half of NeMo's imports alone; more on a busy machine

LAYOUTS = {"student_sft": Layout(dp=2), "teacher_dpo": Layout(tp=2), "train": Layout(dp=2)}
"""Of the stages that are disturbed, as two ranks make it of the recipe's."""
SLOW = (
    # Steps enough to be disturbed in the middle; a checkpoint of student_sft comes from the signal alone.
    *("student_sft.trainer.max_steps=16", "student_sft.trainer.save_interval=0"),
    *("teacher_dpo.trainer.max_steps=24", "teacher_dpo.trainer.save_interval=4"),
    *("train.trainer.max_steps=12", "train.trainer.save_interval=2"),
    # Nodes of their own for those that lose them.
    'teacher_dpo.cluster.sbatch_lines=["--nodelist=n3,n4"]',
    'train.cluster.sbatch_lines=["--exclude=n[1-4,8]"]',
)
SEEDS = ("train.trainer.seed=1,2", "train.cluster.nodes=1")


@dataclass
class Done:
    """What the fixture has done."""

    chain: Chain
    said: str
    seeds: Chain
    mistake: Chain
    references: dict[str, Path] = field(default_factory=dict)


@pytest.fixture(scope="module")
def done(slurm: SlurmCluster, pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("chain")
    write_inputs(folder)
    chain = Chain(slurm, folder, folder / "run", *SLOW)
    finished = [f"{name}={chain.run_dir}/{name}" for name in ("student_sft", "teacher_dpo")]
    seeds = Chain(slurm, folder, folder / "seeds", *finished, f"score={chain.run_dir}/score", *SEEDS)
    mistake = Chain(slurm, folder, folder / "mistake", *finished)
    found = Done(chain, chain.submit().stdout, seeds, mistake)
    try:
        slurm.signal(chain.at_step("student_sft", 1), "USR1")
        preempt(chain, chain.at_step("teacher_dpo", 5))
        dead = slurm.job(chain.at_step("train", 3))["BatchHost"]
        slurm.kill_node(dead)
        train_references(found, pool, folder)  # while Slurm finds out, and starts the stage again with a spare node
        submit_mistake(found, folder)
        submit_seeds(found)
        for name in ("evaluate", "benchmark"):
            slurm.wait_for(chain.jobs()[name], "COMPLETED", 400)
        slurm.start_node(dead)
        yield found
    finally:
        subprocess.run(["scancel", "--me"], env=slurm.environment, check=False, timeout=30)


def preempt(chain: Chain, job: int) -> None:
    """A job of a higher partition takes the stage's nodes for a second."""
    script = chain.run_dir / "important.sh"
    script.write_text("#!/bin/sh\nexec sleep 1\n")
    where = ("--partition=hi", "--nodelist=n3,n4", "--nodes=2", "--exclusive", "--output=/dev/null")
    rival = chain.slurm.submit(script, *where)
    chain.slurm.wait_for(rival, "COMPLETED", 60)
    assert chain.slurm.job(job)["Restarts"] == "1", chain.slurm.describe(job)


def train_references(found: Done, pool: RankPool, folder: Path) -> None:
    """The disturbed stages' own command lines, run to the end on ranks that no Slurm started."""
    stages = {stage.name: stage for stage in load_recipe(found.chain.arguments).stages}
    for name, layout in LAYOUTS.items():
        output = folder / "reference" / name
        words = [*stages[name].overrides, f"trainer.output_dir={output}"]
        pool.run(layout, train_uninterrupted, words, f"{found.chain.run_dir}/imported")
        found.references[name] = output


def submit_mistake(found: Done, folder: Path) -> None:
    """Data that is there when the chain is submitted and gone when its first job starts."""
    data = folder / "lost.jsonl"
    data.write_text((folder / "train.jsonl").read_text())
    slurm = found.mistake.slurm
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")  # jobs wait, running ones go on
    try:
        found.mistake.submit(f"recipe.datasets.dpo-mix.train={data}")
        data.unlink()
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")


def submit_seeds(found: Done) -> None:
    """Two seeds; what comes after training would add nothing to what the other chain shows."""
    found.seeds.submit()
    for name in ("export", "evaluate", "benchmark"):
        dependency = found.seeds.slurm.job(found.seeds.jobs()[name])["Dependency"]
        assert dependency.startswith("aftercorr:"), dependency
        found.seeds.slurm.cancel(found.seeds.jobs()[name])


def test_submit_prints_and_records_the_chain(done: Done) -> None:
    stages = done.chain.stages()
    assert list(stages) == [
        *("student_sft", "teacher_sft", "teacher_dpo", "score", "train", "export", "evaluate", "benchmark")
    ]
    for name, job in done.chain.jobs().items():
        assert f"{job}" in done.said
        assert (done.chain.run_dir / "jobs" / f"{name}.sbatch").exists()
    assert {stage["state"] for stage in stages.values()} == {"submitted"}


def test_usr1_saves_requeues_and_resumes_with_the_same_metrics(done: Done) -> None:
    assert done.chain.ends("student_sft") == ["restart 0 code 85 requeued", "restart 1 code 0 ended"]
    assert "resuming" in done.chain.log("student_sft")
    same_metrics(done, "student_sft", 16)


def test_a_preempted_stage_resumes_with_the_same_metrics(done: Done) -> None:
    job = done.chain.slurm.job(done.chain.jobs()["teacher_dpo"])
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert not any("requeued" in line for line in done.chain.ends("teacher_dpo"))
    assert "resuming" in done.chain.log("teacher_dpo")
    same_metrics(done, "teacher_dpo", 24)


def test_a_stage_whose_node_died_resumes_with_the_same_metrics(done: Done) -> None:
    job = done.chain.slurm.job(done.chain.jobs()["train"])
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "resuming" in done.chain.log("train")
    same_metrics(done, "train", 12)


def same_metrics(done: Done, name: str, steps: int) -> None:
    found = rows(done.chain.run_dir / name)
    assert [row["step"] for row in found if "loss" in row] == list(range(1, steps + 1))
    assert found == rows(done.references[name])


def test_the_chain_ends_with_an_evaluated_hf_checkpoint(done: Done) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_dir = done.chain.run_dir
    model = AutoModelForCausalLM.from_pretrained(run_dir / "export")
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "export")
    assert tokenizer.chat_template
    assert tokenizer.eos_token == "</s>"
    asked = [{"role": "user", "content": "Is the town old?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert answer.size(1) > prompt["input_ids"].size(1)
    assert json.loads((run_dir / "evaluate" / "preferences.json").read_text())["pairs"] == 4
    assert "tiny_choice" in (run_dir / "benchmark" / "results.json").read_text()


def test_status_and_report_say_so(done: Done) -> None:
    status = done.chain.command("status", str(done.chain.run_dir))
    assert status.returncode == 0, status.stderr
    lines = {line.split()[0]: line for line in status.stdout.splitlines() if line.strip()}
    for name in done.chain.stages():
        assert "COMPLETED" in lines[name], status.stdout
    assert "12/12" in lines["train"]
    report = done.chain.command("report", str(done.chain.run_dir))
    assert report.returncode == 0, report.stderr


def test_a_mistake_is_not_repeated_and_stops_what_depends_on_it(done: Done) -> None:
    jobs, slurm = done.mistake.jobs(), done.mistake.slurm
    assert list(jobs) == ["score", "train", "export", "evaluate", "benchmark"]  # the others are replaced
    slurm.wait_for(jobs["score"], "FAILED", 120)
    assert (slurm.job(jobs["score"])["ExitCode"], slurm.job(jobs["score"])["Restarts"]) == ("2:0", "0")
    assert done.mistake.ends("score") == ["restart 0 code 2 ended"]
    assert "lost.jsonl" in done.mistake.log("score")
    for name in ("train", "export", "evaluate", "benchmark"):
        slurm.wait_for(jobs[name], "CANCELLED", 60)


def test_seeds_are_the_tasks_of_an_array(done: Done) -> None:
    array, slurm = done.seeds.jobs()["train"], done.seeds.slurm
    for task in range(2):
        slurm.wait_for(f"{array}_{task}", "COMPLETED", 300)
    first, second = (rows(done.seeds.run_dir / "train" / str(task)) for task in range(2))
    assert [row["step"] for row in first] == [row["step"] for row in second]
    assert first != second


def test_what_is_done_is_not_submitted_again(done: Done) -> None:
    """The last test: it sets outputs aside."""
    again = done.chain.submit()
    assert done.chain.jobs() == {}, again.stdout
    assert {stage["state"] for stage in done.chain.stages().values()} <= {"done", "unneeded"}
    slurm = done.chain.slurm
    slurm.run("scontrol", "update", "PartitionName=main", "State=DOWN")  # submitted, but nothing starts
    try:
        done.chain.submit("--from", "train")
        assert list(done.chain.jobs()) == ["train", "export", "evaluate", "benchmark"]
        for job in done.chain.jobs().values():
            slurm.cancel(job)
    finally:
        slurm.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert not (done.chain.run_dir / "train").exists()
    assert len(list(done.chain.run_dir.glob("train.before-*/finished.json"))) == 1
