"""What `import-hf` and `export-hf` refuse before NeMo is imported."""

import shutil
from pathlib import Path

import pytest
from bad_input import Fails, World

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


@pytest.fixture(scope="module")
def nemo_checkpoint(world: World) -> Path:
    """What a NeMo checkpoint looks like from outside."""
    path = world.folder / "nemo"
    (path / "weights").mkdir(parents=True)
    shutil.copytree(world.student, path / "context" / "hf")
    return path


def test_import(world: World, fails: Fails, tmp_path: Path, nemo_checkpoint: Path) -> None:
    output = f"output={tmp_path / 'new'}"
    assert fails("import-hf", output).startswith("source is not set: give ")
    assert fails("import-hf", "source=/no/such", output) == "source: /no/such does not exist"
    assert fails("import-hf", f"source={tmp_path}", output).startswith(f"source: {tmp_path} is no checkpoint")
    message = fails("import-hf", f"source={nemo_checkpoint}", output)
    assert message == f"source: {nemo_checkpoint} is a NeMo checkpoint already"
    gpt2 = world.variant("gpt2", model_type="gpt2")
    assert fails("import-hf", f"source={gpt2}", output).startswith("source: model type 'gpt2' is not supported")
    assert fails("import-hf", f"source={world.student}").startswith("output is not set: give ")
    message = fails("import-hf", f"source={world.student}", f"output={tmp_path}")
    assert message == f"output: {tmp_path} exists; remove it or choose another name"


def test_import_with_a_tokenizer_that_is_none(world: World, fails: Fails, tmp_path: Path) -> None:
    message = fails("import-hf", f"source={world.student}", f"output={tmp_path / 'new'}", "tokenizer=/no/such")
    assert message == "tokenizer: /no/such does not exist"


def test_export(world: World, fails: Fails, tmp_path: Path, nemo_checkpoint: Path) -> None:
    output = f"output={tmp_path / 'new'}"
    assert fails("export-hf", output).startswith("checkpoint is not set: give ")
    assert fails("export-hf", "checkpoint=/no/such", output) == "checkpoint: /no/such does not exist"
    message = fails("export-hf", f"checkpoint={world.student}", output)
    assert message == f"checkpoint: {world.student} is a Hugging Face directory already"
    assert fails("export-hf", f"checkpoint={nemo_checkpoint}").startswith("output is not set: give ")
    message = fails("export-hf", f"checkpoint={nemo_checkpoint}", f"output={tmp_path}")
    assert message == f"output: {tmp_path} exists; remove it or choose another name"


def test_conversions_are_one_process(
    world: World, fails: Fails, tmp_path: Path, nemo_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    output = f"output={tmp_path / 'new'}"
    for command in (["import-hf", f"source={world.student}"], ["export-hf", f"checkpoint={nemo_checkpoint}"]):
        assert fails(*command, output).startswith("conversions run as one process")
