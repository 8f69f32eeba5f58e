"""Reads what Weights & Biases' own process wrote of offline runs (LevelDB's log format around its protobuf records)."""

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Recorded:
    """One start of a run."""

    run_id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Each with its `_step`."""
    preempting: bool = False
    exit_code: int | None = None


def read_runs(directory: Path) -> list[Recorded]:
    """Every start that is recorded below an output directory's wandb/, the oldest first."""
    return [_read(file) for file in sorted((directory / "wandb").glob("offline-run-*/run-*.wandb"))]


def _read(file: Path) -> Recorded:
    from wandb.proto.wandb_internal_pb2 import Record

    found = Recorded()
    for data in _records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run_id, found.project = run.run_id, run.project
            found.name, found.group = run.display_name, run.run_group
            found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found.rows.append({**items, "_step": record.history.step.num})
        elif kind == "preempting":
            found.preempting = True
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _records(data: bytes) -> list[bytes]:
    assert data[:4] == b":W&B", data[:7]
    found, parts, at = [], b"", 7
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        check, length, kind = struct.unpack("<IHB", data[at : at + 7])
        body = data[at + 7 : at + 7 + length]
        crc = zlib.crc32(bytes([kind]) + body) & 0xFFFFFFFF
        assert check == crc, "a damaged record"
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            found.append(parts)
        at += 7 + length
    return found
