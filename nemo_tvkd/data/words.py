"""Texts as the ids of their words, each of which the tokenizer reads once: many times as fast as reading whole texts.

Only for tokenizers as Llama 1, 2 and the first Mistral have them: BPE over the whole text, with "▁" for a space. Where
no token has a "▁" behind another character, nothing is merged across the start of a word, so the ids of a text are
those of its words, one after the other.
"""

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

SPACE = "▁"
WORD = re.compile(" +[^ ]*")
"""Spaces belong to the word behind them."""
KEPT = 300_000
"""Words of which all are forgotten when there are more."""
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
STATE = {
    **{"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, "pre_tokenizer": None},
    **{"truncation": None, "padding": None},
}
MODEL = {
    **{"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None},
    **{"byte_fallback": True, "ignore_merges": False},
}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class Words:
    """The words of one tokenizer that have been read.

    Args:
        special: the ids of tokens that are no words, wherever they stand in a text.
    """

    def __init__(self, backend: Any, special: dict[str, int]) -> None:
        self._backend = backend
        self._fixed = {token: [number] for token, number in special.items()}
        self._fixed[" "] = [backend.token_to_id(SPACE)]  # "" is the only text that the tokenizer puts no space before
        self._special = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")
        self._ends = tuple(special)
        self._ids = dict(self._fixed)

    @classmethod
    def of(cls, tokenizer: Any) -> "Words | None":
        """None where the ids of a text may be others than those of its words."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or backend.encode_special_tokens:
            return None
        state = json.loads(backend.to_str())
        model, added = state["model"], state["added_tokens"]
        if any(state[name] != value for name, value in STATE.items()):
            return None
        if any(model.get(name) != value for name, value in MODEL.items()):
            return None
        if not {SPACE, *(f"<0x{byte:02X}>" for byte in range(256))} <= model["vocab"].keys():
            return None  # an unknown character joins the next one
        if any(" " in token["content"] or any(token[flag] for flag in FLAGS) for token in added) or not added:
            return None
        merged = ("".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in model["merges"])
        if any(SPACE in token.lstrip(SPACE) for token in merged):
            return None
        return cls(backend, {token["content"]: token["id"] for token in added})

    def read(self, texts: Sequence[str], heads: Sequence[tuple[str, list[int]]] = ()) -> list[list[int]]:
        """The ids of each text, without tokens that the tokenizer adds.

        Args:
            heads: what each text begins with, and the ids of that.
        """
        before: list[list[int]] = []
        words: list[list[str]] = []
        for text, (head, ids) in zip(texts, heads or [("", [])] * len(texts), strict=True):
            if SPACE in text:
                text, head = text.replace(SPACE, " "), head.replace(SPACE, " ")
            at = len(head)
            behind = at and text[at : at + 1] == " " != head[-1] and not head.endswith(self._ends)
            before.append(ids if behind else [])
            words.append(self._split(text[at:], True) if behind else self._split(text, False))
        self._learn(set().union(*words))
        return [
            ids + list(chain.from_iterable(map(self._ids.__getitem__, each)))
            for ids, each in zip(before, words, strict=True)
        ]

    def _split(self, text: str, behind: bool) -> list[str]:
        """The words of a text, or of one that stands behind another word."""
        if not text:
            return []
        first, *rest = self._special.split(text)
        words = WORD.findall(first if behind else f" {first}") if first else []
        for special, part in zip(rest[::2], rest[1::2], strict=True):
            words.append(special)
            words += WORD.findall(f" {part}") if part else []
        return words

    def _learn(self, words: set[str]) -> None:
        if len(self._ids) > KEPT:
            self._ids = dict(self._fixed)
        new = list(words - self._ids.keys())
        texts = [word[1:] for word in new]  # the tokenizer puts a space before each
        read = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        self._ids.update((word, encoding.ids) for word, encoding in zip(new, read, strict=True))
