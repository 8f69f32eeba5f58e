"""Text to token ids: a chat template (or the plain transcript) decides what the prompt is and where a response ends.

The state after the prompt, s_1, is one state: chosen and rejected are always tokenised onto the same prompt ids. A
response that was not cut ends with an end token; one that was cut does not, so that it never looks finished.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np

from nemo_tvkd.config.places import OWN_TEMPLATES
from nemo_tvkd.data.align import PROBE, Reply, Span, check_offsets, find_texts, state_positions
from nemo_tvkd.data.chat_template import ChatTemplate, template_text
from nemo_tvkd.data.fields import Turn
from nemo_tvkd.data.records import Row
from nemo_tvkd.data.tokenized import Tokenized, pair_id
from nemo_tvkd.data.turns import chat_turns, plain_turns, tokens_before
from nemo_tvkd.data.words import Words
from nemo_tvkd.errors import UserError

T = TypeVar("T")
MANY = 100
"""Texts for which it pays to look whether they can be read word by word."""


@dataclass(frozen=True)
class Written:
    """A row as text."""

    head: str
    """The prompt."""
    wholes: list[str]
    """The prompt with each response."""
    spans: list[Span] = field(default_factory=list)
    """Where the responses' texts are in them; empty where nothing needs to know."""
    turns: list[Span] = field(default_factory=list)
    """The assistant's turns, where all are trained."""


