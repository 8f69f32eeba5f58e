"""Tokenised rows in memory-mapped files: written one row after the other, read one row at a time.

FOLDER/rows.bin       one record (ROW) a row: lengths, pair id, numbers, and where its parts begin in the others
FOLDER/ids.bin        int32: prompt, chosen and rejected ids, row after row
FOLDER/positions.bin  int32: the states' positions of rows that have them, chosen, then rejected
FOLDER/masks.bin      bool: the masks of rows that have one
FOLDER/sources.bin    UTF-8: where each row comes from
"""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from nemo_tvkd.data.lazy import Lazy
from nemo_tvkd.data.tokenized import Tokenized
from nemo_tvkd.errors import UserError

ROW = np.dtype(
    [
        *((name, "<i8") for name in ("ids_at", "positions_at", "mask_at", "source_at")),  # positions, mask: -1 for none
        *((name, "<i4") for name in ("prompt", "chosen", "rejected", "source")),  # lengths; rejected: -1 for none
        ("pair_id", "u1", 16),
        ("key", "<u8"),  # a hash of the source, by which rows are found
        ("rewards", "<f8", 2),  # chosen, rejected; NaN for none
        ("margin", "<f8"),
        ("truncated", "?"),
    ]
)
NAMES = "surrogateescape"
"""Names of files may be any bytes."""
INT, BOOL, BYTE = np.dtype("<i4"), np.dtype("?"), np.dtype("u1")
KINDS: dict[str, np.dtype] = {"rows": ROW, "ids": INT, "positions": INT, "masks": BOOL, "sources": BYTE}


def source_key(source: str) -> int:
    """64 bits that tell sources apart."""
    return int.from_bytes(hashlib.blake2b(source.encode(errors=NAMES), digest_size=8).digest(), "little")


class TokenWriter:
    """Writes rows into a folder, which it makes; holds none of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, 0
        folder.mkdir(parents=True)
        self._files = {name: open(folder / f"{name}.bin", "wb") for name in KINDS}  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def add(self, row: Tokenized) -> None:
        source = row.source.encode(errors=NAMES)
        record = np.zeros((), dtype=ROW)
        ids = [row.prompt_ids, row.chosen_ids, *([] if row.rejected_ids is None else [row.rejected_ids])]
        positions = [sides for sides in (row.chosen_positions, row.rejected_positions) if sides is not None]
        record["ids_at"] = self._append("ids", *ids)
        record["positions_at"] = self._append("positions", *positions) if positions else -1
        record["mask_at"] = -1 if row.chosen_mask is None else self._append("masks", row.chosen_mask)
        record["source_at"] = self._append("sources", np.frombuffer(source, dtype=BYTE))
        record["prompt"], record["chosen"] = len(row.prompt_ids), len(row.chosen_ids)
        record["rejected"] = -1 if row.rejected_ids is None else len(row.rejected_ids)
        record["source"], record["key"] = len(source), source_key(row.source)
        record["pair_id"] = np.frombuffer(bytes.fromhex(row.pair_id), dtype=BYTE)
        record["rewards"] = [np.nan if n is None else n for n in (row.chosen_reward, row.rejected_reward)]
        record["margin"] = np.nan if row.margin is None else row.margin
        record["truncated"] = row.truncated
        self._append("rows", record)
        self.rows += 1

    def _append(self, name: str, *arrays: np.ndarray) -> int:
        """Where they begin, in elements."""
        kind = KINDS[name]
        start = self._files[name].tell() // kind.itemsize
        for array in arrays:
            self._files[name].write(np.asarray(array, dtype=kind).tobytes())
        return start


class TokenFiles(Lazy[Tokenized]):
    """The rows of a folder, each read when it is asked for; pickled, it is the folder's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._arrays = {name: _mapped(folder / f"{name}.bin", kind) for name, kind in KINDS.items()}
        except OSError as error:
            raise UserError(
                f"data.streaming: {folder} cannot be read ({error.strerror}): run the same command again"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenFiles, (self.folder,)

    def __len__(self) -> int:
        return len(self._arrays["rows"])

    def column(self, name: str) -> np.ndarray:
        """[N] of a field of ROW ([N, k] of one with k entries): a view of the file."""
        return self._arrays["rows"][name]

    def _one(self, index: int) -> Tokenized:
        row = self._arrays["rows"][index]
        prompt, chosen, rejected = int(row["prompt"]), int(row["chosen"]), int(row["rejected"])
        pair = rejected >= 0
        prompt_ids, chosen_ids, rejected_ids = self._parts("ids", row["ids_at"], prompt, chosen, max(rejected, 0))
        positions: list[Any] = [None, None]
        if row["positions_at"] >= 0:
            sides = (chosen + 1, rejected + 1) if pair else (chosen + 1,)
            positions = [*self._parts("positions", row["positions_at"], *sides), None]
        mask = self._parts("masks", row["mask_at"], chosen)[0] if row["mask_at"] >= 0 else None
        numbers = [None if np.isnan(number) else float(number) for number in (*row["rewards"], row["margin"])]
        return Tokenized(
            prompt_ids=prompt_ids,
            chosen_ids=chosen_ids,
            rejected_ids=rejected_ids if pair else None,
            pair_id=row["pair_id"].tobytes().hex(),
            source=self._parts("sources", row["source_at"], int(row["source"]))[0].tobytes().decode(errors=NAMES),
            truncated=bool(row["truncated"]),
            chosen_reward=numbers[0],
            rejected_reward=numbers[1],
            margin=numbers[2],
            chosen_positions=positions[0],
            rejected_positions=positions[1],
            chosen_mask=mask,
        )

    def _parts(self, name: str, start: Any, *lengths: int) -> list[np.ndarray]:
        """Arrays that lie one after the other, read-only views of the file."""
        found, at = [], int(start)
        for length in lengths:
            found.append(self._arrays[name][at : at + length])
            at += length
        return found


def _mapped(file: Path, kind: np.dtype) -> np.ndarray:
    """A file as a read-only array; of the base class, whose slices are made faster than a memmap's."""
    if not file.stat().st_size:  # nothing cannot be mapped
        return np.empty(0, dtype=kind)
    return np.asarray(np.memmap(file, dtype=kind, mode="r"))
