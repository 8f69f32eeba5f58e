"""What a stage leaves behind, and how to see that it is all there."""

from pathlib import Path

FINISHED = "finished.json"
"""In a training run's output directory: the run has made its last step."""

MARKS = {
    "train": FINISHED,
    "score": "manifest.json",
    "export-hf": "config.json",
    "evaluate": "preferences.json",
    "benchmark": "results.json",
}
"""The file in a stage's output that is written last, whole or not at all."""


def is_done(command: str, output: Path) -> bool:
    """Whether a stage's output is complete."""
    return (output / MARKS[command]).is_file()


def progress_file(command: str, output: Path) -> Path:
    """Where a command that works on a stage's output reports how far it has come; beside a score store, not in it."""
    return output.with_name(f"{output.name}.progress.json") if command == "score" else output / "progress.json"


def argument(command: str, output: Path) -> Path:
    """What the command is told to write, for its output to be `output`."""
    return output / MARKS[command] if command == "evaluate" else output
