"""Text to token ids: a chat template (or the plain transcript) decides what the prompt is and where a response ends.

The state after the prompt, s_1, is one state: chosen and rejected are always tokenised onto the same prompt ids. A
response that was not cut ends with an end token; one that was cut does not, so that it never looks finished.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from nemo_tvkd.config import package_folder
from nemo_tvkd.data.align import PROBE, Reply, Span, check_offsets, find_texts, state_positions
from nemo_tvkd.data.fields import Turn
from nemo_tvkd.data.records import Row
from nemo_tvkd.errors import UserError

OWN = ("auto", "plain", "tokenizer")
"""Settings of a chat template that add nothing to what the tokenizer has."""
BUILT_IN: dict[str, tuple[str, ...]] = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (),
}
"""The templates of conf/chat_template, with the tokens without which a tokenizer would read their marks as words."""
NAMED = (*OWN, *BUILT_IN)
"""Settings of a chat template that are no file's name."""

TEMPLATE_DATE = date(2024, 7, 26)
"""What templates that print today's date are told: ids, and the scores bound to them, must be the same tomorrow."""


@dataclass(frozen=True, eq=False)
class Tokenized:
    """One pair (or example) as token ids."""

    prompt_ids: np.ndarray
    """int32 [P], P >= 1: the same ids for both responses."""
    chosen_ids: np.ndarray
    """int32 [T_w], T_w >= 1: the end token is the last unless the response was cut."""
    rejected_ids: np.ndarray | None
    """int32 [T_l]; None for an example."""
    pair_id: str
    """32 hex digits of sha256 over the lengths and ids of prompt, chosen and rejected."""
    source: str
    truncated: bool
    """Whether the prompt or a response was cut."""
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    margin: float | None = None
    chosen_positions: np.ndarray | None = None
    """int32 [T_w + 1] if asked for: how many characters of the (stripped) text each state s_1..s_{T+1} has read, see
    `align.state_positions`; the state after the end token, which a cut response does not have, is at length + 1."""
    rejected_positions: np.ndarray | None = None


