"""Files that are seen whole or not at all, and the files that come with the package."""

import os
from importlib import resources
from pathlib import Path


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
    finally:
        temporary.unlink(missing_ok=True)


def write_result(path: Path, data: str | bytes) -> None:
    """The same, in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def package_folder(name: str) -> Path:
    """`conf` or `slurm`: inside the installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("nemo_tvkd"))) / name
    return inside if inside.is_dir() else Path(str(resources.files("nemo_tvkd"))).parent / name
