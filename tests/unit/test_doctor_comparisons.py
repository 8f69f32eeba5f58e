"""`nemo-tvkd doctor` and recipes: an evaluation that compares checkpoints, also of stages that have yet to run."""

import pytest
from bad_input import World
from doctor_cases import Chain

from nemo_tvkd.errors import UserError

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def compared(chain: Chain, *entries: str) -> None:
    chain.recipe["stages"]["verdict"]["after"] = ["export", "second"]
    chain.settings("verdict")["checkpoint"] = list(entries)


def test_outputs_of_several_stages(chain: Chain) -> None:
    compared(chain, "@export", "@second")
    config = next(stage for stage in chain.load().stages if stage.name == "verdict").config()
    assert list(config.checkpoint) == [str(chain.run_dir / "export"), str(chain.run_dir / "second")]
    found = {check.name: check for check in chain.examine()}
    assert {check.level for check in found.values()} == {"OK"}
    for key, stage in (("checkpoint[0]", "export"), ("checkpoint[1]", "second")):
        assert str(chain.run_dir / stage) in found[f"verdict: {key}"].detail


def test_the_largest_decides_on_memory(chain: Chain, world: World) -> None:
    """Checkpoints are evaluated one after the other: two small ones take no more than one, a large one more."""
    memory = chain.check("verdict: memory").detail
    compared(chain, "@export", "@second")
    assert chain.check("verdict: memory").detail == memory
    compared(chain, "@export", str(chain.config_of("teacher", intermediate_size=400_000)))
    assert chain.check("verdict: memory").detail != memory


def test_one_that_is_not_there(chain: Chain) -> None:
    compared(chain, "@export", "/gone")
    line = chain.failing()["verdict: checkpoint[1]"]
    assert "FAIL" in line
    assert "/gone is not on this machine" in line


def test_a_stage_that_does_not_come_before(chain: Chain) -> None:
    compared(chain, "@export", "@third")
    with pytest.raises(UserError, match=r"settings: checkpoint=@third, but the stage comes after export, second$"):
        chain.load()


def test_a_reward_model_is_no_teacher(chain: Chain, world: World) -> None:
    chain.settings("verdict")["teacher.path"] = str(world.oracle)
    assert "without an output layer" in chain.only("verdict: settings")
