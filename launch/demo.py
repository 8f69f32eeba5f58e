"""`make demo`: TVKD end to end on this machine, through the same commands that a cluster run uses.

Makes example data and two small random Llamas, then: SFT of both, DPO of the teacher, teacher scoring, DPO and TVKD
of the student, each at TP2 x PP2 (4 processes); exports everything to Hugging Face and judges the exports with plain
transformers. Stages whose output exists are skipped.
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
from demo_judge import judge_exports, last_validation, table
from demo_stages import BETA, PAIRS, Stage, export, run_stages, score, sft_stages, train

EXPORTED = {
    "teacher_dpo": "teacher (SFT, DPO)",
    "student_sft": "student SFT",
    "student_dpo": "student DPO",
    "student_tvkd": "student TVKD",
}
DRAWN = {
    "teacher_sft": "teacher SFT",
    "teacher_dpo": "teacher DPO",
    "student_sft": "student SFT",
    "student_dpo": "student DPO",
    "student_tvkd": "student TVKD",
}
"""Runs whose curves are drawn."""


def stages(root: Path) -> list[Stage]:
    """The commands of the demo, in order."""
    data = [f"data.train={root}/data/pairs_train.jsonl", f"data.validation={root}/data/pairs_heldout.jsonl"]
    dpo = ["algorithm=dpo", f"algorithm.beta={BETA}", *PAIRS, *data]
    tvkd = ["algorithm=tvkd", f"algorithm.beta={BETA}", *PAIRS, *data]
    scores = root / "teacher_scores"
    chain = [
        *sft_stages(root),
        train("DPO of the teacher", root / "teacher_dpo", *dpo, f"student.path={root}/teacher_sft"),
        score(
            "the teacher scores the pairs",
            root / "teacher_dpo",
            scores,
            *(*data, "score.what=[value]", f"score.temperature={BETA}"),
        ),
        train("DPO of the student (the baseline)", root / "student_dpo", *dpo, f"student.path={root}/student_sft"),
        train(
            "TVKD of the student",
            root / "student_tvkd",
            *(*tvkd, f"student.path={root}/student_sft", f"teacher.path={root}/teacher_dpo"),
            *("teacher.mode=cached", f"teacher.scores={scores}"),
        ),
    ]
    return chain + [export(f"export of {run} to Hugging Face", root / run, root / "hf" / run) for run in EXPORTED]


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
    shaping = last_validation(root / "student_tvkd")
    (root / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    curves = draw_curves({name: root / run for run, name in DRAWN.items()}, root / "curves.png")
    print_line(
        f"\n{table(rows)}\n\n"
        f"{rows[0]['pairs']} held-out pairs. accuracy: how often log pi(chosen) > log pi(rejected); margin: mean\n"
        "difference; answer reward: the data's ground-truth reward of greedy answers (0.0 to 4.3).\n"
        f"The teacher's shaping term on these pairs: margin {shaping['eval_shaping/margins']:.2f} with a spread of "
        f"{shaping['eval_shaping/margins_std']:.2f} nats,\nin favour of the chosen response in "
        f"{shaping['eval_shaping/accuracies']:.0%} of them.\n"
        "One seed, models of 0.4 and 1.7 M parameters on synthetic text: this shows that the pipeline works, not what\n"
        f"the paper shows. Standard error of an accuracy here: about {0.5 / rows[0]['pairs'] ** 0.5:.3f}.\n\n"
        f"runs: {root}/*/ (metrics.jsonl, tensorboard/, checkpoints/)   Hugging Face: {root}/hf/*/\n"
        f"figures: {root}/results.json   curves: {curves}\n"
        f"{time.perf_counter() - start:.0f} s in all"
    )


if __name__ == "__main__":
    main()
