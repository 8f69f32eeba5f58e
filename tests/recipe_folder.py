"""A small recipe and a cluster in a folder of the user's own, as --config-dir takes them; marks of done stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_tvkd.cluster.recipe import Submission, load_recipe
from nemo_tvkd.config.compose import quoted

MARKS = {
    "first": "finished.json",
    "second": "finished.json",
    "judge": "manifest.json",
    "third": "finished.json",
    "export": "config.json",
    "verdict": "preferences.json",
}
"""Stage -> the file that is written last."""


def train(algorithm: str, after: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    given = {"algorithm": algorithm, **{key.replace("__", "."): value for key, value in settings.items()}}
    return {"command": "train", "after": list(after), "settings": given}


def chain() -> dict[str, Any]:
    """first (teacher), judge (its scores), second (student), third (TVKD of both), export, verdict."""
    pairs = "${recipe.datasets.${recipe.dataset}.train}"
    return {
        "name": "mine",
        "dataset": "small",
        "datasets": {
            "small": {"train": "/data/small.jsonl"},
            "large": {"train": ["/data/a b.jsonl", "/data/it's.jsonl"]},
        },
        "models": {name: {"path": f"/models/{name}", "architecture": "llama-3.2-1b"} for name in ("big", "little")},
        "stages": {
            "third": train(
                "tvkd",
                ["second", "first", "judge"],
                **{"student__path": "@second", "teacher__path": "@first", "teacher__mode": "cached"},
                **{"teacher__scores": "@judge", "data__train": pairs},
            ),
            "verdict": {
                "command": "evaluate",
                "after": ["export"],
                "settings": {"checkpoint": "@export", "data.validation": pairs},
            },
            "export": {
                "command": "export-hf",
                "after": ["third"],
                "settings": {"checkpoint": "@third"},
                "time": "01:00:00",
            },
            "first": train("sft", student__path="${recipe.models.big.path}", data__train=pairs),
            "second": train("sft", student__path="${recipe.models.little.path}", data__train=pairs),
            "judge": {
                "command": "score",
                "after": ["first"],
                "settings": {"score.model": "@first", "score.what": ["value"], "data.train": pairs},
            },
        },
        "layouts": {
            "4gpus": {"first": {"tensor_model_parallel_size": 4, "sequence_parallel": True}, "third": {"nodes": 2}},
            "8gpus": {"third": {"nodes": 3, "micro_batch_size": 2}},
        },
    }


CLUSTER = {"name": "home", "node_type": "4gpus", "gpus_per_node": 4, "time": "10:00:00", "partition": "short"}


class Folder:
    """recipe=mine cluster=home, found in `place`; `load` composes them with more arguments."""

    def __init__(self, place: Path) -> None:
        self.place, self.run_dir = place, place / "it's a run"
        self.recipe, self.cluster = chain(), dict(CLUSTER)

    def write(self) -> None:
        for group, name, content in (("recipe", "mine", self.recipe), ("cluster", "home", self.cluster)):
            (self.place / group).mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(content, sort_keys=False)
            (self.place / group / f"{name}.yaml").write_text(text)

    @property
    def arguments(self) -> list[str]:
        return ["recipe=mine", "cluster=home", f"run_dir={quoted(str(self.run_dir))}"]

    def load(self, *arguments: object) -> Submission:
        self.write()
        return load_recipe([*self.arguments, *map(str, arguments)], str(self.place))

    def finish(self, *stages: str) -> None:
        """Leave the mark of a done stage (or of a task: "third/0")."""
        for stage in stages:
            file = self.run_dir / stage / MARKS[stage.split("/")[0]]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
