"""Every command that README.md and docs/ show has keys that exist, values that are read, and recipes that are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_pages import DOCS, PAGES, blocks, missing_output, nemo_tvkd_words

from nemo_tvkd.__main__ import as_keys, take_options
from nemo_tvkd.cluster.recipe import load_recipe
from nemo_tvkd.config.compose import compose
from nemo_tvkd.config.table import COMMANDS as TABLE
from nemo_tvkd.config.values import check_values
from nemo_tvkd.errors import UserError

README = DOCS.parent / "README.md"
INDENTED = re.compile(r"^    nemo-tvkd .*?[^\\]$", re.MULTILINE | re.DOTALL)
MORE = re.compile(r"^    \.\.\. ([^#\n]+)", re.MULTILINE)
"""README's words that are added to a `submit`."""
ON_DISK = "/lustre/me"
WITHOUT_KEYS = ("status", "report", "completion")
WIDTH = 84
"""Of a command's lines: what fits the site's column."""
RECIPE = ["recipe=tvkd-llama-8b-1b", "cluster=example_pyxis"]
ADDED = "new-algorithm.md"
"""Its command is of a method that this package does not have: tests/e2e/test_docs_examples.py runs it."""


def shown() -> Iterator[tuple[str, list[str]]]:
    """(where, words behind `nemo-tvkd`) of every command."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash" and page.name != ADDED:
                yield from ((block.place, words) for words in nemo_tvkd_words(block.text))
    text = README.read_text(encoding="utf-8")
    for match in INDENTED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield from ((f"README.md:{line}", words) for words in nemo_tvkd_words(match[0]))
    for match in MORE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield f"README.md:{line}", ["submit", *RECIPE, *match[1].split()]


def check(words: list[str], tmp_path: Path) -> None:
    """Compose a command; paths under ON_DISK are there, others need not be."""
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith(ON_DISK) and key != "run_dir":
            (tmp_path / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
    words = [word.replace(ON_DISK, str(tmp_path / ON_DISK.lstrip("/"))) for word in words]
    command, rest = words[0], [word for word in words[1:] if word not in ("--help", "--dry-run")]
    if "--help" in words or command in WITHOUT_KEYS or (command == "doctor" and not rest):
        assert command in (*TABLE, *WITHOUT_KEYS, "--help")
        return
    options, rest = take_options(command, rest)
    folder = options.get("--config-dir", "")
    if command in ("submit", "doctor"):
        for stage in load_recipe(rest, str(tmp_path / folder) if folder else "").stages:
            if any(word.startswith(f"{stage.name}.") for word in rest):
                stage.config()
        return
    check_values(compose(command, as_keys(TABLE[command], rest)))


COMMANDS = [*{tuple(words): (place, words) for place, words in shown()}.values()]
"""Each once, under the last place that shows it."""


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 60
    assert {words[0] for _, words in COMMANDS} >= {"train", "score", "evaluate", "inspect", "data", "submit", "bench"}


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path) -> None:
    """The YAML files that pages show."""
    for page in PAGES:
        for block in blocks(page):
            if block.title.startswith("my_conf/"):
                (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / block.title).write_text(block.text)


def test_commands_fit_the_column() -> None:
    shown = [(block.place, line) for page in PAGES for block in blocks(page) for line in block.text.splitlines()]
    assert not [(place, line) for place, line in shown if "nemo-tvkd " in line and len(line) > WIDTH]


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[place for place, _ in COMMANDS])
def test_the_command_is_right(place: str, words: list[str], tmp_path: Path) -> None:
    check(words, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "algorithm=dpo", "algorithm.betta=1"],
        ["train", "optim.schedule=straight"],
        ["submit", "recipe=none", "cluster=local"],
        ["submit", *RECIPE, "train.optim.rate=1"],
        ["data", "check", "x.jsonl", "row=pairs"],
    ],
)
def test_a_wrong_command_would_be_found(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        check(words, tmp_path)


PRINTED = "data: 800 rows\nstep 10/40  loss 3.18\nstep 40/40  loss 1.23e-02\n  a       17.5 %  -3\ndone\n"


@pytest.mark.parametrize(
    ("expected", "missing"),
    [
        ("data: 5 rows\n...\nstep 1/2  loss 0.5\ndone\n", ""),
        (" a 1 %   3\n", ""),  # neither digits, signs nor the width of columns
        ("step 1/2  loss 0.5\ndata: 5 rows\n", "data: 5 rows"),  # the order
        ("step 1/2  loss 0.5  lr 1\n", "step 1/2  loss 0.5  lr 1"),  # the words
        ("step 1/2  loss 0.5\nstep 1/2  loss 0.5\nstep 1/2  loss 0.5\n", "step 1/2  loss 0.5"),  # how many
    ],
)
def test_output_is_compared_by_its_shape(expected: str, missing: str) -> None:
    assert missing_output(expected, PRINTED) == missing
