"""Shared fixtures: the rank pool, tiny checkpoints, real data and tokenizers."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these tests are about CPU ranks, also on a machine that has GPUs

from rank_pool import RankPool


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.stop()
