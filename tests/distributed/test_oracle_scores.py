"""Rewards of frozen models, written to score stores at every layout: those of transformers in float64."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
import reference_rewards as rewards
import torch
from rank_pool import Layout, RankPool
from reward_training import save_head
from teacher import make_rows
from training import VOCAB, import_checkpoint, save_hf

from nemo_tvkd.checkpoints.hf import find_checkpoint, weights_fingerprint
from nemo_tvkd.commands.score import ScoringJob
from nemo_tvkd.config.compose import compose
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.identity import Identity, data_fingerprint
from nemo_tvkd.scores.shard import MANIFEST
from nemo_tvkd.scores.store import ScoreStore

ONE, TP2, PP2, DP2, TP2PP2 = Layout(), Layout(tp=2), Layout(pp=2), Layout(dp=2), Layout(tp=2, pp=2)
TOLERANCE = 1e-5
PAIRS = [*ref.random_pairs(42, 19, VOCAB), ref.RefPair([5, 6], [7, 8, 9], [10])]
"""The last one's responses are cut: they have no end token."""
ROWS = make_rows(PAIRS)
VALUES = (Statistic("soft_value", 0.1), Statistic("logprob"))
REWARD, EVERYTHING = ("reward",), ("value", "logprob", "reward")


def score_task(config: Any, jobs: dict[str, ScoringJob]) -> None:
    """Task: `score` as the command runs it, into one store after the other."""
    from nemo_tvkd.commands.score import score

    for output, job in jobs.items():
        assert job.checkpoint is not None
        config.score.output = output
        score(config, job, job.checkpoint)


class Judges:
    """A causal LM with a reward head beside it, and a reward model; what transformers says of PAIRS in float64."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.policy = ref.tiny_llama(41, vocab=VOCAB, hidden=48, layers=4, heads=6)
        judge = ref.tiny_llama(43, vocab=VOCAB, layers=2, tie=True)
        heads = {"policy": rewards.random_head(1, 48), "judge": rewards.random_head(2, 32)}
        self.hf = {"policy": save_hf(self.policy, folder / "policy_hf")}
        self.hf["judge"] = save_hf(rewards.as_classifier(judge, heads["judge"]), folder / "judge_hf")
        save_head(heads["policy"], self.hf["policy"])
        self.paths = {name: folder / name for name in heads}
        for name, source in self.hf.items():
            pool.run(ONE, import_checkpoint, str(source), str(self.paths[name]))
        models = {"policy": self.policy, "judge": judge}
        self.expected = {name: rewards.oracle_rewards(models[name], heads[name], PAIRS).numpy() for name in heads}
        self.classifiers = {name: rewards.as_classifier(models[name], heads[name]) for name in heads}

    def job(self, name: str, what: tuple[str, ...]) -> ScoringJob:
        checkpoint = find_checkpoint(str(self.paths[name]), "score.model")
        identity = Identity(
            model=str(self.paths[name]),
            weights=weights_fingerprint(checkpoint),
            tokenizer="tok",
            chat_template="tpl",
            what=what,
            values=VALUES,
            max_length=64,
            max_prompt_length=63,
            data=data_fingerprint([row.pair_id for row in ROWS]),
        )
        return ScoringJob(checkpoint, ROWS, identity, 0)


@pytest.fixture(scope="module")
def judges(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Judges:
    return Judges(pool, tmp_path_factory.mktemp("judges"))


def options(micro: int, part_size: int) -> Any:
    sizes = [f"score.micro_batch_size={micro}", f"score.part_size={part_size}"]
    return compose("score", [*sizes, "score.precision=fp32"])


def assert_rewards(folder: Path, expected: np.ndarray) -> ScoreStore:
    store = ScoreStore.open(folder)
    got = np.array([store.get(row.pair_id).scores["reward"] for row in ROWS])
    assert np.abs(got - expected).max() <= TOLERANCE
    return store


@torch.no_grad()
def test_the_reference_is_transformers(judges: Judges) -> None:
    """Whose rewards of other responses and pairs are far away."""
    for name, expected in judges.expected.items():
        twin = ref.as_float64(judges.classifiers[name])
        for pair, both in [*zip(PAIRS, expected, strict=True)][::3]:
            for response, reward in zip((pair.chosen, pair.rejected), both, strict=True):
                ids = torch.tensor([[*pair.prompt, *response]])
                assert twin(input_ids=ids, use_cache=False).logits.item() == pytest.approx(reward, abs=1e-12)
        assert np.diff(np.sort(expected.ravel())).min() > 2 * TOLERANCE
        assert expected.std() > 0.5


@pytest.mark.parametrize(
    ("layout", "micro", "part_size"),
    [(ONE, 4, 1024), (TP2, 3, 8), (PP2, 1, 18), (DP2, 2, 5), (TP2PP2, 4, 8)],
    ids=lambda value: value.name if isinstance(value, Layout) else "",
)
def test_stored_rewards_are_transformers(
    pool: RankPool, judges: Judges, tmp_path: Path, layout: Layout, micro: int, part_size: int
) -> None:
    """Alone, and in one pass with values of states and actions and log-probabilities."""
    jobs = {
        "judge": judges.job("judge", REWARD),
        "policy": judges.job("policy", REWARD),
        "everything": judges.job("policy", EVERYTHING),
    }
    by_path = {str(tmp_path / name): job for name, job in jobs.items()}
    pool.run(layout, score_task, options(micro, part_size), by_path)
    for name in ("judge", "policy"):
        store = assert_rewards(tmp_path / name, judges.expected[name])
        assert [*store.get(ROWS[0].pair_id).scores] == ["reward"]
    store = assert_rewards(tmp_path / "everything", judges.expected["policy"])
    twin = ref.as_float64(judges.policy)
    with torch.no_grad():
        for pair, row in list(zip(PAIRS, ROWS, strict=True))[::6]:
            scores = store.get(row.pair_id).scores
            for side, response in enumerate((pair.chosen, pair.rejected)):
                logp = ref.response_logp(twin, pair.prompt, response).item()
                assert scores["logprob"][side] == pytest.approx(logp, rel=TOLERANCE)
                for value in VALUES:
                    wanted = ref.state_values(twin, pair.prompt, response, value.kind, value.temperature)
                    got = scores[store.value_stem(value, "")][side]
                    assert got == pytest.approx(wanted.numpy(), rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize(("name", "what"), [("judge", REWARD), ("policy", EVERYTHING)])
def test_a_resumed_store_of_rewards_has_the_same_bytes(
    pool: RankPool, judges: Judges, tmp_path: Path, name: str, what: tuple[str, ...]
) -> None:
    """As a killed job leaves it: without a manifest, parts missing, one half-written; then with two replicas."""
    job, config = judges.job(name, what), options(3, 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pool.run(ONE, score_task, config, {str(whole): job})
    shutil.copytree(whole, killed)
    for file in (MANIFEST, "part-000001.parquet", "part-000002.parquet"):
        (killed / file).unlink()
    half = (killed / "part-000004.parquet").read_bytes()[:-9]
    (killed / "part-000004.parquet").unlink()
    (killed / ".part-000004.parquet.4242.tmp").write_bytes(half)
    kept = (killed / "part-000000.parquet").stat().st_mtime_ns
    pool.run(DP2, score_task, config, {str(killed): job})
    first, again = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (whole, killed))
    assert len(first) == 5 + 2
    assert again == first
    assert (killed / "part-000000.parquet").stat().st_mtime_ns == kept
