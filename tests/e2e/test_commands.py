"""The command line with real processes: launch, kill, resume, signals, exit codes."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import reference as ref
from demo_model import make_demo_model
from forked_commands import Command, run_command
from training import save_hf

DEADLINE = 60


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, and pairs."""
    folder = tmp_path_factory.mktemp("commands")
    make_demo_model(folder, 64, hidden=32, layers=2, tie=True)
    return folder


def command(setup: Path, output: Path, steps: int, *more: str) -> list[str]:
    return [
        *("train", "algorithm=tvkd", f"student.path={setup}/model"),
        *(f"teacher.path={setup}/model", f"data.train={setup}/data/pairs_train.jsonl", "data.max_length=128"),
        *("parallel.tensor_model_parallel_size=2", "trainer.precision=fp32", f"trainer.max_steps={steps}"),
        *("trainer.global_batch_size=4", f"trainer.output_dir={output}", "trainer.save_interval=2", "optim.lr=1e-3"),
        *("optim.schedule=constant", "optim.warmup_ratio=0", *more),
    ]


def environment(setup: Path) -> dict[str, str]:
    return {**os.environ, "NEMO_TVKD_CACHE": str(setup / "imported"), "OMP_NUM_THREADS": "1"}


def run(setup: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    return run_command(arguments, environment(setup))


def rows(output: Path) -> list[dict]:
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def wait_for_step(process: subprocess.Popen | Command, output: Path, step: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            if any(row["step"] >= step for row in rows(output)):
                return
        except json.JSONDecodeError:
            pass  # a row that is being written
        time.sleep(0.05)
    raise AssertionError("the run made no progress")


def losses(output: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(output) if "loss" in row}


def test_a_killed_rank_ends_the_run_and_resume_goes_on(setup: Path, tmp_path: Path) -> None:
    steps = 400
    process = subprocess.Popen(  # as a shell starts it
        [sys.executable, "-m", "nemo_tvkd", *command(setup, tmp_path / "run", steps)],
        env=environment(setup),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(process, tmp_path / "run", 3)
    everything = psutil.Process(process.pid).children(recursive=True)
    victim = psutil.Process(process.pid).children()[-1]
    killed = time.monotonic()
    victim.kill()
    _, errors = process.communicate(timeout=DEADLINE)
    assert time.monotonic() - killed < DEADLINE
    assert process.returncode not in (0, 2, 85)
    assert f"(pid {victim.pid}) was killed by signal 9" in errors
    assert "Run the same command again" in errors
    assert not psutil.wait_procs(everything, timeout=10)[1], "no process is left behind"

    at = max(losses(tmp_path / "run"))
    again = run(setup, command(setup, tmp_path / "run", at + 4))
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stdout
    assert sorted(losses(tmp_path / "run")) == list(range(1, at + 5))
    whole = run(setup, command(setup, tmp_path / "whole", at + 4))
    assert whole.returncode == 0, whole.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole"), "a resumed run repeats what it lost, bit for bit"


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_saves_and_exits_85(setup: Path, tmp_path: Path, signum: int) -> None:
    process = Command(command(setup, tmp_path, 2000, "trainer.save_interval=0"), environment(setup))
    wait_for_step(process, tmp_path, 2)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 85, errors
    saved = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert len(saved) == 1
    assert saved[0] == f"step-{max(losses(tmp_path)):08d}"


def test_a_mistake_found_in_the_ranks_exits_2_with_one_line(setup: Path, tmp_path: Path) -> None:
    """A learning rate that blows the model up is found after the launch."""
    done = run(setup, command(setup, tmp_path, 30, "optim.lr=1e30", "optim.clip_grad=0"))
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert "not finite at step" in lines[0]
    assert "last good checkpoint is" in lines[0]


def test_the_pipeline_of_commands(setup: Path, tmp_path: Path) -> None:
    """train, export-hf, evaluate by the command line; the export loads with transformers; config.yaml repeats."""
    output = tmp_path / "run"
    done = run(setup, command(setup, output, 2, f"data.validation={setup}/data/pairs_heldout.jsonl"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a run that goes well says nothing on stderr"
    assert "step 2/2" in done.stdout
    assert "left" in done.stdout
    assert rows(output)[-1]["eval_loss"] > 0
    assert list((output / "tensorboard").iterdir())
    complete = run(setup, command(setup, output, 2, f"data.validation={setup}/data/pairs_heldout.jsonl"))
    assert complete.returncode == 0, complete.stderr
    assert "is complete: step 2 of 2" in complete.stdout
    same = run(setup, ["train", f"--from={output}", f"trainer.output_dir={tmp_path}/again"])
    assert same.returncode == 0, same.stderr
    assert losses(tmp_path / "again") == losses(output)
    exported = tmp_path / "hf"
    done = run(setup, ["export-hf", f"checkpoint={output}", f"output={exported}"])
    assert done.returncode == 0, done.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert tokenizer.chat_template
    asked = tokenizer("Who owns the lamp?", return_tensors="pt")
    assert model.generate(**asked, max_new_tokens=3, do_sample=False).size(1) > asked.input_ids.size(1)
    heldout = f"data.validation={setup}/data/pairs_heldout.jsonl"
    results = []
    for checkpoint, layout in ((exported, "tensor"), (output, "pipeline")):
        file = tmp_path / f"{layout}.json"
        done = run(
            setup,
            ["evaluate", f"checkpoint={checkpoint}", heldout, f"output={file}", "precision=fp32"]
            + [f"parallel.{layout}_model_parallel_size=2", "data.max_length=128"],
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(file.read_text()))
    assert results[0]["pairs"] == 8
    for name, value in results[0].items():
        if isinstance(value, float):
            assert value == pytest.approx(results[1][name], rel=1e-5, abs=1e-6), name


HH = Path(__file__).parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"


@pytest.mark.skipif(not HH.exists(), reason=f"the real preference pairs are not here: {HH}")
@pytest.mark.parametrize(("package", "file", "size"), [
    ("mistral_common", "data/tokenizer.model.v1", 32000),
    ("llama_models", "llama3/tokenizer.model", 128256),
])  # fmt: skip
def test_real_pairs_and_real_tokenizers(setup: Path, tmp_path: Path, package: str, file: str, size: int) -> None:
    """Three TVKD steps at TP2 on HH-RLHF with the tokenizers of Mistral and Llama 3 (and models of their size)."""
    from importlib.util import find_spec

    origin = find_spec(package)
    assert origin is not None
    assert origin.submodule_search_locations
    tokenizer = Path(next(iter(origin.submodule_search_locations))) / file
    family = ref.tiny_mistral if size == 32000 else ref.tiny_llama
    model = save_hf(family(1, vocab=size, hidden=32, layers=2, heads=4, kv_heads=2), tmp_path / "model")
    with gzip.open(HH) as stream:
        assert sum(1 for _ in stream) == 1200
    done = run(
        setup,
        command(setup, tmp_path / "run", 3, f"student.path={model}", f"teacher.path={model}")
        + [f"data.train={HH}", "data.max_length=512", "data.max_prompt_length=384", "data.on_bad_row=skip"]
        + [f"student.tokenizer={tokenizer}"],
    )
    assert done.returncode == 0, done.stderr
    assert "1196 pairs" in done.stdout
    assert "skipped: 4 bad rows" in done.stdout
    assert sorted(losses(tmp_path / "run")) == [1, 2, 3]
