"""Folders that are made once, by whichever process comes first, and seen whole or not at all."""

import errno
import fcntl
import json
import math
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_tvkd.errors import UserError
from nemo_tvkd.files import write_whole
from nemo_tvkd.runtime.exits import rank_variables

MANIFEST = "manifest.json"
"""Written last; it says what the folder holds, and the size of each file."""
POLL_SECONDS = 0.2
FORGOTTEN_SECONDS = 24 * 3600
"""So long an unfinished folder of another machine is kept: where locks are those of one machine it may be alive."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def cache_folder(kind: str) -> Path:
    """Where folders of a kind are kept: in $NEMO_TVKD_CACHE beside imported checkpoints, or in runs/ here."""
    return Path(os.environ.get("NEMO_TVKD_CACHE") or "runs") / kind


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None if it is not there, or not as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if sizes == manifest["files"] else None


def made_once(folder: Path, make: Callable[[Path], dict[str, Any]], key: str, what: str) -> dict[str, Any]:
    """The manifest of a folder that is there, or that `make` fills now.

    Processes on one machine or on several make it one at a time: who waited finds it made, or fails as the maker did.
    Where the file system has no locks each makes its own, and the first to end has made it for all. What a process
    that was killed has left is never taken for whole.

    Args:
        make: fills a new folder, returns what its manifest says besides the sizes of its files.
        key: the configuration key that a disk that is full or not writable is told under.
        what: what is being done, in a line that says who is waited for.

    Raises:
        UserError: `make`'s own, here and in processes that wait; the folder cannot be written.
    """
    if (found := read_manifest(folder)) is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder, what):
            if (found := read_manifest(folder)) is None:
                found = _make(folder, make)
            return found
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{key}: cannot write {folder}: {reason}; make room, or set NEMO_TVKD_CACHE to another folder"
        ) from error


def _make(folder: Path, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    partial = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
    failure = _failure(folder)
    try:
        failure.unlink(missing_ok=True)
        manifest = make(partial)
        sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
        manifest = {"files": sizes, **manifest}
        for name in sizes:
            _to_disk(partial / name)
        write_whole(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        return _put(partial, folder)
    except UserError as error:
        write_whole(failure, str(error))
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, folder: Path) -> dict[str, Any]:
    """Give a whole folder its name, in place of a damaged one; another process's whole one is kept."""
    if folder.exists() and read_manifest(folder) is None:
        aside = partial.with_suffix(".damaged")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} was changed by another program"
    return manifest


def _to_disk(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())


def _failure(folder: Path) -> Path:
    """Where a maker says why it failed, for those who wait."""
    return folder.with_name(f".{folder.name}.failed")


@contextmanager
def _locked(folder: Path, what: str) -> Iterator[None]:
    """Be alone in making a folder; raise what a maker that was waited for has failed of."""
    earlier = _when(_failure(folder))
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        waited = alone = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
                break
            except BlockingIOError:
                if not waited and rank_variables()["local_rank"] == 0:  # once on each node
                    print(f"waiting for another process: {what}", file=sys.stderr, flush=True)
                waited = True
                time.sleep(POLL_SECONDS)
            except OSError as error:
                if error.errno in NO_LOCKS:
                    break
                raise
        failed = _when(_failure(folder))  # None also where the maker began anew, and was killed
        if waited and failed not in (None, earlier) and read_manifest(folder) is None:
            raise UserError(_failure(folder).read_text())
        if alone:
            os.utime(lock.fileno())
            _remove_rests(folder, os.fstat(lock.fileno()).st_mtime)
        yield


def _remove_rests(folder: Path, now: float) -> None:
    """What processes that were killed on this machine have left, and what nothing was written into for long.

    Args:
        now: the time by the file system's clock, in seconds.
    """
    start = f".{folder.name}.{socket.gethostname()}."
    for rest in (*folder.parent.glob(f".{folder.name}.*.partial"), *folder.parent.glob(f"{start}*.damaged")):
        process = rest.name.removeprefix(start).partition(".")[0]
        here = rest.name.startswith(start) and process.isdigit()
        if (here and not Path(f"/proc/{process}").exists()) or now - _newest(rest) > FORGOTTEN_SECONDS:
            shutil.rmtree(rest, ignore_errors=True)


def _newest(rest: Path) -> float:
    """When something in a folder was written last."""
    times = [_when(file) for file in (rest, *rest.glob("*"))]
    return max((time / 1e9 for time in times if time is not None), default=math.inf)


def _when(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
