"""What a run writes of its figures: metrics.jsonl and TensorBoard's files."""

from pathlib import Path
from typing import Any, Protocol

from nemo_tvkd.training.metrics_file import MetricsFile


class Record(Protocol):
    """One place for rows of figures, written by rank 0."""

    def write(self, row: dict[str, Any], step: int) -> None:
        """Add a row."""

    def close(self, code: int) -> None:
        """The run has ended with this exit code."""


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

        from nemo_tvkd.training.weights_and_biases import WeightsAndBiases

        plain: Any = OmegaConf.to_container(config, resolve=True)
        found.append(WeightsAndBiases(config.logger.wandb, directory, plain, start))
    return found
