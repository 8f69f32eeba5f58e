"""`nemo-tvkd doctor` as a command: the shipped recipes without their models, exit codes, caches, relative paths."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bad_input import World
from doctor_cases import Chain

from nemo_tvkd.__main__ import main
from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.cluster.render import render
from nemo_tvkd.commands import doctor

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")

RECIPES = (
    "tvkd-llama-8b-1b",
    "tvkd-llama-8b-3b",
    "tvkd-mistral-7b-danube-500m",
    "tvkd-mistral-7b-llama-1b",
    "drdo-llama-8b-1b",
)


@pytest.fixture
def chain(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the check looks through the jobs' eyes
    return Chain(tmp_path, world)


@pytest.mark.parametrize("cluster", ["example_pyxis", "example_apptainer"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_estimates_need_no_models_and_every_stage_fits(
    recipe: str, cluster: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(chain.place))  # whatever this machine has
    sets = ("sft.train", "dpo-mix.train", "dpo-mix.validation", "ultrafeedback.train", "ultrafeedback.validation")
    data = [f"recipe.datasets.{part}={chain.pairs}" for part in sets]
    elsewhere = "benchmark.benchmark.backend=vllm"  # lm-eval's catalogue has 14,000 files
    words = [f"recipe={recipe}", f"cluster={cluster}", f"run_dir={chain.place}/run", elsewhere, *data]
    started = time.monotonic()
    found = {check.name: check for check in doctor.check_recipe(load_recipe(words))}
    assert time.monotonic() - started < 20, "no network is waited for"
    stages = [name.removesuffix(": memory") for name in found if name.endswith(": memory")]
    assert len(stages) == 6
    card = {"example_pyxis": 80, "example_apptainer": 64}[cluster]
    for stage in stages:
        assert found[f"{stage}: memory"].level == "OK", found[f"{stage}: memory"]
        assert f"of {card} GiB" in found[f"{stage}: memory"].detail
        assert found[f"{stage}: layout"].level == "OK"
    missing = [check for name, check in found.items() if name.endswith("_sft: student.path")]
    assert len(missing) == 2
    for check in missing:
        assert check.level == "FAIL"
        assert "hf download" in check.advice


def words_of(chain: Chain, *more: object) -> list[str]:
    chain.write()
    return ["doctor", *chain.arguments, "--config-dir", str(chain.place), *map(str, more)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to say of this one."""
    monkeypatch.setattr("nemo_tvkd.commands.doctor.machine.machine_checks", lambda: [])


@pytest.mark.usefixtures("machine")
def test_the_exit_code_tells_whether_anything_fails(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(chain)) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert "first: memory" in said
    assert main(words_of(chain, "third.trainer.global_batch_size=6")) == 2
    assert "FAIL" in capsys.readouterr().out
    assert not chain.run_dir.exists(), "nothing is written"


@pytest.mark.usefixtures("machine")
def test_warnings_alone_fail_nothing(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words_of(chain, "first.cluster.gpu_tflops=1e-12")) == 0
    said = capsys.readouterr().out
    assert "WARN" in said
    assert "-> " in said, "advice"


def run(arguments: list[str], **environment: str) -> tuple[int, str, float]:
    """doctor in a process of its own, whose libraries have not read the environment yet; says what it imported."""
    code = (
        "import sys; from nemo_tvkd.__main__ import main\ncode = main(sys.argv[1:])\n"
        "print('imported', [m for m in ('nemo', 'megatron', 'lightning') if m in sys.modules])\nsys.exit(code)"
    )
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and "OFFLINE" not in name}
    started = time.monotonic()
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=own | environment, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr, time.monotonic() - started


