"""States of two tokenizers over one text: how far each has read it, and which state of one answers to one of the other.

A teacher with another tokenizer has its values at its own states. A student's state takes the value of the teacher's
state that has read as much of the response's text; characters are what both tokenizers share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemo_tvkd.errors import UserError

Span = tuple[int, int]
"""(start, end) in characters."""

PROBE = "\ue000"
"""A response (of one private character) that shows what a template puts around every response."""


@dataclass(frozen=True)
class Reply:
    """A response as a tokenizer reads it: all of it, also what a template prints behind its end."""

    ids: list[int]
    offsets: list[Span]
    """Each token's characters; empty where no positions are requested."""
    rendered: str
    """What the offsets count in."""
    span: Span
    """The response's text in it."""


def find_texts(
    wholes: Sequence[str], texts: Sequence[str], prompt: str, probe: str = "", where: str = ""
) -> list[Span]:
    """Where each response's text, stripped, stands in its rendered conversation, which begins with `prompt`.

    `probe` is what the template makes of the same conversation with PROBE for a response. What stands before PROBE is
    the template's own, and no place to look: the text "a" is not the one in a template's "assistant". Without a probe
    nothing stands before the text but white space.

    Raises:
        UserError: a text is not there as it was; starts with `where` (the row and its template).
    """
    spans = []
    for whole, text in zip(wholes, map(str.strip, texts), strict=True):
        start = probe.find(PROBE, len(prompt))
        if start < 0 or not whole.startswith(probe[:start]):  # a template may look at the text before it prints
            start = len(prompt)
        at = whole.find(text, start)
        if at < 0:
            raise UserError(f"{where} changes the response's text, so values cannot be aligned by characters")
        spans.append((at, at + len(text)))
    return spans


def state_positions(reply: Reply, tokens: int) -> np.ndarray:
    """int32 [tokens + 1]: for each state of an ended response, how many characters of its text have been read there.

    `tokens` counts the response's tokens with its end token, which may be one that `reply` does not have. The first
    state has read nothing. A character that several tokens spell (bytes, mostly) is read after the last of them. The
    state after the end token stands alone at the text's length + 1; what a template puts between text and end token
    leaves the position at the text's length.
    """
    start, end = reply.span
    starts, ends = np.array(reply.offsets, dtype=np.int64).reshape(-1, 2).T
    follows = np.append(starts[1:], len(reply.rendered))[: len(ends)]
    # Fast tokenizers give each piece of a character the offsets of all of it: it is read where the next token begins
    # behind it. The space that sentencepiece puts before a text is such a piece: it has the first character's offsets.
    read = np.minimum(ends, follows)
    for gap in np.flatnonzero(ends < follows):
        # white space that offsets leave out is the next token's; a mark that a normalizer joined to a letter is read
        if reply.rendered[ends[gap] : follows[gap]].strip():
            read[gap] = follows[gap]
    read = np.maximum.accumulate(np.append(0, np.clip(read, start, end) - start))
    return np.append(read[:tokens], end - start + 1).astype(np.int32)


def align_states(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """int64 [T_s + 1]: for each of a student's states, the index of the teacher's state whose value it takes.

    `student` [T_s + 1] and `teacher` [T_t + 1] are positions of the same response (`Tokenized.chosen_positions`).

    It is the furthest state that has read no more characters than the student has: the value of a state that had read
    more would tell of tokens the student has yet to choose. Of several with the same position it is the last: before
    the text the one that is about to choose its first character, behind it the one that is about to choose the end
    token, with the template's markers read. (Within a character that several of the teacher's tokens spell, that one
    has begun a character which the student has not; it is not finished.)

    The state after the prompt is always the teacher's own: its value belongs to the prompt, and must be the same for
    both responses of a pair. The state after the end token is the teacher's, which no other state of the student's
    gets; where the teacher's response was cut, it is the last state there is. The indices never decrease.
    """
    assert len(student) > 0, "a response has at least the state after the prompt"
    assert len(teacher) > 0, "a response has at least the state after the prompt"
    assert student[0] == teacher[0] == 0, "the state after the prompt has read nothing"
    states = np.searchsorted(teacher, student, side="right").astype(np.int64) - 1
    states[0] = 0
    return states


def check_offsets(tokenizer: object) -> None:
    """
    Raises:
        UserError: the tokenizer cannot say which characters its tokens stand for.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{type(tokenizer).__name__} is a slow tokenizer, without character offsets: aligning the values of a "
            "teacher that has another tokenizer needs a fast one"
        )
