"""What docs/ shows to run runs: the tutorial, and the algorithm that is added to a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_pages import DOCS, PAGES, Block, blocks, lines_of, missing_output, nemo_tvkd_words
from forked_commands import Command, run_command

REPOSITORY = DOCS.parent
FIRST = DOCS / "tutorial.md"
NEW_ALGORITHM = DOCS / "how-to" / "new-algorithm.md"
LIMIT = 60
"""Lines that the page of the new algorithm may ask for."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "launch").symlink_to(REPOSITORY / "launch")
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    bin_folder = Path(sys.executable).parent
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "110", "NEMO_TVKD_CACHE": str(folder / "imported"), "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}


def run_page(page: Path, folder: Path, environment: dict[str, str]) -> None:
    """Run a page's blocks in order; what an output block shows must have been printed by the block before it."""
    printed = run_python(page, folder, environment)
    for block in blocks(page):
        if block.runs and block.language == "bash":
            printed = "".join(run_line(line, block, folder, environment) for line in lines_of(block.text))
        elif block.is_output:
            absent = missing_output(block.text, printed)
            assert not absent, f"{block.place}: not printed: {absent}\nbut:\n{printed}"


def run_python(page: Path, folder: Path, environment: dict[str, str]) -> str:
    """The page's Python, all of it in one process as in a notebook; what it printed."""
    program = "\n".join(block.text for block in blocks(page) if block.runs and block.language == "python")
    if not program:
        return ""
    command = Command([program], environment, folder, main=execute)
    output, errors = command.communicate(timeout=300)
    assert command.wait() == 0, output + errors
    return output + errors


def execute(words: list[str]) -> int:
    exec(compile(words[0], "page", "exec"), {"__name__": "__main__"})
    return 0


def run_line(line: str, block: Block, folder: Path, environment: dict[str, str]) -> str:
    command = [*nemo_tvkd_words(line)]
    if command:
        done = run_command(command[0], environment, folder)
    else:
        words = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"{block.place}: {line}\n{printed}"
    return printed


@pytest.fixture(scope="module")
def tutorial(folder: Path, environment: dict[str, str]) -> Path:
    """The folder that the tutorial leaves."""
    run_page(FIRST, folder, environment)
    return folder


def test_the_tutorial_leaves_a_student_and_a_picture(tutorial: Path) -> None:
    from safetensors import safe_open

    with safe_open(tutorial / "tutorial" / "student_hf" / "model.safetensors", "np") as weights:
        size = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert 3e5 < size < 5e5
    assert (tutorial / "tutorial" / "shaping.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


OTHERS = [page for page in PAGES if page != FIRST and any(block.runs for block in blocks(page))]


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_page_runs(page: Path, tutorial: Path, environment: dict[str, str]) -> None:
    run_page(page, tutorial, environment)


def added_lines(block: Block) -> list[str]:
    """What a block of the new algorithm asks to write."""
    if block.language != "diff":
        return block.text.splitlines()
    return [line for line in block.text.splitlines() if line.startswith("+")]


def apply_block(block: Block, root: Path) -> None:
    """Write a block's file, or change it: hunks are separated by @@, and what one replaces stands there once."""
    file = root / block.title
    if block.language != "diff":
        assert not file.exists(), f"{block.title} is there already: it is shown as a new file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    for hunk in block.text.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] or "\n" for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"{block.place}: found {text.count(old)} times in {block.title}:\n{old}"
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's changes."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("nemo_tvkd", "conf", "slurm"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    for block in blocks(NEW_ALGORITHM):
        if block.title:
            apply_block(block, root)
    return root


def in_copy(copy: Path, environment: dict[str, str], *words: str, folder: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder or copy,
        env={**environment, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_new_algorithm_takes_few_lines() -> None:
    lines = [line for block in blocks(NEW_ALGORITHM) if block.title for line in added_lines(block)]
    assert len(lines) <= LIMIT
    assert all(len(line.removeprefix("+")) <= 120 for line in lines)


def test_the_new_algorithm_passes_its_test_and_the_linter(copy: Path, environment: dict[str, str]) -> None:
    printed = in_copy(copy, environment, "-m", "pytest", "-q", "-c", os.devnull, "tests/unit/test_ipo.py")
    assert "1 passed" in printed
    in_copy(copy, environment, "-m", "ruff", "check", "nemo_tvkd", "tests")


def test_the_new_algorithm_trains(copy: Path, tutorial: Path, environment: dict[str, str]) -> None:
    (command,) = [words for block in blocks(NEW_ALGORITHM) for words in nemo_tvkd_words(block.text)]
    shown = in_copy(copy, environment, "-m", "nemo_tvkd", "train", "algorithm=ipo", "--cfg", "job")
    assert shown.startswith("algorithm:\n  name: ipo\n")
    printed = in_copy(copy, environment, "-m", "nemo_tvkd", *command, folder=tutorial)
    assert not missing_output(
        "step 2/2  loss 0.5  margins 0.1  accuracies 0.5  lr 1e-7  9 tokens/s  0:00:00 left", printed
    )
    rows = (tutorial / "tutorial" / "ipo" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
