"""Rows as a reader sees them: which text is the prompt, which of it is trained on, where a response ends."""

from itertools import groupby
from typing import Any

from nemo_tvkd.data.records import Row
from nemo_tvkd.data.tokenized import Tokenized

Piece = dict[str, Any]
"""{"text": ..., "trained": whether the loss counts it, "special": whether it is one special token}."""
HARMLESS = "\n\t\u00a0\u200c\u200d\u3000"
"""Not printable to Python, and yet to be seen as they are: line ends, spaces, and what joins emoji and letters."""


def visible(text: str) -> str:
    r"""Text in which whatever could steer a terminal, or turn its order around, stands as an escape such as \x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in HARMLESS else c.encode("unicode_escape").decode() for c in text)


def rendered_text(row: Row) -> dict[str, Any]:
    """Without a tokenizer: the transcript, no special tokens."""
    sides = {"chosen": row.plain_chosen, "rejected": row.plain_rejected}
    made: dict[str, Any] = {"source": row.source, "prompt": [_piece(row.plain_prompt, False)]}
    return made | {side: [_piece(text, True)] for side, text in sides.items() if text is not None}


def rendered_tokens(tokenizer: Any, tokens: Tokenized) -> dict[str, Any]:
    """As a model reads it: special tokens are shown, and the response's are `trained` as `chosen_mask` says."""
    prompt = tokens.prompt_ids.tolist()
    made: dict[str, Any] = {
        "source": tokens.source,
        "cut": tokens.truncated,
        "tokens": {"prompt": len(prompt), "chosen": len(tokens.chosen_ids)},
        "prompt": _pieces(tokenizer, [], prompt, [False] * len(prompt)),
    }
    mask = [True] * len(tokens.chosen_ids) if tokens.chosen_mask is None else tokens.chosen_mask.tolist()
    made["chosen"] = _pieces(tokenizer, prompt, tokens.chosen_ids.tolist(), mask)
    if tokens.rejected_ids is not None:
        rejected = tokens.rejected_ids.tolist()
        made["tokens"]["rejected"] = len(rejected)
        made["rejected"] = _pieces(tokenizer, prompt, rejected, [True] * len(rejected))
    return made


def _pieces(tokenizer: Any, before: list[int], ids: list[int], trained: list[bool]) -> list[Piece]:
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    pieces, end = [], 0
    # special tokens stand alone, others in runs that are trained or not
    for (is_trained, alone), run in groupby(
        range(len(ids)), lambda at: (trained[at], at if ids[at] in special else -1)
    ):
        start, end = end, end + len(list(run))
        text = _text(tokenizer, before + ids[:start], ids[start:end]) if alone < 0 else tokenizer.decode(ids[start:end])
        pieces.append(_piece(text, is_trained, alone >= 0))
    return pieces


def _text(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """What ids add to the text before them: by themselves they would lose a leading space."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    head, whole = tokenizer.decode(before, **options), tokenizer.decode(before + ids, **options)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids, **options)


def _piece(text: str, trained: bool, special: bool = False) -> Piece:
    return {"text": text, "trained": trained, "special": special}
