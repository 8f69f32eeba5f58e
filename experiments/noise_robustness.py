"""DRDO's claim in miniature: students of DPO, e-DPO and DRDO under label noise, several seeds each.

For each share of flipped training labels and each seed: an oracle is trained on the same noisy pairs, from the demo's
fine-tuned teacher, and scores them; DPO, e-DPO and DRDO students start from the same fine-tuned student and see the
same pairs in the same order. For comparison, two students distil the world's true rewards, which noise does not touch:
what an oracle without mistakes would give. (e-DPO's loss does not see labels, so that one is the same at every noise.)
And one runs DRDO with equal rewards for both responses, so that of the loss the focal term alone is left.

Held-out pairs have clean labels and carry the world's ground-truth reward, whose difference tells deterministic from
non-deterministic pairs. Everything runs through the commands of `nemo-tvkd`; runs that are complete are skipped, so an
interrupted experiment goes on where it was (after a change of settings give another folder).

Writes OUTPUT/results.json, OUTPUT/table.md and OUTPUT/noise_robustness.png.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))
sys.path.insert(0, str(Path(__file__).parent))

from demo_data import make_demo_data
from demo_stages import BETA, ORACLE, PAIRS, Stage, environment, run_stages, score, sft_stages, train
from noise_report import METHODS, write_report

ALONE: list[str] = []
"""One process a run: several runs share the machine."""


@dataclass(frozen=True)
class Cell:
    """One share of noise and one seed."""

    root: Path
    noise: float
    seed: int

    @property
    def folder(self) -> Path:
        return self.root / f"noise{self.noise:g}-seed{self.seed}"

    def stages(self) -> list[Stage]:
        """Oracle, its scores, and the students."""
        pairs = [
            f"data.train={self.root}/data/pairs_train.jsonl",
            f"data.validation={self.root}/data/pairs_heldout.jsonl",
        ]
        noisy = [*pairs, f"data.label_noise={self.noise}", f"data.label_noise_seed={self.seed}"]
        noisy += [f"trainer.seed={self.seed}", "logger.tensorboard=false", f"student.path={self.root}/student_sft"]
        oracle, rewards = self.folder / "oracle", self.folder / "rewards"
        cached = [f"oracle.path={oracle}", "oracle.mode=cached", f"oracle.scores={rewards}"]
        true = ["oracle.mode=columns"]
        settings = {
            "dpo": ["algorithm=dpo", f"algorithm.beta={BETA}"],
            "edpo": ["algorithm=edpo", f"algorithm.beta={BETA}", *cached],
            "drdo": ["algorithm=drdo", *cached],
            "edpo_true": ["algorithm=edpo", f"algorithm.beta={BETA}", *true],
            "drdo_true": ["algorithm=drdo", *true],
            "focal": ["algorithm=drdo", *true, f"data.train={self.root}/data/pairs_equal.jsonl"],
        }
        judge = ["algorithm=reward", *ORACLE, "trainer.max_steps=300", *noisy, f"student.path={self.root}/teacher_sft"]
        return [
            train("oracle", oracle, *judge, layout=ALONE),
            score("rewards", oracle, rewards, *pairs, "score.what=[reward]", layout=ALONE),
            *(
                train(name, self.folder / name, *PAIRS, *noisy, *options, layout=ALONE)
                for name, options in settings.items()
            ),
            *(evaluation(self.root, self.folder / name) for name in ("oracle", *settings)),
        ]

    def run(self) -> None:
        """What is missing; a stage that fails ends the experiment with what it printed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for stage in self.stages():
            if stage.output.exists():
                continue
            start, log = time.perf_counter(), self.folder / f"{stage.title.replace(' ', '_')}.log"
            command = [sys.executable, "-m", "nemo_tvkd", *stage.arguments]
            with open(log, "w") as stream:
                code = subprocess.run(
                    command, env=environment(self.root), stdout=stream, stderr=subprocess.STDOUT, check=False
                ).returncode
            if code:
                raise SystemExit(f"{self.folder.name}, {stage.title}: exit code {code}, see {log}")
            print(f"{self.folder.name:16} {stage.title:22} {time.perf_counter() - start:4.0f} s", flush=True)

    def figures(self) -> dict[str, Any]:
        """The evaluations of this cell."""
        found = {run: json.loads((self.folder / f"{run}.json").read_text()) for run in ("oracle", *METHODS)}
        return {"noise": self.noise, "seed": self.seed, **found}


def evaluation(root: Path, run: Path) -> Stage:
    """A run's figures on the held-out pairs, in a file of its name beside it."""
    output = run.with_suffix(".json")
    options = ["precision=fp32", "data.max_length=128", "micro_batch_size=32", f"output={output}"]
    pairs = f"data.validation={root}/data/pairs_heldout.jsonl"
    return Stage(f"evaluation of {run.name}", ["evaluate", f"checkpoint={run}", pairs, *options], output)


def write_equal_rewards(data: Path) -> None:
    """The training pairs with equal rewards for both responses: nothing to distil."""
    rows = [json.loads(line) for line in (data / "pairs_train.jsonl").read_text().splitlines()]
    equal = [json.dumps({**row, "chosen_reward": 0.0, "rejected_reward": 0.0}) + "\n" for row in rows]
    (data / "pairs_equal.jsonl").write_text("".join(equal))


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/noise_robustness"))
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2, 0.4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one process each")
    options = parser.parse_args()
    root, start = options.output.absolute(), time.perf_counter()
    make_demo_data(root / "data", pairs=4000)
    write_equal_rewards(root / "data")
    run_stages([*sft_stages(root), evaluation(root, root / "student_sft")], root)
    cells = [Cell(root, noise, seed) for seed in range(options.seeds) for noise in options.noise]
    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(Cell.run, cells):
            pass
    write_report(root, [cell.figures() for cell in cells], json.loads((root / "student_sft.json").read_text()))
    print(f"{(root / 'table.md').read_text()}\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
