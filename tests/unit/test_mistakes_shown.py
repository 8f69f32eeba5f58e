"""How a mistake is shown: exit code 2 and one line on stderr, from one rank; and without one, ranks are started."""

from pathlib import Path

import pytest
from bad_input import STARTED, Fails, World, run_python

from nemo_tvkd.__main__ import main
from nemo_tvkd.config.compose import compose
from nemo_tvkd.errors import UserError

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def test_commands_without_mistakes_start(world: World) -> None:
    for command in (world.online(), world.cached(), world.score(), world.evaluate()):
        assert main(command) == STARTED
    assert main([*world.online(), "algorithm=dpo", "algorithm.label_smoothing=0.1"]) == STARTED
    assert main([*world.online(), "algorithm=sft"]) == STARTED


def test_only_rank_zero_speaks(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*world.online(), "student.path=/no/such"]) == 2
    assert capfd.readouterr() == ("", "")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NEMO_TVKD_DEBUG", "1")
    assert main(["train", "student.path=/no/such"]) == 2
    error = capfd.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert error.rstrip().endswith("UserError: student.path: /no/such does not exist")


def test_a_message_is_one_line_whatever_it_quotes(fails: Fails) -> None:
    assert fails("train", "student.path='/no\nsuch'") == "student.path: /no such does not exist"


def test_messages_are_raised_as_user_errors() -> None:
    with pytest.raises(UserError, match=r"^unknown key trainer\.sed; did you mean trainer\.seed\?$"):
        compose("train", ["trainer.sed=1"])


def test_a_mistake_in_a_fresh_process_is_one_line(world: World, tmp_path: Path) -> None:
    """Libraries warn while they are imported: none of it may show."""
    command = [*world.online(), f"data.train={tmp_path}/none.jsonl"]
    done = run_python("-m", "nemo_tvkd", *command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"nemo-tvkd: data.train: {tmp_path}/none.jsonl does not exist\n"
    assert done.stdout == ""