@pytest.mark.parametrize("offline", [True, False])
def test_the_network_is_left_alone_and_nemo_is_not_imported(chain: Chain, offline: bool) -> None:
    """The hub is a socket here that nobody answers at: a client would wait, and would be seen. Jobs that have a network
    fetch a model themselves."""
    chain.recipe["models"]["big"]["path"] = "some-org/some-model"
    chain.recipe["models"]["big"]["architecture"] = "llama-3.2-1b"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        words = words_of(chain, f"cluster.offline={offline}")
        code, said, seconds = run(words, HF_ENDPOINT=address, HF_HOME=str(chain.place / "none"))
        with pytest.raises(BlockingIOError):
            server.accept()
    row = next(line for line in said.splitlines() if "first: student.path" in line)

    assert ("FAIL" in row, "WARN" in row) == (offline, not offline)
    assert code == 2 or not offline
    assert "hf download" in said
    assert "imported []" in said
    assert seconds < 60


def test_the_jobs_cache_is_the_one_that_is_looked_into(chain: Chain, world: World) -> None:
    home = chain.place / "jobs' cache"
    model = home / "hub" / "models--some-org--some-model"
    snapshot = model / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(world.teacher)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    chain.recipe["models"]["big"]["path"] = "some-org/some-model"
    chain.cluster["environment"] = {"HF_HOME": str(home)}
    words = words_of(chain, "cluster.gpus_per_node=0", "cluster.ranks_per_node=2")
    _, said, _ = run(words, HF_HOME=str(chain.place / "mine"))
    table = said.split("judge: configuration")[0]
    assert "hf download" not in said
    assert "first: tokenizer" in table
    assert "FAIL" not in table.split("first: configuration")[1]


# --- paths that are relative to where the command is typed ------------------------------------------------------------

TYPED = {
    "data of a stage": ("third.data.train=rel.jsonl", "third", "data.train", "rel.jsonl"),
    "a list": ("third.data.train=[rel.jsonl,more/rel.jsonl]", "third", "data.train", ["rel.jsonl", "more/rel.jsonl"]),
    "a folder above": ("third.data.validation=../here/rel.jsonl", "third", "data.validation", "../here/rel.jsonl"),
    "data of the recipe": ("recipe.datasets.small.train=rel.jsonl", "judge", "data.train", "rel.jsonl"),
    "a model of the recipe": ("recipe.models.little.path=models/little", "second", "student.path", "models/little"),
    "a tokenizer": ("second.student.tokenizer=models/little", "second", "student.tokenizer", "models/little"),
    "a template": ("first.data.chat_template=own.jinja", "first", "data.chat_template", "own.jinja"),
}


@pytest.fixture
def here(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = chain.place / "here"
    (place / "models" / "little").mkdir(parents=True)
    (place / "more").mkdir()
    for name in ("rel.jsonl", "more/rel.jsonl", "own.jinja"):
        (place / name).touch()
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize(("word", "stage", "key", "value"), TYPED.values(), ids=TYPED.keys())
def test_relative_paths(chain: Chain, here: Path, word: str, stage: str, key: str, value: str | list[str]) -> None:
    from omegaconf import OmegaConf

    submission = chain.load(word)
    made = submission.stage(stage, "")
    found = OmegaConf.select(made.config(), key)
    wanted = [value] if isinstance(value, str) else value
    paths = [found] if isinstance(found, str) else list(found)
    assert all(Path(path).is_absolute() for path in paths), paths
    assert [Path(path).resolve() for path in paths] == [(here / name).resolve() for name in wanted]
    script = render(made, submission.run_dir, "mine")
    assert str(here) in script


def test_hub_ids_and_names_of_templates_stay(chain: Chain, here: Path) -> None:
    (here / "llama3").touch()  # a file of that name is no template's
    words = ["third.data.train=org/data:train", "first.student.path=org/model", "first.data.chat_template=llama3"]
    submission = chain.load(*words, "third.data.validation=not/there.jsonl")
    third, first = (submission.stage(name, "").config() for name in ("third", "first"))
    assert third.data.train == "org/data:train"
    assert third.data.validation == "not/there.jsonl"
    assert (first.student.path, first.data.chat_template) == ("org/model", "llama3")


def test_a_sweep_over_relative_paths(chain: Chain, here: Path) -> None:
    stage = chain.load("third.data.train=rel.jsonl,more/rel.jsonl").stage("third", "")
    assert [stage.config(task).data.train for task in (0, 1)] == [str(here / "rel.jsonl"), str(here / "more/rel.jsonl")]
