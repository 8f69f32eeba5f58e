"""Text to token ids: a chat template (or the plain transcript) decides what the prompt is and where a response ends.

The state after the prompt, s_1, is one state: chosen and rejected are always tokenised onto the same prompt ids. A
response that was not cut ends with an end token; one that was cut does not, so that it never looks finished.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from nemo_tvkd.config.places import OWN_TEMPLATES
from nemo_tvkd.data.align import PROBE, Reply, Span, check_offsets, find_texts, state_positions
from nemo_tvkd.data.chat_template import ChatTemplate, template_text
from nemo_tvkd.data.fields import Turn
from nemo_tvkd.data.records import Row
from nemo_tvkd.data.tokenized import Tokenized, TokenizeReport, pair_id
from nemo_tvkd.data.turns import chat_turns, plain_turns, tokens_before
from nemo_tvkd.errors import UserError


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
        if positions:
            check_offsets(self.tokenizer)
        return self._encode(row, max_length, max_prompt_length, positions, turns)[0]

    def _encode(
        self, row: Row, max_length: int, max_prompt_length: int | None, positions: bool, turns: str
    ) -> tuple[Tokenized, int, int]:
        """The row's ids, and how many prompts (0 or 1) and responses (0 to 2) were cut."""
        assert turns == "last" or (row.rejected is None and not positions), "all turns are those of examples"
        mask: np.ndarray | None = None
        replies: list[Reply] = []
        if turns == "all":
            prompt, answer, mask = self._conversation(row)
            ended = [answer]
        else:
            chat = self._chat_template
            prompt, replies = self._chat(chat, row, positions) if chat else self._plain(row, positions)
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

    def _plain(self, row: Row, positions: bool = False) -> tuple[list[int], list[Reply]]:
        texts = [text for text in (row.plain_chosen, row.plain_rejected) if text is not None]
        head, prompt = row.plain_prompt, self._ids(row.plain_prompt)
        wholes = [head + text for text in texts]
        spans = find_texts(wholes, texts, head) if positions else None
        return self._lead + prompt, self._continue(head, prompt, wholes, spans)

    def _chat(self, chat: ChatTemplate, row: Row, positions: bool) -> tuple[list[int], list[Reply]]:
        where = f"{row.source}: {self._setting}"
        prompt = chat.render(row.messages, True, row.source)
        texts = [text for text in (row.chosen, row.rejected) if text is not None]
        wholes = [chat.render(_answered(row, text), False, row.source) for text in texts]
        if not all(whole.startswith(prompt) for whole in wholes):
            raise UserError(
                f"{where}: the prompt with its generation prompt is not how the whole conversation starts, so the "
                "response cannot be told from it"
            )
        probe = chat.render(_answered(row, PROBE), False, row.source) if positions else ""
        spans = find_texts(wholes, texts, prompt, probe, where) if positions else None
        ids = self._ids(prompt)
        return ids, self._continue(prompt, ids, wholes, spans)

    def _conversation(self, row: Row) -> tuple[list[int], list[int], np.ndarray]:
        """The prompt of the first answer, the rest with its end, and which tokens of the rest are the assistant's."""
        where, chat = f"{row.source}: {self._setting}", self._chat_template
        if chat is None:
            whole, spans = plain_turns(row)
        else:
            whole, spans = chat_turns(_answered(row, row.chosen), partial(chat.render, source=row.source), where)
        head = whole[: spans[0][0]]
        prompt = self._ids(head)
        (reply,) = self._continue(head, prompt, [whole], spans[:1] if self.tokenizer.is_fast else None)
        shift = len(whole) - len(reply.rendered)
        before = [] if shift else prompt
        edges = [at - shift for span in spans for at in span]
        places = [0, *(tokens_before(at, reply, before, self._ids, where) for at in edges[1:])]
        ids = self._end(reply.ids)
        mask = np.zeros(len(ids), dtype=bool)
        for start, end in zip(places[::2], places[1::2], strict=True):
            mask[start : start + (self._stop(reply.ids[start:end]) or end - start)] = True
        mask[places[-2] :] = True  # also an end token that is the tokenizer's, not the template's
        return (self._lead if chat is None else []) + prompt, ids, mask

    def _continue(self, prompt: str, prompt_ids: list[int], wholes: list[str], spans: list[Span] | None) -> list[Reply]:
        """The responses as tokens: read in place where that leaves the prompt's ids as they are, else by themselves.

        In place, or a tokenizer that puts a space before every text would see two. Both responses the same way, or
        the way itself could tell them apart. `spans` are those of the responses' texts in `wholes`.
        """
        first, shift = len(prompt_ids), 0
        read = [self._read(whole, spans is not None) for whole in wholes]
        if any(ids[:first] != prompt_ids for ids, _ in read):
            first, shift = 0, len(prompt)
            read = [self._read(whole[shift:], spans is not None) for whole in wholes]
        places = [(start - shift, end - shift) for start, end in spans or [(0, 0)] * len(wholes)]
        zipped = zip(read, wholes, places, strict=True)
        return [Reply(ids[first:], at[first:], whole[shift:], place) for (ids, at), whole, place in zipped]

    def _end(self, ids: list[int]) -> list[int]:
        """A response with exactly its end: what templates print behind the end token (a newline) is no part of it."""
        stop = self._stop(ids)
        return ids[:stop] if stop else [*ids, self._eos]

    def _stop(self, ids: list[int]) -> int:
        """How many tokens a turn has up to its end token, and with it; 0 where it has none."""
        end = len(ids)
        while end and ids[end - 1] not in self._end_ids and not self.tokenizer.decode([ids[end - 1]]).strip():
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

    def _ids(self, text: str) -> list[int]:
        return self._read(text, False)[0]

    def _read(self, text: str, offsets: bool) -> tuple[list[int], list[Span]]:
        """Token ids, and each one's characters if asked for."""
        read = self.tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=offsets)
        return read["input_ids"], read.get("offset_mapping", [])

    def _leading_ids(self) -> list[int]:
        """What the tokenizer puts before a text by itself (BOS, mostly)."""
        bare, full = self._ids("a"), self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return full[:start]


