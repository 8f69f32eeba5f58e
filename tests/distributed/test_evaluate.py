"""The evaluation in the rank pool, against the float64 reference."""

import numpy as np
import pytest
from rank_pool import Layout, RankPool
from teacher import DP2, ONE, PAIRS, TOLERANCE, TP2PP2, Teacher

from nemo_tvkd.checkpoints.hf import find_checkpoint
from nemo_tvkd.data.template import Tokenized


def logps_task(path: str, rows: list[Tokenized], micro: int) -> list[list[float]]:
    """Task: what `evaluate` measures."""
    from nemo_tvkd.commands.evaluate.forward import LOGPS, pair_numbers
    from nemo_tvkd.config.compose import compose
    from nemo_tvkd.data.batch import Item
    from nemo_tvkd.losses.reads import LogProb

    config = compose("evaluate", [f"micro_batch_size={micro}", "precision=fp32"])
    checkpoint, items = find_checkpoint(path, "checkpoint"), [Item(row) for row in rows]
    return pair_numbers(config, checkpoint, "checkpoint", items, {LOGPS: LogProb()})[LOGPS].tolist()


EVALUATIONS = [
    # layout, micro batch, pairs: not divisible by replicas or batches; one replica without a pair
    (ONE, 4, 7),
    (TP2PP2, 2, 7),
    (TP2PP2, 1, PAIRS),
    (DP2, 2, 7),
    (DP2, 3, 1),
    (Layout(tp=2, dp=2), 2, 5),
    (Layout(pp=2, dp=2), 8, PAIRS),
]


@pytest.mark.parametrize(("layout", "micro", "count"), EVALUATIONS)
def test_evaluated_logps_are_the_references_on_every_rank(
    pool: RankPool, teacher: Teacher, layout: Layout, micro: int, count: int
) -> None:
    answers = pool.run(layout, logps_task, str(teacher.path), teacher.rows[:count], micro)
    assert all(answer == answers[0] for answer in answers)
    assert np.shape(answers[0]) == (count, 2)
    assert np.ravel(answers[0]) == pytest.approx(np.ravel(teacher.logps[:count]), rel=TOLERANCE)
