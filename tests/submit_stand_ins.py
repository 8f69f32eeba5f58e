"""Stand-ins for sbatch, squeue, scontrol, sacct and scancel, which write down what they are told; `submit` to them."""

import json
from pathlib import Path
from typing import Any

from recipe_folder import Folder

from nemo_tvkd.__main__ import main

STAND_INS = {
    # numbers jobs from 101 on, refuses the n-th where `fail` says n
    "sbatch": """n=$(($(wc -l <"$0.log" 2>/dev/null || echo 0) + 1))
printf '%s\\037' "$@" >>"$0.log"; echo >>"$0.log"
if [ "$(cat "$0.fail" 2>/dev/null)" = "$n" ]; then echo "sbatch: error: invalid account" >&2; exit 1; fi
echo "$((100 + n));cluster" """,
    "squeue": 'cat "$0.answer" 2>/dev/null; exit 0',
    "scontrol": 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1',
    "sacct": 'echo "Slurm accounting storage is disabled" >&2; exit 1',
    "scancel": 'echo "$@" >>"$0.log"',
}


class Slurm:
    """The stand-ins in a folder that is first on PATH."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        for name, text in STAND_INS.items():
            (place / name).write_text(f"#!/bin/sh\n# a stand-in for {name} of Slurm\n{text}\n")
            (place / name).chmod(0o755)

    @property
    def submitted(self) -> dict[str, tuple[int, list[str]]]:
        """Stage -> (job, options), of all that sbatch was given."""
        lines = self.lines("sbatch")
        calls = [line.split("\x1f")[:-1] for line in lines]
        return {Path(words[-1]).stem: (101 + n, words[:-1]) for n, words in enumerate(calls)}

    def lines(self, name: str) -> list[str]:
        log = self.place / f"{name}.log"
        return log.read_text().splitlines() if log.exists() else []

    def queue(self, *lines: str) -> None:
        (self.place / "squeue.answer").write_text("".join(f"{line}\n" for line in lines))


class Mine(Folder):
    def submit(self, *words: object) -> int:
        return main([str(word) for word in self.words(*words)])

    def words(self, *words: object) -> list[object]:
        self.write()
        return ["submit", *self.arguments, "--config-dir", self.place, *words]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "submission.json").read_text())

    def files(self) -> set[str]:
        """Everything in the run folder, whatever its depth."""
        return {str(file.relative_to(self.run_dir)) for file in self.run_dir.rglob("*")}
