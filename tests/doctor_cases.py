"""A chain of tiny models that `doctor` has nothing to say against, to make one mistake in at a time."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bad_input import World, write_rows
from recipe_folder import Folder

from nemo_tvkd.cluster import recipe
from nemo_tvkd.commands import doctor
from nemo_tvkd.commands.doctor.check import Check

ROWS = [
    {"prompt": f"What colour is lamp {n}?", "chosen": f"The lamp is painted red, {n}.", "rejected": "A dull question."}
    for n in range(16)
]
ROLES = {
    "first": {"student.path": "big"},
    "judge": {"score.model": "big"},
    "second": {"student.path": "little"},
    "third": {"student.path": "little", "teacher.path": "big"},
    "export": {"checkpoint": "little"},
    "verdict": {"checkpoint": "little"},
}
BATCH = {"trainer.max_epochs": 1, "trainer.global_batch_size": 4, "trainer.micro_batch_size": 2}


@contextmanager
def remembered() -> Iterator[None]:
    """Composing, most of doctor's time here, is done once for each command line of a stage."""
    original, made = recipe.compose, {}

    def compose(command: str, words: list[str], folder: str = "") -> Any:
        if folder:  # whose files tests change
            return original(command, words, folder=folder)
        key = (command, *words)
        if key not in made:
            made[key] = original(command, words)
        return deepcopy(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "compose", compose)
        yield


class Chain(Folder):
    """first and judge (teacher), second and third (student), export, verdict; on one node with two GPUs."""

    def __init__(self, place: Path, world: World) -> None:
        super().__init__(place)
        self.world = world
        self.pairs = write_rows(place / "rows.jsonl", ROWS)
        self.recipe["datasets"] = {"small": {"train": str(self.pairs)}}
        self.recipe["models"] = {"big": {"path": str(world.teacher)}, "little": {"path": str(world.student)}}
        layout = {"nodes": 1, "micro_batch_size": 2}
        self.recipe["layouts"] = {"2gpus": {name: dict(layout) for name in ("first", "second", "third", "judge")}}
        for name, models in ROLES.items():
            stage = self.recipe["stages"][name]
            stage["models"] = models
            if stage["command"] == "train":
                stage["settings"] |= BATCH
            if stage["command"] in ("train", "score", "evaluate"):
                stage["settings"] |= {"data.max_length": 128}
        self.cluster |= {"node_type": "2gpus", "gpus_per_node": 2, "gpu_tflops": 100}

    def settings(self, stage: str) -> dict[str, Any]:
        return self.recipe["stages"][stage]["settings"]

    def examine(self, *words: object) -> list[Check]:
        """All checks of the recipe, in their order."""
        found = doctor.check_recipe(self.load(*words))
        for check in found:
            assert check.level in ("OK", "WARN", "FAIL"), check
            assert check.name
            assert check.detail, check
            assert "\n" not in check.detail + check.advice, "one line each"
        return found

    def failing(self, *words: object) -> dict[str, str]:
        """What is not OK: name -> "LEVEL detail advice"."""
        found: dict[str, str] = {}
        for check in self.examine(*words):
            if check.level != "OK":
                said = f"{check.level} {check.detail} {check.advice}"
                found[check.name] = f"{found[check.name]} {said}" if check.name in found else said
        return found

    def only(self, name: str, *words: object) -> str:
        """The line of the single check that is not OK."""
        found = self.failing(*words)
        assert set(found) == {name}, found
        return found[name]

    def check(self, name: str, *words: object) -> Check:
        """The check of that name."""
        found = [check for check in self.examine(*words) if check.name == name]
        assert len(found) == 1, (name, found)
        return found[0]

    def trained(self, stage: str, model: Path, **changed: Any) -> None:
        """What a finished training stage leaves, as far as others look at it from outside: a NeMo checkpoint's folders.

        Args:
            changed: keys of the run's configuration with other values than now, with __ for dots.
        """
        from omegaconf import OmegaConf

        output = self.run_dir / stage
        saved = next(s for s in self.load().stages if s.name == stage).config()
        for key, value in changed.items():
            OmegaConf.update(saved, key.replace("__", "."), value)
        side = output / "checkpoints" / "step-00000004" / "context" / "hf"
        weights = side.parents[1] / "weights"
        side.mkdir(parents=True)
        weights.mkdir()
        (weights / "metadata.json").write_text("{}")
        for file in model.iterdir():
            if file.suffix in (".json", ".jinja"):
                (side / file.name).write_text(file.read_text())
        (output / "config.yaml").write_text(OmegaConf.to_yaml(saved))

    def config_of(self, model: str, **entries: Any) -> Path:
        """A copy of a model in this folder with other entries in its config.json."""
        source = getattr(self.world, model)
        place = self.place / f"changed {model}"
        place.mkdir(exist_ok=True)
        for file in source.iterdir():
            (place / file.name).write_bytes(file.read_bytes())
        config = json.loads((place / "config.json").read_text()) | entries
        (place / "config.json").write_text(json.dumps(config))
        return place
