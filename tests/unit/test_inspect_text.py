"""Tokens as text, by real tokenizers: nothing is lost, and bytes of a split character are told."""

from pathlib import Path
from typing import Any

import pytest
from inspect_figures import byte_tokenizer

from nemo_tvkd.commands.inspect.text import pieces, visible, words

TEXTS = (
    "Hello there, wide world!",
    " two  spaces\n\nand\ttabs \n",
    "你好,世界。 Nai\u0308ve été",
    "🤖 👨\u200d👩\u200d👧 and 👍🏽",
    "\u202eabc\u202c \u2066x\u2069 zero\u200bwidth \ufeff",
    "العربية שלום",
    "a replacement \ufffd is a character",
    "<script>alert(1)</script> {{ 7*7 }} \u2028 end",
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", ["mistral", "llama"])
def test_the_pieces_are_the_decoded_response(family: str, text: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(family)
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    found = pieces(tokenizer, ids)
    assert len(found.texts) == len(ids)
    joined = "".join(found.texts)
    assert joined.removeprefix(" ").lstrip(" ") == tokenizer.decode(ids, clean_up_tokenization_spaces=False).lstrip(" ")
    assert joined.removesuffix(tokenizer.eos_token).strip() == text.strip()
    assert found.special == [len(ids) - 1]


def test_a_character_of_several_tokens_is_the_last_ones(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    ids = tokenizer("é🤖a", add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert found.texts == ["", "é", "", "", "", "🤖", "a"]
    assert found.bytes == {0: "C3", 2: "F0", 3: "9F", 4: "A4"}


def test_a_response_cut_inside_a_character_ends_in_a_replacement(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    ids = tokenizer("a🤖", add_special_tokens=False)["input_ids"][:-1]
    found = pieces(tokenizer, ids)
    assert found.texts == ["a", "", "", "\ufffd"]
    assert found.bytes == {1: "F0", 2: "9F"}


def test_single_tokens_keep_their_space(mistral: Any, llama: Any) -> None:
    for tokenizer in (mistral, llama):
        (token,) = tokenizer(" world", add_special_tokens=False)["input_ids"][-1:]
        assert words(tokenizer, [token]) == {token: " world"}
    byte = mistral("🤖", add_special_tokens=False)["input_ids"][-1]
    assert words(mistral, [byte]) == {byte: "⟨96⟩"}


def test_what_turns_or_hides_text_is_made_visible() -> None:
    assert visible("a\u202eb\x00c\u200bd\n") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+200B⟩d⟨U+000A⟩"
    assert visible("déjà 你 <b>") == "déjà 你 <b>"
