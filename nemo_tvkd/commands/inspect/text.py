"""Tokens as text: each token's part of the response, also where a character is spelled by several tokens."""

import codecs
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

HIDDEN = ("Cc", "Cf", "Zl", "Zp", "Cs", "Co")
"""Unicode categories of what has no shape of its own, or turns the text around it: shown by its number."""


@dataclass(frozen=True)
class Pieces:
    """A response's tokens; the texts put together are the response."""

    texts: list[str]
    """[T]; a character that several tokens spell belongs to the last of them."""
    bytes: dict[int, str]
    """Of the tokens that end inside a character: the bytes (as "F0 9F") of its beginning which they hold."""
    special: list[int]
    """Which tokens are special ones (the end token)."""


def pieces(tokenizer: Any, ids: Any) -> Pieces:
    """The text of each of a response's tokens; `ids` are integers."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    found = Pieces([], {}, [])
    special = set(tokenizer.all_special_ids)
    spell = _speller(tokenizer)
    for position, token in enumerate(ids):
        spelled = spell(int(token))
        found.texts.append(decoder.decode(spelled, final=position == len(ids) - 1))
        if pending := decoder.getstate()[0]:
            found.bytes[position] = pending[-len(spelled) :].hex(" ").upper()
        if int(token) in special:
            found.special.append(position)
    return found


def words(tokenizer: Any, ids: Sequence[int]) -> dict[int, str]:
    """Single tokens, as text where they are some and as bytes ("<F0 9F>") where they are not."""
    spell = _speller(tokenizer)
    found = {}
    for token in ids:
        spelled = spell(token)
        try:
            found[token] = spelled.decode()
        except UnicodeDecodeError:
            found[token] = f"⟨{spelled.hex(' ').upper()}⟩"
    return found


def visible(text: str) -> str:
    """The text with what would not be seen, or would turn the text around it, as ⟨U+202E⟩."""
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN else c for c in text)


def _speller(tokenizer: Any) -> Any:
    """Token id -> its bytes, of a byte-level tokenizer or of one made by sentencepiece."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}

    @cache
    def spell(token: int) -> bytes:
        word = added.get(token) or tokenizer.convert_ids_to_tokens(token)
        if word is None:
            return f"⟨{token}⟩".encode()  # the model's vocabulary is larger than the tokenizer's
        if token in added:
            return word.encode()
        if byte_level:
            return bytes(letters[c] for c in word) if all(c in letters for c in word) else word.encode()
        if byte := re.fullmatch("<0x([0-9A-F]{2})>", word):
            return bytes.fromhex(byte[1])
        return word.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()

    return spell
