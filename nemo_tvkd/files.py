"""Files that are seen whole or not at all, locks among processes, and the files that come with the package."""

import errno
import fcntl
import json
import os
import time
from importlib import resources
from pathlib import Path
from typing import IO, Any

from nemo_tvkd.errors import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What a file system without locks answers: Lustre and NFS as some clusters mount them."""
POLL_SECONDS = 0.2


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file (text as UTF-8) under a hidden name, then rename it: nobody sees a part of it under its own.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        directory = os.open(path.parent, os.O_RDONLY)  # the new name, too, must survive a power cut
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        temporary.unlink(missing_ok=True)


def write_result(path: Path, data: str | bytes, key: str = "output") -> None:
    """The same, in a folder that is made where there is none.

    Raises:
        UserError: it cannot be written; names `key`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise UserError(
            f"{key}: cannot write {path}: {error.strerror}: make room or give a writable folder, then run the same "
            "command again"
        ) from error


def package_folder(name: str) -> Path:
    """`conf` or `slurm`: inside the installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("nemo_tvkd"))) / name
    return inside if inside.is_dir() else Path(str(resources.files("nemo_tvkd"))).parent / name


def read_json(path: Path, default: Any = None) -> Any:
    """The JSON value in a file; `default` where the file is missing, unreadable or not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return default


def take_lock(path: Path, seconds: float = 0.0) -> IO[str]:
    """Lock the file `path` against other processes until the returned file is closed or this process ends.

    Where the file system has no locks nobody is kept out. (The filelock package falls back to a file that marks the
    lock there: a job killed with its node would leave that behind and lock out its own restart.)

    Args:
        seconds: how long to wait for another holder; `math.inf`: for ever.

    Raises:
        TimeoutError: another process still holds the lock.
        OSError: the file cannot be written.
    """
    end = time.monotonic() + seconds
    lock = open(path, "w")  # noqa: SIM115 (the caller closes it)
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() >= end:
                lock.close()
                raise TimeoutError(f"{path} is locked by another process") from error
            time.sleep(POLL_SECONDS)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return lock
            lock.close()
            raise
