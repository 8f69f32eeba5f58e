"""Reward models from Hugging Face and back: their rewards are transformers', their exports the source again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference as ref
from conversions import ONE, TP2PP2, assert_same_weights, export, llama3, other_files
from rank_pool import Layout, RankPool
from reward_models import (
    VOCAB,
    as_item,
    as_pairs,
    assert_loads_as_reward_model,
    classifier,
    hf_rewards,
    make_reward_model,
    random_texts,
    rewards_task,
)
from test_nemo_checkpoints import FIELDS, compare_context, stored_names
from training import import_checkpoint
from transformers import PreTrainedModel

from nemo_tvkd.checkpoints.hf import find_checkpoint
from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.batch import Item
from nemo_tvkd.prepare.encoder import Encoder

TOLERANCE = 1e-5
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], bool]] = {
    "llama fp32": (lambda: classifier(ref.tiny_llama(41, vocab=VOCAB, head_dim=12), 1), False),
    "llama fp32 tied sharded": (lambda: classifier(ref.tiny_llama(42, vocab=VOCAB, tie=True), 2), True),
    "llama bf16 tied rope": (lambda: classifier(llama3(43, vocab=VOCAB).bfloat16(), 3), False),
    "mistral bf16": (lambda: classifier(ref.tiny_mistral(44, vocab=VOCAB).bfloat16(), 4), False),
    "mistral fp16 tied": (lambda: classifier(ref.tiny_mistral(45, vocab=VOCAB, tie=True).half(), 5), True),
}
"""Each model and whether its weights are in several files."""


class RewardModels:
    """Each source directory and its NeMo checkpoint, made when first asked for."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.pool, self.folder = pool, folder
        self.made: dict[str, tuple[PreTrainedModel, Path, Path]] = {}

    def __call__(self, name: str) -> tuple[PreTrainedModel, Path, Path]:
        if name not in self.made:
            make, shards = MODELS[name]
            place, model = self.folder / name.replace(" ", "_"), make()
            source = make_reward_model(place / "hf", model, shards=shards)
            self.pool.run(ONE, import_checkpoint, str(source), str(place / "nemo"))
            self.made[name] = model, source, place / "nemo"
        return self.made[name]


@pytest.fixture(scope="module")
def reward_models(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> RewardModels:
    return RewardModels(pool, tmp_path_factory.mktemp("reward_models"))


def rewards_of(
    pool: RankPool, layout: Layout, checkpoint: Path, rows: list[list[Any]], multiple: int = 1
) -> list[np.ndarray]:
    """The rewards of packed rows; all tensor-parallel ranks say the same."""
    answers = pool.run(layout, rewards_task, str(checkpoint), rows, multiple)
    found = [answer for answer in answers if answer is not None]
    assert len(found) == layout.tp * layout.dp
    for other in found[1:]:
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(found[0], other, strict=True))
    return found[0]


def export_as(source: str, output: str, kind: str) -> str:
    """Task: NeMo to Hugging Face, of a kind; the warning."""
    from nemo_tvkd.checkpoints.hf import find_checkpoint
    from nemo_tvkd.models.conversion import export_hf

    return export_hf(find_checkpoint(source, "checkpoint"), Path(output), kind)


def provenance(checkpoint: Path) -> dict[str, Any]:
    content = json.loads((checkpoint / "context/nemo_tvkd.json").read_text())
    return {name: content[name] for name in ("lm_head", "reward_head", "reward_model")}


