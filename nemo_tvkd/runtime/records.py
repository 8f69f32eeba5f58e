"""What a run writes of its figures: metrics.jsonl and TensorBoard's files."""

import json
from pathlib import Path
from typing import Any, Protocol

from nemo_tvkd.files import write_whole


class Record(Protocol):
    """One place for rows of figures, written by rank 0."""

    def write(self, row: dict[str, Any], step: int) -> None:
        """Add a row."""

    def close(self, code: int) -> None:
        """The run has ended with this exit code."""


class MetricsFile:
    """metrics.jsonl. A resumed run repeats the steps after its checkpoint: their old rows are taken out."""

    def __init__(self, directory: Path, start: int) -> None:
        self.file = directory / "metrics.jsonl"
        if self.file.exists():
            _drop_rows_after(self.file, start)

    def write(self, row: dict[str, Any], step: int) -> None:
        with open(self.file, "a") as stream:
            stream.write(json.dumps(row) + "\n")

    def close(self, code: int) -> None: ...


class TensorBoard:
    """tensorboard/, under the names of metrics.jsonl."""

    def __init__(self, directory: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=start + 1)

    def write(self, row: dict[str, Any], step: int) -> None:
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, code: int) -> None:
        self.writer.close()


def _drop_rows_after(file: Path, step: int) -> None:
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # the row that was being written when the run died
    write_whole(file, "".join(line + "\n" for line in kept))


def records(config: Any, directory: Path, start: int) -> list[Record]:
    """Where the figures of a run go (rank 0).

    Args:
        config: the resolved configuration.
        directory: the run's output directory.
        start: the step that it continues after.
    """
    found: list[Record] = [MetricsFile(directory, start)]
    if config.logger.tensorboard:
        found.append(TensorBoard(directory, start))
    if config.logger.wandb.project:
        from omegaconf import OmegaConf

        from nemo_tvkd.runtime.weights_and_biases import WeightsAndBiases

        plain: Any = OmegaConf.to_container(config, resolve=True)
        found.append(WeightsAndBiases(config.logger.wandb, directory, plain, start))
    return found
