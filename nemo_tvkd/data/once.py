"""Folders that are made once, by whichever process comes first, and seen whole or not at all."""

import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import read_json, take_lock, write_whole
from nemo_tvkd.runtime.exits import rank_variables

MANIFEST = "manifest.json"
"""Written last; it says what the folder holds, and the size of each file."""
FORGOTTEN_SECONDS = 24 * 3600
"""So long an unfinished folder of another machine is kept: where locks are those of one machine it may be alive."""


def cache_folder(kind: str) -> Path:
    """Where folders of a kind are kept: in $NEMO_TVKD_CACHE beside imported checkpoints, or in runs/ here."""
    return Path(os.environ.get("NEMO_TVKD_CACHE") or "runs") / kind


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if it is not there, or its files are not as they were written."""
    manifest = read_json(folder / MANIFEST)
    try:
        whole = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None


def made_once(folder: Path, make: Callable[[Path], dict[str, Any]], what: str) -> dict[str, Any]:
    """The manifest of a folder that is there, or that `make` fills now.

    Processes on one machine or on several make it one at a time: who waited finds it made, or fails as the maker did.
    Where the file system has no locks each makes its own, and the first to end has made it for all. What a process
    that was killed has left is never taken for whole.

    Args:
        make: fills a new folder, returns what its manifest says besides the sizes of its files.
        what: what is being made, for the line of a process that waits and the error.

    Raises:
        UserError: `make`'s own, here and in processes that wait; the folder cannot be written.
    """
    if manifest := read_manifest(folder):
        return manifest
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        failure = folder.with_name(f".{folder.name}.failed")
        earlier = _written(failure)
        lock, waited = _lock(folder, what)
        with lock:
            if manifest := read_manifest(folder):
                return manifest
            if waited and _written(failure) not in (0.0, earlier):  # it is gone where the maker began, and was killed
                raise UserError(failure.read_text())
            failure.unlink(missing_ok=True)
            _remove_rests(folder)
            try:
                return _make(folder, make)
            except UserError as error:
                write_whole(failure, str(error))
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"NEMO_TVKD_CACHE: {what}, and {folder} cannot be written: {reason}; make room, or set the variable to "
            "another folder"
        ) from error


def _lock(folder: Path, what: str) -> tuple[IO[str], bool]:
    """The lock of a folder, and whether another process had it."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        return take_lock(path), False
    except TimeoutError:
        if rank_variables()["local_rank"] == 0:  # once on each node
            print(f"waiting for another process: {what}", file=sys.stderr, flush=True)
        return take_lock(path, math.inf), True


def _make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    partial = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        contents = make(partial)
        sizes = {}
        for file in sorted(partial.iterdir()):
            sizes[file.name] = file.stat().st_size
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        write_whole(partial / MANIFEST, json.dumps({"files": sizes, **contents}, indent=1) + "\n")
        if folder.exists() and read_manifest(folder) is None:
            shutil.rmtree(folder)  # damaged
        try:
            partial.rename(folder)
        except OSError:  # without locks another process may have been the first
            if read_manifest(folder) is None:
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} was changed by another program"
    return manifest


def _remove_rests(folder: Path) -> None:
    """Remove what killed processes of this machine left, and what nothing was written into for a day."""
    here = f".{folder.name}.{socket.gethostname()}."
    for rest in folder.parent.glob(f".{folder.name}.*.partial"):
        process = rest.name.removeprefix(here).partition(".")[0]
        dead = rest.name.startswith(here) and process.isdigit() and not Path(f"/proc/{process}").exists()
        newest = max(_written(file) for file in (rest, *rest.glob("*")))
        if dead or time.time() - newest > FORGOTTEN_SECONDS:
            shutil.rmtree(rest, ignore_errors=True)


def _written(file: Path) -> float:
    """When a file was last written; 0 where it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
