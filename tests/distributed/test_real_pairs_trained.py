"""The 1,200 real HH-RLHF pairs through a whole epoch of training: 4 are named and left out, 1,196 are trained on."""

import importlib.util
import json
from pathlib import Path

import pytest
from rank_pool import Layout, RankPool
from tiny_models import tiny_llama
from training import fit_prepared, import_checkpoint

from nemo_tvkd.config.compose import compose
from nemo_tvkd.prepare.training import prepare_training

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
LAYOUT = Layout(dp=2)
BATCH = 26  # 46 x 26 = 1,196: an epoch without a rest


@pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here: {REAL} does not exist")
def test_an_epoch(pool: RankPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a reward model, which reads every token of every pair and needs no logits over 32,000 words."""
    monkeypatch.setenv("NEMO_TVKD_CACHE", str(tmp_path / "cache"))
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.submodule_search_locations
    tokenizer = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    model = tiny_llama(0, vocab=32000, hidden=16, layers=1, heads=2, kv_heads=1, max_positions=2048)
    model.save_pretrained(tmp_path / "hf")
    pool.run(Layout(), import_checkpoint, str(tmp_path / "hf"), str(tmp_path / "nemo"))
    options = [f"student.path={tmp_path}/nemo", f"student.tokenizer={tokenizer}", f"data.train={REAL}"]
    options += ["algorithm=reward", "algorithm.alpha_sft=0", "data.max_length=2048", "data.on_bad_row=skip"]
    options += [f"trainer.global_batch_size={BATCH}", "trainer.micro_batch_size=13", "trainer.precision=fp32"]
    options += [
        "logger.tensorboard=false",
        f"trainer.output_dir={tmp_path}/run",
        "optim.lr=1e-3",
    ]
    config = compose("train", [*LAYOUT.overrides(), *options])
    prepared = prepare_training(config)
    assert len(prepared.train) == 1196
    assert {item.tokens.source.rpartition(":")[2] for item in prepared.train} == {
        str(number) for number in range(1, 1201) if number not in (87, 517, 926, 1104)
    }
    (said,) = [note for note in prepared.notes if note.startswith("data.train")]
    assert said.endswith(f"skipped: 4 bad rows, first {REAL}:87: chosen: the response is empty")
    pool.run(LAYOUT, fit_prepared, config, prepared)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["pairs_seen"] for row in rows] == [BATCH * step for step in range(1, 47)]
    assert rows[-1]["pairs_seen"] == 1196