@pytest.mark.parametrize("layout", [ONE, Layout(tp=2), Layout(pp=2), TP2PP2], ids=lambda layout: layout.name)
@pytest.mark.parametrize("name", ["llama fp32 tied sharded", "llama bf16 tied rope", "mistral bf16"])
def test_imported_rewards_are_transformers(
    pool: RankPool, reward_models: RewardModels, name: str, layout: Layout
) -> None:
    _, source, checkpoint = reward_models(name)
    texts = random_texts(7, 12)
    expected = hf_rewards(source, texts)
    assert expected.std() > 0.3
    got = rewards_of(pool, layout, checkpoint, [[as_item(t) for t in texts[:5]], [as_item(t) for t in texts[5:]]])
    assert np.abs(np.concatenate(got) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", MODELS)
def test_an_import_has_a_reward_head_and_no_output_layer(
    pool: RankPool, reward_models: RewardModels, name: str
) -> None:
    _, _, checkpoint = reward_models(name)
    assert provenance(checkpoint) == {"lm_head": False, "reward_head": True, "reward_model": True}
    names = pool.run(ONE, stored_names, checkpoint)[0]
    assert "module.reward_head.weight" in names
    assert not [name for name in names if "output_layer" in name]


def test_nemo_loads_the_context_of_an_import(pool: RankPool, reward_models: RewardModels) -> None:
    _, source, checkpoint = reward_models("llama fp32")
    answer = pool.run(ONE, compare_context, str(checkpoint), str(source), FIELDS)[0]
    assert answer == ("PolicyModel", {}, "torch.float32", "WithoutOutputLayer")


@pytest.mark.parametrize("name", MODELS)
def test_export_of_an_import_is_the_source(
    pool: RankPool, reward_models: RewardModels, tmp_path: Path, name: str
) -> None:
    model, source, checkpoint = reward_models(name)
    exported = export(pool, checkpoint, tmp_path / "exported")
    assert_same_weights(exported, source)
    assert other_files(exported) == other_files(source)
    assert [f.name for f in exported.glob("*.safetensors*")] == ["model.safetensors"]
    assert type(assert_loads_as_reward_model(exported)) is type(model)


def test_neither_packing_nor_a_filler_moves_the_state_that_is_read(pool: RankPool, reward_models: RewardModels) -> None:
    """A text alone, among others in any order, as one of a pair, in a row that is filled up: one reward."""
    _, source, checkpoint = reward_models("mistral bf16")
    texts = random_texts(8, 8)
    texts = [(texts[at // 2 * 2][0], response) for at, (_, response) in enumerate(texts)]  # two by two one prompt
    lengths = [len(prompt) + len(response) for prompt, response in texts]
    assert {length % 2 for length in lengths} == {0, 1}
    expected = hf_rewards(source, texts, padded=False)
    orders = [np.random.default_rng(seed).permutation(len(texts)) for seed in (1, 2)]
    rows = [[as_item(texts[at]) for at in order] for order in orders]
    rows += [[as_item(text)] for text in texts]
    rows += [as_pairs(texts), as_pairs(texts)[::-1], as_pairs(texts)[1:2]]
    wanted = [*(expected[order] for order in orders), *(expected[at : at + 1] for at in range(len(texts)))]
    chosen, rejected = expected[::2], expected[1::2]
    wanted += [np.r_[chosen, rejected], np.r_[chosen[::-1], rejected[::-1]], np.r_[chosen[1], rejected[1]]]
    for multiple in (1, 2, 64):
        got = rewards_of(pool, Layout(tp=2), checkpoint, rows, multiple)
        for ours, theirs in zip(got, wanted, strict=True):
            assert np.abs(ours - theirs).max() <= TOLERANCE


def test_a_cut_response_is_read_at_its_last_token(pool: RankPool, reward_models: RewardModels, tmp_path: Path) -> None:
    """Rows of text, some too long: whatever the template left of prompt and response, its last state counts."""
    _, source, checkpoint = reward_models("llama bf16 tied rope")
    words = ["Who?", "The lamp.", "It is in the box, which is on the table.", "No", "Nobody knows where it is now, or"]
    rows = [{"prompt": f"Where is it? {a}", "chosen": a, "rejected": b} for a in words for b in words if a != b]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = compose("train", ["data.max_length=48", "data.max_prompt_length=24"]).data
    encoder = Encoder.build(find_checkpoint(str(checkpoint), "oracle.path"), "", data, "oracle.tokenizer")
    tokenized = encoder.read([str(tmp_path / "rows.jsonl")], "data.train", True, lambda line: None)
    texts = [(p.tolist(), response.tolist()) for pair in tokenized for p, response in Item(pair).sequences()]
    ended = [response[-1] == encoder.tokenizer.eos_token_id for _, response in texts]
    assert 10 < sum(ended) < len(ended) - 10
    assert max(len(prompt) + len(response) for prompt, response in texts) == 48
    batches = [[Item(pair) for pair in tokenized[at : at + 3]] for at in range(0, len(tokenized), 3)]
    got = rewards_of(pool, TP2PP2, checkpoint, batches, multiple=2)
    chosen, rejected = (np.concatenate([row.reshape(2, -1)[side] for row in got]) for side in (0, 1))
    expected = hf_rewards(source, texts)
    assert np.abs(np.stack([chosen, rejected], 1).ravel() - expected).max() <= TOLERANCE
    assert np.abs(hf_rewards(source, texts, padded=False) - expected).max() <= TOLERANCE
