"""What a scoring job does to a score store, with made-up scores; shared by the store's tests."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_tvkd.errors import UserError
from nemo_tvkd.parallel.statistic import Statistic
from nemo_tvkd.scores.identity import Identity, data_fingerprint
from nemo_tvkd.scores.shard import PairScores
from nemo_tvkd.scores.writer import StoreWriter

PART_SIZE = 3
REPOSITORY = Path(__file__).resolve().parents[1]


def make_ids(count: int) -> list[str]:
    return [hashlib.md5(str(index).encode()).hexdigest() for index in range(count)]


def make_identity(pair_ids: list[str], **changed: object) -> Identity:
    fields: dict = {
        "model": "/models/teacher",
        "weights": "w1",
        "tokenizer": "tok1",
        "chat_template": "tpl1",
        "what": ("value", "logprob", "reward"),
        "values": (Statistic("soft_value", 0.1),),
        "max_length": 512,
        "max_prompt_length": 128,
        "data": data_fingerprint(pair_ids),
    }
    return Identity(**{**fields, **changed})


def make_scores(
    pair_ids: list[str], stems: Iterable[str] = ("value", "logprob", "reward"), ends: bool = False
) -> list[PairScores]:
    rows = []
    for pair_id in pair_ids:
        rng = np.random.default_rng(int(pair_id, 16))
        lengths = [2, 2] if ends else rng.integers(2, 9, 2)
        scores: dict[str, Any] = {}
        for stem in stems:
            if stem.startswith("value"):
                scores[stem] = tuple(rng.normal(10, 3, length).astype(np.float32) for length in lengths)
            else:
                scores[stem] = tuple(rng.normal(-100, 30, 2).tolist())
        rows.append(PairScores(pair_id, scores))
    return rows


def run_job(path: Path, pair_ids: list[str], dp: int = 1, **changed: object) -> StoreWriter:
    """The scoring job's skeleton: what a killed job would do again."""
    writers = [StoreWriter(path, make_identity(pair_ids, **changed), pair_ids, PART_SIZE) for _ in range(dp)]
    writers[0].prepare()
    for rank in reversed(range(dp)):
        writer = writers[rank]
        for part in writer.parts():
            if part % dp == rank and not writer.is_complete(part):
                ends = writer.identity.value_storage == "ends"
                writer.write_part(part, make_scores(list(writer.part_pair_ids(part)), writer.identity.stems, ends))
    writers[0].finish()
    return writers[0]


def digests(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
