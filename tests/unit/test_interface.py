"""The Python interface is cheap to import and takes the command line's keys; docs/how-to/python.md runs it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nemo_tvkd
from nemo_tvkd.config.compose import compose
from nemo_tvkd.errors import UserError
from nemo_tvkd.interface import SHORT, Run, _check_exit, overrides, train
from nemo_tvkd.runtime.exits import Preempted

HEAVY = {"torch", "nemo", "megatron", "hydra", "omegaconf", "transformers", "numpy"}


def imported_by(statement: str) -> set[str]:
    """Which of HEAVY a fresh process has imported after a statement."""
    program = f"import sys\n{statement}\nprint(*(name for name in {sorted(HEAVY)} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("statement", ["import nemo_tvkd; dir(nemo_tvkd)", "from nemo_tvkd import __version__"])
def test_the_package_imports_nothing_heavy(statement: str) -> None:
    assert imported_by(statement) == set()


def test_the_functions_import_neither_torch_nor_nemo() -> None:
    assert not imported_by("from nemo_tvkd import evaluate, score, train") & {"torch", "nemo", "megatron"}


def test_public_names() -> None:
    assert {"METHODS", "evaluate", "score", "train"} < set(dir(nemo_tvkd))
    assert all(getattr(nemo_tvkd, name) for name in nemo_tvkd.__all__)
    assert {"tvkd", "dpo"} < set(nemo_tvkd.METHODS)
    with pytest.raises(AttributeError, match="tarin"):
        nemo_tvkd.tarin  # noqa: B018


@pytest.mark.parametrize("command", SHORT)
def test_short_arguments_are_keys(command: str) -> None:
    keys: dict[str, Any] = dict.fromkeys(SHORT[command], "x")
    if "what" in keys:
        keys["what"] = ["value"]
    compose(command, overrides(command, keys))


@pytest.mark.parametrize(
    ("keys", "key", "value"),
    [
        ({"student": "it's a, 'model'"}, "student.path", "it's a, 'model'"),
        ({"student": Path("a/b")}, "student.path", "a/b"),
        ({"student": Run(Path("runs/a"))}, "student.path", "runs/a"),
        ({"data": (Path("a"), "b:0.5")}, "data.train", ["a", "b:0.5"]),
        ({"teacher": {"mode": "cached", "path": "t"}}, "teacher.path", "t"),
        ({"trainer": {"max_steps": 10}}, "trainer.max_steps", 10),
        ({"trainer.max_steps": 10}, "trainer.max_steps", 10),
        ({"algorithm.shaping": {"gamma": 0.5}}, "algorithm.shaping.gamma", 0.5),
        ({"algorithm.use_reference": True}, "algorithm.use_reference", True),
        ({"algorithm.shaping.temperature": None}, "algorithm.shaping.temperature", None),
    ],
)
def test_arguments_become_keys(keys: dict[str, Any], key: str, value: Any) -> None:
    from omegaconf import OmegaConf

    config = compose("train", overrides("train", {"algorithm": "tvkd", **keys}))
    assert OmegaConf.to_container(config)[key.split(".")[0]]  # type: ignore[index, call-overload]
    assert OmegaConf.select(config, key) == value


@pytest.mark.parametrize(
    ("keys", "named"),
    [({"trainer.max_step": 1}, "max_steps"), ({"optim": {"lr": "fast"}}, "optim.lr"), ({}, "student")],
)
def test_mistakes_are_raised(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        train("dpo", **keys)


@pytest.mark.parametrize(
    ("code", "error"),
    [(2, UserError), (85, Preempted), (130, KeyboardInterrupt), (1, RuntimeError), (-9, RuntimeError)],
)
def test_exit_codes_are_raised(code: int, error: type[BaseException]) -> None:
    with pytest.raises(error, match="the reason"):
        _check_exit(code, "the reason")
    _check_exit(0, "")


def test_what_a_command_refuses_is_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"student\.path.*nowhere"):
        train("dpo", student=tmp_path / "nowhere", data=tmp_path / "pairs.jsonl", output=tmp_path / "run")
    assert not capsys.readouterr().out
