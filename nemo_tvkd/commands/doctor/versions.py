"""Versions of what this project stands on, without importing any of it: `python -m nemo_tvkd.commands.doctor.versions`.

A job runs it first, in its container: one line says what is there, and exit code 2 that it cannot work.
"""

import ctypes
import runpy
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from nemo_tvkd import __version__
from nemo_tvkd.errors import UserError

TESTED = {"NeMo": "2.7", "Megatron-Core": "0.15"}
IMAGE = "nvcr.io/nvidia/nemo:25.11"
PACKAGES = {
    "NeMo": ("nemo_toolkit", "nemo-toolkit"),
    "Megatron-Core": ("megatron-core",),
    "torch": ("torch",),
    "Transformer Engine": ("transformer-engine", "transformer-engine-torch"),
    "apex": ("apex",),
    "flash-attn": ("flash-attn",),
    "transformers": ("transformers",),
    "lightning": ("lightning", "pytorch-lightning"),
}
LIBRARIES = {
    "NCCL": (("nvidia-nccl-cu12", "nvidia-nccl-cu13"), "libnccl.so.2"),
    "cuDNN": (("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"), "libcudnn.so.9"),
}
"""Distributions of the wheels that torch from PyPI brings; a container has the library alone."""


def versions() -> dict[str, str | None]:
    """Name -> version, None where it is not there."""
    found: dict[str, str | None] = {"nemo_tvkd": __version__}
    found |= {name: _installed(*distributions) for name, distributions in PACKAGES.items()}
    found["CUDA"] = _cuda_of_torch()
    for name, (distributions, library) in LIBRARIES.items():
        found[name] = _installed(*distributions) or (_of_library(name, library) if found["CUDA"] else None)
    return found


def problems(found: dict[str, str | None]) -> list[tuple[str, str]]:
    """(FAIL or WARN, one line) for each thing that does not fit; none where all is as tested."""
    if not has_nemo_llm():
        what = f"NeMo {found['NeMo']} has no nemo.collections.llm" if found["NeMo"] else "NeMo 2 is not installed"
        return [
            (
                "FAIL",
                f"{what}: it is part of NeMo 2 only (3 dropped it); use an image with NeMo {TESTED['NeMo']} and "
                f"Megatron-Core {TESTED['Megatron-Core']}, such as cluster.container.image={IMAGE}",
            )
        ]
    said = []
    for name, tested in TESTED.items():
        version = found[name]
        if version is None:
            said.append(("FAIL", f"{name} is not installed; version {tested} is needed"))
        elif not f"{version}.".startswith(f"{tested}."):
            said.append(("WARN", f"{name} {version} is not the version this is tested with ({tested})"))
    if found["apex"] and not _folder("apex", "optimizers").is_dir():
        said.append(("WARN", f"apex {found['apex']} is not NVIDIA's (PyPI's apex is unrelated software): remove it"))
    return said


def line(found: dict[str, str | None]) -> str:
    """All of them in one line."""
    return ", ".join(f"{name} {version or 'not found'}" for name, version in found.items())


def has_nemo_llm() -> bool:
    """Whether `nemo.collections.llm` is there; importing it would take ten seconds."""
    return (_folder("nemo", "collections", "llm") / "__init__.py").is_file()


def _folder(package: str, *parts: str) -> Path:
    spec = find_spec(package)
    places = [Path(place, *parts) for place in (spec and spec.submodule_search_locations) or ()]
    return next((place for place in places if place.is_dir()), Path("/nonexistent"))


def _installed(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _cuda_of_torch() -> str | None:
    file = _folder("torch") / "version.py"
    return runpy.run_path(str(file)).get("cuda") if file.is_file() else None


def _of_library(name: str, file: str) -> str | None:
    try:
        library = ctypes.CDLL(file)
        if name == "NCCL":
            number = ctypes.c_int()
            library.ncclGetVersion(ctypes.byref(number))
            return numbered(number.value, 10_000)
        library.cudnnGetVersion.restype = ctypes.c_size_t
        return numbered(library.cudnnGetVersion(), 10_000)
    except (OSError, AttributeError):
        return None


def numbered(number: int, major: int) -> str:
    """22809 -> "2.28.9"."""
    return f"{number // major}.{number % major // 100}.{number % 100}"


def main() -> int:
    """Print the versions; returns 0.

    Raises:
        UserError: this project cannot run with them.
    """
    found = versions()
    print(line(found), flush=True)
    for level, said in problems(found):
        if level == "FAIL":
            raise UserError(said)
        print(f"warning: {said}", file=sys.stderr, flush=True)
    return 0


if __name__ == "__main__":
    from nemo_tvkd.runtime.exits import guarded

    sys.exit(guarded(main))
