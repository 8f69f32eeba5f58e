"""What a store of 1,000 real pairs takes on disk, files and manifest included."""

import gzip
from pathlib import Path

import pytest
import reference as ref
from chat_templates import file_of
from rank_pool import Layout, RankPool
from training import import_checkpoint, save_hf

from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.tokenizer import load_tokenizer

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
PAIRS = 1000
MOST = {"all": ("response token", 8), "ends": ("response", 24)}


def score_task(overrides: list[str]) -> tuple[int, int]:
    """Task: the scoring command in a process group; response tokens and pairs."""
    from nemo_tvkd.commands.score import prepare_scoring, score

    config = compose("score", overrides)
    job = prepare_scoring(config)
    assert job.checkpoint is not None
    score(config, job, job.checkpoint)
    return sum(len(row.chosen_ids) + len(row.rejected_ids) for row in job.rows), len(job.rows)  # type: ignore[arg-type]


@pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here: {REAL} does not exist")
def test_a_real_stores_size(pool: RankPool, tmp_path: Path) -> None:
    """Values of a model's own (random weights) with Mistral's tokenizer."""
    with gzip.open(REAL, "rt", encoding="utf-8") as stream:
        usable = [
            line for number, line in enumerate(stream, 1) if number not in (87, 517, 926, 1104)
        ]  # empty responses
    (tmp_path / "pairs.jsonl").write_text("".join(usable[:PAIRS]), encoding="utf-8")
    model = ref.tiny_llama(5, vocab=32000, hidden=16, layers=1, heads=2, kv_heads=1, max_positions=4096, spread=3.0)
    source = save_hf(model, tmp_path / "hf")
    load_tokenizer(file_of("mistral_common", "data", "tokenizer.model.v1")).save_pretrained(source)
    pool.run(Layout(), import_checkpoint, str(source), str(tmp_path / "nemo"))
    for storage, (unit, most) in MOST.items():
        store = tmp_path / storage
        overrides = [
            *(f"score.model={tmp_path}/nemo", f"score.output={store}", f"score.value_storage={storage}"),
            *(f"data.train={tmp_path}/pairs.jsonl", "data.max_length=2048", "score.precision=fp32"),
        ]
        tokens, pairs = pool.run(Layout(dp=2), score_task, [*overrides, *Layout(dp=2).overrides()])[0]
        assert pairs == PAIRS
        size = sum(file.stat().st_size for file in store.iterdir())
        each = size / (tokens if storage == "all" else 2 * pairs)
        print(f"{storage}: {size:,} bytes, {tokens:,} response tokens, {pairs} pairs: {each:.2f} bytes a {unit}")
        assert 2 <= each <= most  # mantissas are noise: less would mean that something is missing
