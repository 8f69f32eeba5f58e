"""Which versions are there, and what of them cannot work."""

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from nemo_tvkd.commands.doctor import versions as module
from nemo_tvkd.commands.doctor.versions import TESTED, has_nemo_llm, numbered, problems, versions

GOOD = {**dict.fromkeys(("torch", "apex", "CUDA")), "NeMo": "2.7.3", "Megatron-Core": "0.15.3"}


def run(code: str, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    return subprocess.run([sys.executable, *code.split()], env=environment, capture_output=True, text=True, check=False)


def test_what_is_installed_here() -> None:
    found = versions()
    assert found["NeMo"] == metadata.version("nemo_toolkit")
    assert found["torch"] == metadata.version("torch")
    assert found["Megatron-Core"] == metadata.version("megatron-core")
    assert has_nemo_llm()
    assert problems(found) == []


def test_the_command_is_quick_and_imports_nothing_heavy() -> None:
    start = time.perf_counter()
    done = run("-X importtime -m nemo_tvkd.commands.doctor.versions")
    assert time.perf_counter() - start < 5  # 0.5 s on an idle machine
    assert done.returncode == 0
    assert f"NeMo {metadata.version('nemo_toolkit')}, " in done.stdout
    assert len(done.stdout.splitlines()) == 1
    imported = {text.rsplit("|", 1)[-1].strip() for text in done.stderr.splitlines() if text.startswith("import time")}
    assert "nemo_tvkd.runtime.exits" in imported
    assert not imported & {"torch", "nemo", "megatron", "transformers", "lightning"}


def nemo_3(folder: Path) -> None:
    """A NeMo 3 as far as this can tell: no nemo/collections/llm."""
    (folder / "nemo" / "collections" / "asr").mkdir(parents=True)
    for place in ("", "collections", "collections/asr"):
        (folder / "nemo" / place / "__init__.py").write_text("")
    info = folder / "nemo_toolkit-3.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nemo_toolkit\nVersion: 3.0.1\n")


def test_nemo_3_ends_with_2_and_one_line(tmp_path: Path) -> None:
    nemo_3(tmp_path)
    done = run("-m nemo_tvkd.commands.doctor.versions", tmp_path)
    assert done.returncode == 2
    assert "NeMo 3.0.1" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "NeMo 3.0.1 has no nemo.collections.llm" in done.stderr
    assert "nvcr.io/nvidia/nemo:" in done.stderr


def test_another_version_is_a_warning(tmp_path: Path) -> None:
    info = tmp_path / "megatron_core-0.16.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: megatron-core\nVersion: 0.16.0\n")
    done = run("-m nemo_tvkd.commands.doctor.versions", tmp_path)
    assert done.returncode == 0
    expected = "warning: Megatron-Core 0.16.0 is not the version this is tested with (0.15)"
    assert done.stderr.splitlines() == [expected]


@pytest.mark.parametrize(("name", "version", "level"), [
    ("NeMo", "2.7.0rc1", None), ("NeMo", "2.70.0", "WARN"), ("NeMo", "2.6.1", "WARN"),
    ("Megatron-Core", "0.15.0+abc", None), ("Megatron-Core", None, "FAIL"),
])  # fmt: skip
def test_levels(name: str, version: str | None, level: str | None) -> None:
    assert [found for found, _ in problems({**GOOD, name: version})] == ([level] if level else [])


def test_no_nemo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_nemo_llm", lambda: False)
    (level, line), = problems({**GOOD, "NeMo": None})  # fmt: skip
    assert level == "FAIL"
    assert "NeMo 2 is not installed" in line
    assert TESTED["NeMo"] in line


def test_the_apex_of_pypi() -> None:
    (level, line), = problems({**GOOD, "apex": "0.9.10.dev0"})  # fmt: skip
    assert level == "WARN"
    assert "not NVIDIA's" in line


def test_numbers_of_libraries() -> None:
    assert numbered(22809, 10_000) == "2.28.9"
    assert numbered(90701, 10_000) == "9.7.1"
