"""A tokenizer with its chat template and lengths: files of pairs in, token ids out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.data.cache import cached_tokens, ids_of
from nemo_tvkd.data.encoding import tokenized_batches
from nemo_tvkd.data.lazy import Lazy
from nemo_tvkd.data.pairs import ReadReport, iter_rows
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenized import Tokenized, TokenizeReport
from nemo_tvkd.data.tokenizer import Dialogue, load_tokenizer, same_vocabulary, set_tokens, tokenizer_fingerprint
from nemo_tvkd.errors import UserError


@dataclass
class Encoder:
    """A tokenizer with its chat template, and the lengths that apply: text in, ids out."""

    tokenizer: Any
    template: Template
    data: Any

    @classmethod
    def build(
        cls,
        checkpoint: Checkpoint,
        tokenizer: str,
        data: Any,
        key: str,
        template: tuple[str, str] | None = None,
        shared: "Encoder | None" = None,
    ) -> "Encoder":
        """The tokenizer that `key` names, or the checkpoint's own.

        Args:
            template: a configuration key and its chat template; data.chat_template when None.
            shared: what data.end_token and data.pad_token are about, where they are not about this one: it takes
                them over if it has the same vocabulary.
        """
        loaded = load_tokenizer(tokenizer or str(checkpoint.hf_dir), key)
        size, width = len(loaded), int(checkpoint.config.vocab_size)
        if size > width and max(loaded.get_vocab().values()) >= width:
            raise UserError(f"{key}: the tokenizer has {size} entries but the model's vocabulary has {width}")
        if shared is None or same_vocabulary(loaded, shared.tokenizer):
            set_tokens(loaded, data.end_token, data.pad_token)
        if loaded.eos_token_id is None:
            raise UserError(
                f"{key}: the tokenizer has no end-of-sequence token to end a response with: "
                + ("give one that has" if shared else "name one by data.end_token")
            )
        name, setting = template or ("data.chat_template", data.chat_template)
        return cls(loaded, Template(loaded, setting, _end_ids(checkpoint), name), data)

    def dialogue(self, tokenizer: str) -> Dialogue | None:
        """What checkpoints must carry of data.chat_template, data.end_token and data.pad_token; None: nothing.

        Args:
            tokenizer: as given to `build`.
        """
        given, end, pad = self.template.given, self.data.end_token, self.data.pad_token
        if given is None and not end and not pad:
            return None
        return Dialogue(tokenizer, given, end, pad, self.template.end_id)

    @property
    def fingerprint(self) -> str:
        return tokenizer_fingerprint(self.tokenizer)

    def read(
        self,
        paths: list[str],
        key: str,
        pairs: bool,
        report: Any = print,
        positions: bool = False,
        require: Mapping[str, str] = MappingProxyType({}),
    ) -> Lazy[Tokenized]:
        """Tokenised rows of `paths`, with their states' `positions` if asked for; says what was read, cut, skipped.

        They are tokenised once, into a file that other processes and later starts read (see `data.cache`).

        `require`: columns that every row must have, and why (see `data.pairs.iter_rows`).
        """
        data, kind = self.data, "pairs" if pairs else "examples"
        reading = {"need_rejected": pairs, "key": key, "on_bad_row": data.on_bad_row, "require": dict(require)}
        encoding = {"max_length": data.max_length, "max_prompt_length": data.max_prompt_length, "positions": positions}
        encoding["turns"] = "last" if pairs else getattr(data, "assistant_turns", "last")
        ingredients = ids_of(self.template, reading=reading, encoding=encoding)
        batches = partial(self._batches, paths, reading, encoding)
        tokenized, made = cached_tokens(ingredients, paths, key, pairs, batches)
        report(
            f"{key}: {len(tokenized)} {kind} from {', '.join(paths)}; template {self.template.name}; cut to length: "
            f"{made['prompts_truncated']} prompts, {made['responses_truncated']} responses; "
            f"skipped: {made['bad_rows']} bad rows"
            + (f", first {made['bad'][0]}" if made["bad"] else "")
            + (f"; left out: {made['left_out']}" if made["left_out"] else "")
        )
        if not tokenized:
            raise UserError(f"{key}: no usable rows in {', '.join(paths)}")
        return tokenized

    def _batches(
        self, paths: list[str], reading: dict[str, Any], encoding: dict[str, Any], report: TokenizeReport
    ) -> Iterator[pa.RecordBatch]:
        """The same rows in batches; `report` is complete when they have ended."""
        read = ReadReport()
        rows = iter_rows(paths, report=read, **reading)
        yield from tokenized_batches(rows, self.template, report, on_bad_row=reading["on_bad_row"], **encoding)
        report.bad, report.left_out = read.bad + report.bad, read.left_out


def _end_ids(checkpoint: Checkpoint) -> list[int]:
    eos = getattr(checkpoint.config, "eos_token_id", None)
    return [int(e) for e in (eos if isinstance(eos, list) else [eos]) if e is not None]


def check_vocabulary(checkpoint: Checkpoint, encoder: Encoder, key: str, owner: str, tokenizer: str = "") -> None:
    """A model that reads the ids of `owner`'s tokenizer (both are configuration keys) must mean the same by them.

    `tokenizer` is what the user says is the model's own, in place of what the checkpoint holds.
    """
    largest = max(encoder.tokenizer.get_vocab().values())
    if largest >= checkpoint.config.vocab_size:
        raise UserError(
            f"{key}: its vocabulary of {checkpoint.config.vocab_size} is smaller than the {largest + 1} token ids it "
            f"would read: it must share {owner}'s tokenizer"
        )
    try:
        own = load_tokenizer(tokenizer or str(checkpoint.hf_dir), key)
    except UserError:
        return  # a checkpoint without a tokenizer: the vocabulary size is all there is to compare
    if not same_vocabulary(own, encoder.tokenizer):
        raise UserError(f"{key}: its tokenizer is not {owner}'s, whose token ids it would read")
