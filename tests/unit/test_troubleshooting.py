"""docs/troubleshooting.md quotes messages that the package really has, and explains each."""

import re
from pathlib import Path

import pytest
from messages import VALUE, source_texts

PAGE = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
ITEM = re.compile(r"^`(.+)`\n:   (.*)", re.MULTILINE)
SYMPTOM = '<span class="symptom">'
"""Marks what others than this package say, or what shows without any message."""


def quoted() -> list[str]:
    return [message for message, said in ITEM.findall(PAGE.read_text()) if not said.startswith(SYMPTOM)]


def occurs(message: str, texts: list[str]) -> bool:
    """Whether a text of the source has the message's words in their order, values where the message has …."""
    pattern = ".*".join(map(re.escape, message.split("…")))
    return any(re.search(pattern, text, re.DOTALL) for text in texts)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text.replace(VALUE, "\N{HORIZONTAL ELLIPSIS}") for text in source_texts()]


def test_the_page_quotes_messages() -> None:
    assert len(quoted()) > 50


@pytest.mark.parametrize("message", quoted())
def test_the_source_says_it(message: str, texts: list[str]) -> None:
    assert re.search(r"[a-z]{4}", message), "words, by which it can be found"
    assert occurs(message, texts)


def test_what_nobody_says_is_not_found(texts: list[str]) -> None:
    assert not occurs("the response is … emptier", texts)
    assert not occurs("empty: the response is", texts)
    assert occurs("the response is … empty".replace(" … ", " "), texts)


def test_each_is_quoted_once() -> None:
    assert len(set(quoted())) == len(quoted())