@dataclass
class TokenizeReport:
    """Rows kept, prompts and single responses cut to length, and the bad rows ("file:line: what is wrong")."""

    pairs: int = 0
    prompts_truncated: int = 0
    responses_truncated: int = 0
    bad: list[str] = field(default_factory=list)


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
        self.name, self._text = _template_text(tokenizer, chat_template, key)
        self.given = None if chat_template in OWN else self._text
        self._setting = f"{key}={self.name}"
        self.fingerprint = "plain" if self._text is None else hashlib.sha256(self._text.encode()).hexdigest()
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert self._eos is not None, "Encoder.build admits no tokenizer without one"
        added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
        # BOS and UNK are special too, but end nothing
        ends = {*tokenizer.all_special_ids, *added} - {self._bos, tokenizer.unk_token_id}
        self._end_ids = frozenset(ends | {self._eos, *extra_end_ids})
        self._lead = self._leading_ids()
        self._check_syntax()

    @property
    def end_id(self) -> int:
        """The token that responses end with, as a short one shows; the tokenizer's where that is refused."""
        ask: Turn = {"role": "user", "content": "a"}
        row = Row((ask,), "b", None, plain_prompt="a", plain_chosen="b", plain_rejected=None, source="")
        try:
            return int(self.encode(row, 1 << 20, None).chosen_ids[-1])
        except UserError:  # a template that wants other turns
            return int(self._eos)

    def encode(self, row: Row, max_length: int, max_prompt_length: int | None, positions: bool = False) -> Tokenized:
        """The row's ids: at most `max_length` for prompt and response, at most `max_prompt_length` for the prompt.

        A longer prompt keeps BOS and its last tokens; a longer response is cut on the right, without an end token.
        With no limit of its own (None, or one that leaves a single token) a prompt is never cut. With `positions` the
        states' positions in the text are filled in; the ids are the same.

        Raises:
            UserError: a row that cannot be used: its prompt fills `max_length`, the template refuses it or renders it
                in a way that has no response in it, chosen and rejected have the same ids; with `positions` also a
                template that changes the response's text, and a slow tokenizer.
        """
        if positions:
            check_offsets(self.tokenizer)
        return self._encode(row, max_length, max_prompt_length, positions)[0]

    def _encode(
        self, row: Row, max_length: int, max_prompt_length: int | None, positions: bool
    ) -> tuple[Tokenized, int, int]:
        """The row's ids, and how many prompts (0 or 1) and responses (0 to 2) were cut."""
        prompt, replies = self._plain(row, positions) if self._text is None else self._chat(row, positions)
        if not prompt:
            raise UserError(f"{row.source}: the prompt has no tokens")
        if self._bos is not None and prompt[:2] == [self._bos] * 2:
            raise UserError(f"{row.source}: {self._setting}: the prompt starts with {self.tokenizer.bos_token} twice")
        prompt, prompt_cut = self._cut_prompt(prompt, max_length, max_prompt_length)
        room = max_length - len(prompt)
        if room < 1:
            raise UserError(f"{row.source}: the prompt's {len(prompt)} tokens fill data.max_length={max_length}")
        ended = [self._end(reply.ids) for reply in replies]
        ids = [np.array(reply[:room], dtype=np.int32) for reply in ended]
        if len(ids) == 2 and np.array_equal(ids[0], ids[1]):
            raise UserError(f"{row.source}: chosen and rejected have the same {len(ids[0])} token ids")
        cut = sum(len(reply) > room for reply in ended)
        prompt_ids = np.array(prompt, dtype=np.int32)
        rejected_ids = ids[1] if len(ids) == 2 else None
        sides = zip(replies, ended, strict=True) if positions else ()
        read = [state_positions(reply, len(end))[: room + 1] for reply, end in sides]
        tokenized = Tokenized(
            prompt_ids=prompt_ids,
            chosen_ids=ids[0],
            rejected_ids=rejected_ids,
            pair_id=_pair_id(prompt_ids, ids[0], rejected_ids),
            source=row.source,
            truncated=prompt_cut or cut > 0,
            chosen_reward=row.chosen_reward,
            rejected_reward=row.rejected_reward,
            margin=row.margin,
            chosen_positions=read[0] if read else None,
            rejected_positions=read[1] if len(read) == 2 else None,
        )
        return tokenized, int(prompt_cut), cut

    def _plain(self, row: Row, positions: bool = False) -> tuple[list[int], list[Reply]]:
        texts = [text for text in (row.plain_chosen, row.plain_rejected) if text is not None]
        head, prompt = row.plain_prompt, self._ids(row.plain_prompt)
        wholes = [head + text for text in texts]
        spans = find_texts(wholes, texts, head) if positions else None
        return self._lead + prompt, self._continue(head, prompt, wholes, spans)

    def _chat(self, row: Row, positions: bool) -> tuple[list[int], list[Reply]]:
        where = f"{row.source}: {self._setting}"
        prompt = self._render(row.messages, True, row.source)
        texts = [text for text in (row.chosen, row.rejected) if text is not None]
        wholes = [self._whole(row, text) for text in texts]
        if not all(whole.startswith(prompt) for whole in wholes):
            raise UserError(
                f"{where}: the prompt with its generation prompt is not how the whole conversation starts, so the "
                "response cannot be told from it"
            )
        spans = find_texts(wholes, texts, prompt, self._whole(row, PROBE), where) if positions else None
        ids = self._ids(prompt)
        return ids, self._continue(prompt, ids, wholes, spans)

    def _whole(self, row: Row, reply: str) -> str:
        return self._render((*row.messages, {"role": "assistant", "content": reply}), False, row.source)

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
        end = len(ids)
        while end and ids[end - 1] not in self._end_ids and not self.tokenizer.decode([ids[end - 1]]).strip():
            end -= 1
        if end and ids[end - 1] in self._end_ids:
            return ids[:end]
        return [*ids, self._eos]

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

    def _render(self, messages: Sequence[Turn], generation_prompt: bool, source: str) -> str:
        try:
            return self._apply(messages, generation_prompt)
        except Exception as error:  # a template is a program: it refuses with raise_exception or fails in any way
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{source}: {self._setting} refuses the conversation: {reason}") from error

    def _apply(self, messages: Sequence[Turn], generation_prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._text,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            strftime_now=TEMPLATE_DATE.strftime,
        )

    def _check_syntax(self) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError

        if self._text is None:
            return
        try:
            self._apply([{"role": "user", "content": "a"}], True)
        except TemplateSyntaxError as error:
            raise UserError(f"{self._setting}: line {error.lineno}: {error.message}") from error
        except (TemplateError, TypeError, ValueError, LookupError):
            return  # it may want other turns than this one; real rows will tell, by name