class Template:
    """How rows become ids: `name` for people, `fingerprint` (sha256 of the template's text, or "plain") for machines.

    `chat_template` is "auto" (the tokenizer's own, else the plain transcript), "tokenizer", "plain", the name of a
    built-in one or the path of a jinja file; `given` is the text of the last two. `extra_end_ids` are further tokens
    that end a response (a model's generation config may name several).

    Raises:
        UserError: no such template, one with a syntax error or of another tokenizer; names `key`.
    """

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str = "auto",
        extra_end_ids: Sequence[int] = (),
        key: str = "data.chat_template",
    ) -> None:
        self.tokenizer = tokenizer
        self.name, text = template_text(tokenizer, chat_template, key)
        self.given = None if chat_template in OWN_TEMPLATES else text
        self._setting = f"{key}={self.name}"
        self.fingerprint = "plain" if text is None else hashlib.sha256(text.encode()).hexdigest()
        self._chat_template = None if text is None else ChatTemplate(tokenizer, text, self._setting)
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert self._eos is not None, "Encoder.build admits no tokenizer without one"
        added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        # BOS and UNK are special too, but end nothing
        ends = {*tokenizer.all_special_ids, *added} - {self._bos, tokenizer.unk_token_id}
        self._end_ids = frozenset(ends | {self._eos, *extra_end_ids})
        self._blank: dict[int, bool] = {}
        self._lead = self._leading_ids()

    @property
    def end_id(self) -> int:
        """The token that responses end with, as a short one shows; the tokenizer's where that is refused."""
        ask: Turn = {"role": "user", "content": "a"}
        row = Row((ask,), "b", None, plain_prompt="a", plain_chosen="b", plain_rejected=None, source="")
        try:
            return int(self.encode(row, 1 << 20, None).chosen_ids[-1])
        except UserError:  # a template that wants other turns
            return int(self._eos)

    def encode(
        self, row: Row, max_length: int, max_prompt_length: int | None, positions: bool = False, turns: str = "last"
    ) -> Tokenized:
        """The row's ids: at most `max_length` for prompt and response, at most `max_prompt_length` for the prompt.

        A longer prompt keeps BOS and its last tokens; a longer response is cut on the right, without an end token.
        With no limit of its own (None, or one that leaves a single token) a prompt is never cut. With `positions` the
        states' positions in the text are filled in; the ids are the same.

        With `turns` "all" (of examples; "last" otherwise) the prompt ends where the first answer begins, the response
        is all the rest, and `chosen_mask` marks the assistant's turns in it (see :mod:`nemo_tvkd.data.turns`). Too long
        a conversation then loses its last turns, where "last" loses the first ones.

        Raises:
            UserError: a row that cannot be used: its prompt fills `max_length`, the template refuses it or renders it
                in a way that has no response in it, BOS stands twice in a row, chosen and rejected have the same ids;
                with `positions` also a template that changes the response's text, and a slow tokenizer; with "all"
                one whose turns cannot be told apart.
        """
        (encoded,) = self.encode_all([row], max_length, max_prompt_length, positions, turns)
        if isinstance(encoded, UserError):
            raise encoded
        return encoded[0]

    def encode_all(
        self,
        rows: Sequence[Row],
        max_length: int,
        max_prompt_length: int | None,
        positions: bool = False,
        turns: str = "last",
    ) -> list[tuple[Tokenized, int, int] | UserError]:
        """`encode` of many rows with few calls of the tokenizer: the row's ids and how many prompts (0 or 1) and
        responses (0 to 2) were cut; of a bad row its error, which `encode` raises.

        Raises:
            UserError: for positions, a slow tokenizer.
        """
        if positions:
            check_offsets(self.tokenizer)
        written = [_or_error(self._write, row, positions, turns) for row in rows]
        readable = [text for text in written if isinstance(text, Written)]
        read = iter(self._read_texts(readable, positions or (turns == "all" and self.tokenizer.is_fast)))
        finish = partial(self._finish, max_length=max_length, max_prompt_length=max_prompt_length, positions=positions)
        return [
            text if isinstance(text, UserError) else _or_error(finish, row, text, *next(read))
            for row, text in zip(rows, written, strict=True)
        ]

    def _write(self, row: Row, positions: bool, turns: str) -> Written:
        """The row as text."""
        assert turns == "last" or (row.rejected is None and not positions), "all turns are those of examples"
        where, chat = f"{row.source}: {self._setting}", self._chat_template
        if turns == "all":
            if chat is None:
                whole, spans = plain_turns(row)
            else:
                render = partial(chat.render, source=row.source)
                whole, spans = chat_turns(_answered(row, row.chosen), render, where)
            return Written(whole[: spans[0][0]], [whole], spans[:1], spans)
        if chat is None:
            head, texts = row.plain_prompt, _both(row.plain_chosen, row.plain_rejected)
            wholes = [head + text for text in texts]
            return Written(head, wholes, find_texts(wholes, texts, head) if positions else [])
        head, texts = chat.render(row.messages, True, row.source), _both(row.chosen, row.rejected)
        wholes = [chat.render(_answered(row, text), False, row.source) for text in texts]
        if not all(whole.startswith(head) for whole in wholes):
            raise UserError(
                f"{where}: the prompt with its generation prompt is not how the whole conversation starts, so the "
                "response cannot be told from it"
            )
        if not positions:
            return Written(head, wholes)
        probe = chat.render(_answered(row, PROBE), False, row.source)
        return Written(head, wholes, find_texts(wholes, texts, head, probe, where))

    def _read_texts(self, texts: Sequence[Written], offsets: bool) -> list[tuple[list[int], list[Reply]]]:
        """Of each row the prompt's ids and the responses as tokens: read in place where that leaves the prompt's ids
        as they are, else by themselves.

        In place, or a tokenizer that puts a space before every text would see two. Both responses the same way, or
        the way itself could tell them apart.
        """
        prompts = [ids for ids, _ in self._read([text.head for text in texts], False)]
        heads = [(text.head, ids) for text, ids in zip(texts, prompts, strict=True) for _ in text.wholes]
        in_place = _grouped(self._read([whole for text in texts for whole in text.wholes], offsets, heads), texts)
        apart = [
            any(ids[: len(prompt)] != prompt for ids, _ in replies)
            for prompt, replies in zip(prompts, in_place, strict=True)
        ]
        others = [text for text, alone in zip(texts, apart, strict=True) if alone]
        tails = [whole[len(text.head) :] for text in others for whole in text.wholes]
        alone = iter(_grouped(self._read(tails, offsets), others))
        read = []
        for text, prompt, replies, by_itself in zip(texts, prompts, in_place, apart, strict=True):
            first, shift = (0, len(text.head)) if by_itself else (len(prompt), 0)
            spans = [(start - shift, end - shift) for start, end in text.spans or [(0, 0)] * len(text.wholes)]
            parts = zip(next(alone) if by_itself else replies, text.wholes, spans, strict=True)
            read.append(
                (prompt, [Reply(ids[first:], at[first:], whole[shift:], span) for (ids, at), whole, span in parts])
            )
        return read

    def _finish(
        self,
        row: Row,
        text: Written,
        prompt: list[int],
        replies: list[Reply],
        *,
        max_length: int,
        max_prompt_length: int | None,
        positions: bool,
    ) -> tuple[Tokenized, int, int]:
        """The row's ids cut to length, and how many prompts and responses were cut."""
        mask = self._mask(row, text, prompt, replies[0]) if text.turns else None
        if self._chat_template is None:
            prompt = self._lead + prompt
        ended = [self._end(reply.ids) for reply in replies]
        self._check_bos(prompt, ended, row.source)
        prompt, prompt_cut = self._cut_prompt(prompt, max_length, max_prompt_length)
        room = max_length - len(prompt)
        if room < 1:
            raise UserError(f"{row.source}: the prompt's {len(prompt)} tokens fill data.max_length={max_length}")
        ids = [np.array(reply[:room], dtype=np.int32) for reply in ended]
        if len(ids) == 2 and np.array_equal(ids[0], ids[1]):
            raise UserError(f"{row.source}: chosen and rejected have the same {len(ids[0])} token ids")
        if mask is not None and not mask[:room].any():
            raise UserError(f"{row.source}: no token of an assistant's turn fits data.max_length={max_length}")
        cut = sum(len(reply) > room for reply in ended)
        prompt_ids = np.array(prompt, dtype=np.int32)
        rejected_ids = ids[1] if len(ids) == 2 else None
        sides = zip(replies, ended, strict=True) if positions else ()
        read = [state_positions(reply, len(end))[: room + 1] for reply, end in sides]
        tokenized = Tokenized(
            prompt_ids=prompt_ids,
            chosen_ids=ids[0],
            rejected_ids=rejected_ids,
            pair_id=pair_id(prompt_ids, ids[0], rejected_ids),
            source=row.source,
            truncated=prompt_cut or cut > 0,
            chosen_reward=row.chosen_reward,
            rejected_reward=row.rejected_reward,
            margin=row.margin,
            chosen_positions=read[0] if read else None,
            rejected_positions=read[1] if len(read) == 2 else None,
            chosen_mask=None if mask is None else mask[:room],
        )
        return tokenized, int(prompt_cut), cut

    def _mask(self, row: Row, text: Written, prompt: list[int], reply: Reply) -> np.ndarray:
        """bool: which tokens of the ended reply are the assistant's."""
        where = f"{row.source}: {self._setting}"
        shift = len(text.wholes[0]) - len(reply.rendered)
        before = [] if shift else prompt
        edges = [at - shift for turn in text.turns for at in turn]
        places = [0, *(tokens_before(at, reply, before, self._ids, where) for at in edges[1:])]
        mask = np.zeros(len(self._end(reply.ids)), dtype=bool)
        for start, end in zip(places[::2], places[1::2], strict=True):
            mask[start : start + (self._stop(reply.ids[start:end]) or end - start)] = True
        mask[places[-2] :] = True  # also an end token that is the tokenizer's, not the template's
        return mask

    def _end(self, ids: list[int]) -> list[int]:
        """A response with exactly its end: what templates print behind the end token (a newline) is no part of it."""
        stop = self._stop(ids)
        return ids[:stop] if stop else [*ids, self._eos]

    def _stop(self, ids: list[int]) -> int:
        """How many tokens a turn has up to its end token, and with it; 0 where it has none."""
        end = len(ids)
        while end and ids[end - 1] not in self._end_ids and self._is_blank(ids[end - 1]):
            end -= 1
        return end if end and ids[end - 1] in self._end_ids else 0

    def _check_bos(self, prompt: list[int], replies: list[list[int]], source: str) -> None:
        """A text starts once."""
        if not prompt:
            raise UserError(f"{source}: the prompt has no tokens")
        if self._bos is None:
            return
        twice = [self._bos] * 2
        bos = self.tokenizer.bos_token
        if prompt[:2] == twice:
            raise UserError(f"{source}: {self._setting}: the prompt starts with {bos} twice")
        if self._bos == self._eos:  # one token for both: a turn's end and the next one's start may well meet
            return
        for reply in replies:
            ids = [*prompt, *reply]
            if ids.count(self._bos) == 1:
                continue
            if at := next((i for i in range(1, len(ids)) if ids[i - 1 : i + 1] == twice), 0):
                raise UserError(f"{source}: {self._setting}: token {at} and the one after it are both {bos}")

    def _cut_prompt(self, ids: list[int], max_length: int, max_prompt_length: int | None) -> tuple[list[int], bool]:
        limit = max_length - 1 if max_prompt_length is None else max_prompt_length
        if limit >= max_length - 1 or len(ids) <= limit:
            return ids, False
        kept = ids[:1] if ids[0] == self._bos else []
        return kept + ids[len(ids) - (limit - len(kept)) :], True

    @cached_property
    def _words(self) -> Words | None:
        return Words.of(self.tokenizer)

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token]).strip()
        return self._blank[token]

    def _ids(self, text: str) -> list[int]:
        return self._read([text], False)[0][0]

    def _read(
        self, texts: list[str], offsets: bool, heads: Sequence[tuple[str, list[int]]] = ()
    ) -> list[tuple[list[int], list[Span]]]:
        """Of each text the token ids, and each one's characters if requested; `heads` as in `Words.read`."""
        if not texts:
            return []
        if not offsets and len(texts) >= MANY and self._words is not None:
            return [(ids, []) for ids in self._words.read(texts, heads)]
        read = self.tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=offsets)
        spans = read["offset_mapping"] if offsets else [[]] * len(texts)
        return list(zip(read["input_ids"], spans, strict=True))

    def _leading_ids(self) -> list[int]:
        """What the tokenizer puts before a text by itself (BOS, mostly)."""
        bare, full = self._ids("a"), self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return full[:start]


def _answered(row: Row, reply: str) -> tuple[Turn, ...]:
    return (*row.messages, {"role": "assistant", "content": reply})


def _both(chosen: str, rejected: str | None) -> list[str]:
    return [chosen] if rejected is None else [chosen, rejected]


def _grouped(read: Sequence[T], texts: Sequence[Written]) -> list[list[T]]:
    """What was read of all conversations, by row."""
    left = iter(read)
    return [[next(left) for _ in text.wholes] for text in texts]


def _or_error(function: Callable[..., T], *args: Any) -> T | UserError:
    try:
        return function(*args)
    except UserError as error:
        return error
