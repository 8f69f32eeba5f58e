"""`make demo-drdo`: DRDO end to end on this machine, through the same commands that a cluster run uses.

From the fine-tuned models of `make demo` (made here if they are not there): an oracle is trained from the teacher, its
rewards are stored, and the student learns from them by DRDO, each at TP2 x PP2. The oracle is exported as a Hugging
Face reward model and the student as a plain causal LM; plain transformers judges both.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from demo_curves import draw_curves
from demo_data import make_demo_data
from demo_judge import heldout_pairs, judge_exports, judge_reward_model, last_validation, table
from demo_stages import ORACLE, PAIRS, Stage, export, run_stages, score, sft_stages, train

EXPORTED = {"student_sft": "student SFT", "student_drdo": "student DRDO"}
DRAWN = {"teacher_sft": "teacher SFT", "student_sft": "student SFT", "oracle": "oracle", "student_drdo": "student DRDO"}
"""Runs whose curves are drawn."""


def stages(root: Path) -> list[Stage]:
    """The commands of the demo, in order."""
    data = [f"data.train={root}/data/pairs_train.jsonl", f"data.validation={root}/data/pairs_heldout.jsonl"]
    oracle, rewards = root / "oracle", root / "oracle_rewards"
    chain = [
        *sft_stages(root),
        train(
            "the oracle, from the teacher",
            oracle,
            "algorithm=reward",
            *ORACLE,
            *data,
            f"student.path={root}/teacher_sft",
        ),
        score("the oracle scores the pairs", oracle, rewards, *data, "score.what=[reward]"),
        train(
            "DRDO of the student",
            root / "student_drdo",
            *("algorithm=drdo", *PAIRS, *data, f"student.path={root}/student_sft"),
            *(f"oracle.path={oracle}", "oracle.mode=cached", f"oracle.scores={rewards}"),
        ),
    ]
    exported = [*EXPORTED, "oracle"]
    return chain + [export(f"export of {run} to Hugging Face", root / run, root / "hf" / run) for run in exported]


def main(print_line: Callable[[str], None] = print) -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    root = parser.parse_args().output
    start = time.perf_counter()
    print_line("making example data and two random Llamas")
    make_demo_data(root / "data")
    run_stages(stages(root), root)
    print_line("\njudging the exported checkpoints with plain transformers on held-out pairs")
    rows = judge_exports(root, EXPORTED)
    oracle = judge_reward_model(root / "hf" / "oracle", heldout_pairs(root))
    student = last_validation(root / "student_drdo")
    (root / "results_drdo.json").write_text(json.dumps({"policies": rows, "oracle": oracle}, indent=1) + "\n")
    curves = draw_curves({name: root / run for run, name in DRAWN.items()}, root / "curves_drdo.png")
    print_line(
        f"\n{table(rows)}\n\n"
        f"{rows[0]['pairs']} held-out pairs. accuracy: how often log pi(chosen) > log pi(rejected); margin: mean\n"
        "difference; answer reward: the data's ground-truth reward of greedy answers (0.0 to 4.3).\n"
        f"The oracle prefers the chosen response of {oracle['accuracy']:.1%} of them (mean reward difference "
        f"{oracle['margin']:.2f});\nthe student's reward head of {student['eval_rewards/accuracies']:.1%}, its reward "
        f"differences correlate with the oracle's at {student['eval_reward_distillation/correlation']:.2f}.\n"
        "One seed, models of 0.4 and 1.7 M parameters on synthetic text: this shows that the pipeline works, not what\n"
        f"the paper shows. Standard error of an accuracy here: about {0.5 / rows[0]['pairs'] ** 0.5:.3f}.\n\n"
        f"figures: {root}/results_drdo.json   curves: {curves}\n"
        f"{time.perf_counter() - start:.0f} s in all"
    )


if __name__ == "__main__":
    main()