def _template_text(tokenizer: Any, setting: str, key: str) -> tuple[str, str | None]:
    """(name, template text or None for the plain transcript) of a setting of `key`."""
    if setting == "plain" or (setting == "auto" and not tokenizer.chat_template):
        return "plain", None
    if setting in ("auto", "tokenizer"):
        if not tokenizer.chat_template:
            raise UserError(f"{key}=tokenizer: the tokenizer has no chat template; give a jinja file or plain")
        try:
            return "tokenizer", tokenizer.get_chat_template()
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{key}={setting}: {reason}") from error
    if setting in BUILT_IN:
        return setting, _built_in(tokenizer, setting, key)
    try:
        return setting, Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = OWN if setting.endswith(".jinja") else NAMED  # a file was meant
        raise UserError(f"{key}={setting} is none of {', '.join(names)} and no readable jinja file") from error


def _built_in(tokenizer: Any, name: str, key: str) -> str:
    vocabulary = tokenizer.get_vocab() if BUILT_IN[name] else {}
    if missing := [token for token in BUILT_IN[name] if token not in vocabulary]:
        raise UserError(f"{key}={name}: the tokenizer has no {missing[0]}, which this template is made of")
    return (package_folder("conf") / "chat_template" / f"{name}.jinja").read_text(encoding="utf-8")


def _pair_id(prompt: np.ndarray, chosen: np.ndarray, rejected: np.ndarray | None) -> str:
    """Lengths (int64, -1 for no rejected response), then ids (int32), all little-endian."""
    parts = [prompt, chosen, np.empty(0, dtype=np.int32) if rejected is None else rejected]
    lengths = np.array([len(prompt), len(chosen), -1 if rejected is None else len(rejected)], dtype="<i8")
    data = lengths.tobytes() + b"".join(part.astype("<i4").tobytes() for part in parts)
    return hashlib.sha256(data).hexdigest()[:32]


def tokenize_rows(
    rows: Iterable[Row],
    template: Template,
    *,
    max_length: int,
    max_prompt_length: int | None,
    on_bad_row: str = "error",
    positions: bool = False,
) -> tuple[list[Tokenized], TokenizeReport]:
    """Encode `rows` in order; `positions` as in `Template.encode`.

    Raises:
        UserError: the first bad row if `on_bad_row` is "error"; with "skip", nothing but bad rows; for positions, a
            slow tokenizer.
    """
    if positions:
        check_offsets(template.tokenizer)
    if on_bad_row not in ("error", "skip"):
        raise UserError(f"data.on_bad_row={on_bad_row} is none of error, skip")
    kept: list[Tokenized] = []
    report = TokenizeReport()
    for row in rows:
        try:
            tokenized, prompts_cut, responses_cut = template._encode(row, max_length, max_prompt_length, positions)
        except UserError as error:
            if on_bad_row == "error":
                raise
            report.bad.append(str(error))
            continue
        kept.append(tokenized)
        report.prompts_truncated += prompts_cut
        report.responses_truncated += responses_cut
    if report.bad and not kept:
        raise UserError(f"each of the {len(report.bad)} rows is bad; the first: {report.bad[0]}")
    report.pairs = len(kept)
    return kept, report
