"""What a scoring job does to a score store, with made-up scores; shared by the store's tests."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from nemo_tvkd.errors import UserError
from nemo_tvkd.scores.store import Identity, PairScores, StoreWriter, data_fingerprint

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
        "value_kind": "soft_value",
        "temperature": 0.1,
        "max_length": 512,
        "max_prompt_length": 128,
        "data": data_fingerprint(pair_ids),
    }
    return Identity(**{**fields, **changed})


def make_scores(pair_ids: list[str], what: tuple[str, ...] = ("value", "logprob", "reward")) -> list[PairScores]:
    rows = []
    for pair_id in pair_ids:
        rng = np.random.default_rng(int(pair_id, 16))
        row = PairScores(pair_id)
        for side in ("chosen", "rejected"):
            if "value" in what:
                setattr(row, f"{side}_value", rng.normal(10, 3, rng.integers(2, 9)).astype(np.float32))
            if "logprob" in what:
                setattr(row, f"{side}_logprob", -float(rng.exponential(100)))
            if "reward" in what:
                setattr(row, f"{side}_reward", float(rng.normal()))
        rows.append(row)
    return rows


def run_job(path: Path, pair_ids: list[str], dp: int = 1, **changed: object) -> StoreWriter:
    """The scoring job's skeleton: what a killed job would do again."""
    writers = [StoreWriter(path, make_identity(pair_ids, **changed), pair_ids, PART_SIZE) for _ in range(dp)]
    writers[0].prepare()
    for rank in reversed(range(dp)):
        writer = writers[rank]
        for part in writer.parts():
            if part % dp == rank and not writer.is_complete(part):
                writer.write_part(part, make_scores(list(writer.part_pair_ids(part)), writer.identity.what))
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
