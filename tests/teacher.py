"""A model to score and evaluate with, pairs, and what the float64 reference says about them."""

import hashlib
from pathlib import Path

import numpy as np
import reference as ref
from rank_pool import Layout, RankPool
from training import VOCAB, import_checkpoint, save_hf

from nemo_tvkd.checkpoints.hf import find_checkpoint, weights_fingerprint
from nemo_tvkd.commands.score import ScoringJob
from nemo_tvkd.data.template import Tokenized
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.identity import Identity, data_fingerprint

TOLERANCE = 1e-5
PAIRS = 21
ONE = Layout()
TP2PP2 = Layout(tp=2, pp=2)
DP2 = Layout(dp=2)
KINDS = {
    "soft_value": 1.0,
    "sharp soft_value": 0.1,
    "max": 1.0,
    "margin": 1.0,
    "expectation": 1.0,
    "logit": 1.0,
    "logprob": 1.0,
}
"""Value kinds as `score.value_kind` (the last word) and their temperature."""
STATISTICS = {name: Statistic(name.split()[-1], tau) for name, tau in KINDS.items()}
BOTH = ("value", "logprob")


def make_rows(pairs: list[ref.RefPair]) -> list[Tokenized]:
    """Reference pairs as tokenized rows of a data set."""
    as_array = lambda ids: np.asarray(ids, dtype=np.int32)  # noqa: E731
    return [
        Tokenized(
            prompt_ids=as_array(p.prompt),
            chosen_ids=as_array(p.chosen),
            rejected_ids=as_array(p.rejected),
            pair_id=hashlib.md5(str(index).encode()).hexdigest(),
            source=f"test:{index + 1}",
            truncated=False,
        )
        for index, p in enumerate(pairs)
    ]


class Teacher:
    """A model as Hugging Face and NeMo checkpoint, pairs, and what the reference says about them."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.model = ref.tiny_llama(41, vocab=VOCAB, hidden=48, layers=4, heads=6, kv_heads=2)
        self.path = folder / "nemo"
        pool.run(ONE, import_checkpoint, str(save_hf(self.model, folder / "hf")), str(self.path))
        self.pairs = ref.random_pairs(42, PAIRS, VOCAB)
        self.rows = make_rows(self.pairs)
        self.expected: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        twin = ref.as_float64(self.model)
        self.logps = [
            (ref.response_logp(twin, p.prompt, p.chosen).item(), ref.response_logp(twin, p.prompt, p.rejected).item())
            for p in self.pairs
        ]

    def values(self, name: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """The reference's values of both responses of each pair."""
        if name not in self.expected:
            twin = ref.as_float64(self.model)
            rule = (name.split()[-1], KINDS[name])
            self.expected[name] = [
                tuple(ref.state_values(twin, p.prompt, y, *rule).detach().numpy() for y in (p.chosen, p.rejected))
                for p in self.pairs
            ]
        return self.expected[name]

    def job(
        self, *values: Statistic, what: tuple[str, ...] = BOTH, count: int = PAIRS, value_storage: str = "all"
    ) -> ScoringJob:
        """The scoring of the first `count` pairs."""
        checkpoint = find_checkpoint(str(self.path), "score.model")
        rows = self.rows[:count]
        identity = Identity(
            model=str(self.path),
            weights=weights_fingerprint(checkpoint),
            tokenizer="tok",
            chat_template="tpl",
            what=what,
            values=values,
            max_length=64,
            max_prompt_length=63,
            data=data_fingerprint([row.pair_id for row in rows]),
            value_storage=value_storage,
        )
        return ScoringJob(checkpoint, rows, identity, 0)
