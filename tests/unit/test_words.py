"""Texts that are read word by word have the ids of the tokenizer, character by character of what may be in them."""

import json
import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.data.words import Words

PARTS = [
    "Hello",
    " ",
    "  ",
    "   ",
    "\n\nHuman:",
    "\n",
    "\t",
    "é",
    "ï",
    "日本語",
    "🙂",
    "\u2581",
    " the",
    "ing",
    ",",
    "a",
]
PARTS += ["a", "<s>", "</s>", "<unk>", "<s", ">", "<0x0A>", "[INST]", "\u00a0", "\u200b", "x" * 50, "0123"]


def expected(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_ids_are_the_tokenizers(mistral: Any) -> None:
    """Also behind a head, wherever it is cut from its text; special tokens and the mark of a space are in it, too."""
    words, rng = Words.of(mistral), random.Random(5)
    assert words is not None
    texts = ["", " ", "  ", "a ", " a", *("".join(rng.choices(PARTS, k=rng.randint(1, 12))) for _ in range(1500))]
    for _ in range(2):
        assert words.read(texts) == expected(mistral, texts)
    heads = [text[: rng.randint(0, len(text))] for text in texts]
    assert words.read(texts, list(zip(heads, words.read(heads), strict=True))) == expected(mistral, texts)


def test_words_are_forgotten(mistral: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_tvkd.data.words.KEPT", 5)
    words = Words.of(mistral)
    assert words is not None
    for text in ("one two three four five six ", "one seven</s> eight nine ten", "one two "):
        assert words.read([text]) == expected(mistral, [text])


def test_other_tokenizers_read_whole_texts(llama: Any, mistral_file: str) -> None:
    assert Words.of(llama) is None
    joins, spans, strips = (load_tokenizer(mistral_file) for _ in range(3))
    strips.add_tokens(AddedToken("<x>", lstrip=True))
    assert Words.of(strips) is None
    state = json.loads(spans.backend_tokenizer.to_str())
    state["model"]["vocab"]["e\u2581t"] = len(state["model"]["vocab"])
    state["model"]["merges"].append(["e", "\u2581t"])
    spans._tokenizer = Tokenizer.from_str(json.dumps(state))
    assert Words.of(spans) is None
    joins.backend_tokenizer.enable_truncation(8)
    assert Words.of(joins) is None