def _answered(row: Row, reply: str) -> tuple[Turn, ...]:
    return (*row.messages, {"role": "assistant", "content": reply})


def tokenize_rows(
    rows: Iterable[Row],
    template: Template,
    *,
    max_length: int,
    max_prompt_length: int | None,
    on_bad_row: str = "error",
    positions: bool = False,
    turns: str = "last",
) -> tuple[list[Tokenized], TokenizeReport]:
    """Every row as ids, and what was cut and skipped; see `iter_tokenized`."""
    report = TokenizeReport()
    lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    how: dict[str, Any] = {**lengths, "on_bad_row": on_bad_row, "positions": positions, "turns": turns}
    return list(iter_tokenized(rows, template, report, **how)), report


def iter_tokenized(
    rows: Iterable[Row],
    template: Template,
    report: TokenizeReport,
    *,
    max_length: int,
    max_prompt_length: int | None,
    on_bad_row: str = "error",
    positions: bool = False,
    turns: str = "last",
) -> Iterator[Tokenized]:
    """Encode `rows` in order, one at a time; `positions` and `turns` as in `Template.encode`.

    Args:
        report: is filled in; complete when the last row has been taken.

    Raises:
        UserError: the first bad row if `on_bad_row` is "error"; with "skip", nothing but bad rows; for positions, a
            slow tokenizer.
    """
    if positions:
        check_offsets(template.tokenizer)
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row={on_bad_row} is none of error, skip")
    for row in rows:
        try:
            tokenized, prompts_cut, responses_cut = template._encode(
                row, max_length, max_prompt_length, positions, turns
            )
        except UserError as error:
            if on_bad_row == "error":
                raise
            report.bad.append(str(error))
            continue
        report.pairs += 1
        report.prompts_truncated += prompts_cut
        report.responses_truncated += responses_cut
        yield tokenized
    if report.bad and not report.pairs:
        raise UserError(f"each of the {len(report.bad)} rows is bad; the first: {report.bad[0]}")
