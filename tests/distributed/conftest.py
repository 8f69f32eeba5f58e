"""What the distributed tests share: a student and a larger teacher; a teacher to score with; sources to convert."""

from pathlib import Path

import pytest
import reference as ref
from rank_pool import Layout, RankPool
from teacher import Teacher
from training import VOCAB, import_checkpoint, make_items, save_hf

pytest.register_assert_rewrite("conversions", "logits")  # a failed assertion in there says what it compared

from conversions import Sources  # noqa: E402


class Models:
    """As Hugging Face models and as NeMo checkpoints, with pairs for one to three steps of four."""

    def __init__(self, pool: RankPool, folder: Path) -> None:
        self.student = ref.tiny_llama(1, vocab=VOCAB, hidden=32, layers=2, heads=4, kv_heads=2, tie=True)
        self.teacher = ref.tiny_llama(2, vocab=VOCAB, hidden=48, layers=4, heads=6, kv_heads=2, tie=False)
        self.pairs = ref.random_pairs(3, 4, VOCAB)
        self.items = make_items(self.pairs)
        self.hf: dict[str, Path] = {}
        self.paths: dict[str, Path] = {}
        for name in ("student", "teacher"):
            self.hf[name] = save_hf(getattr(self, name), folder / f"{name}_hf")
            self.paths[name] = folder / name
            pool.run(Layout(), import_checkpoint, str(self.hf[name]), str(self.paths[name]))


@pytest.fixture(scope="session")
def models(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(pool, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def teacher(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return Teacher(pool, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def sources(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return Sources(pool, tmp_path_factory.mktemp("sources"))
