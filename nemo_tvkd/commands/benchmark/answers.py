"""Answers of a causal language model to conversations, in batches; what is answered survives a kill."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nemo_tvkd.commands.benchmark.models import positions
from nemo_tvkd.commands.benchmark.prompts import Answers, Conversation, as_jsonl, read_lines
from nemo_tvkd.data.chat_template import TEMPLATE_DATE
from nemo_tvkd.errors import UserError, one_line
from nemo_tvkd.files import write_result

GREEDY = 1e-4
"""Temperatures below are greedy, as in FastChat."""


class Writer:
    """A model that continues chats, with its tokenizer's template and its generation config's end tokens."""

    def __init__(self, model: Any, tokenizer: Any, max_new_tokens: int) -> None:
        self.model, self.tokenizer, self.max_new_tokens = model, tokenizer, max_new_tokens
        self.positions = positions(model.config)
        settings = model.generation_config
        if settings.eos_token_id is None:
            settings.eos_token_id = tokenizer.eos_token_id
        ends = settings.eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])
        # Where a model has no padding token any id will do: padding is masked, and answers are cut at their end.
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.ends - {None}, default=0)

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens an answer may have: max_new_tokens, or less where the model's positions end."""
        return min(self.max_new_tokens, self.positions - len(prompt))

    def write(self, prompts: Sequence[list[int]], temperature: float) -> list[str]:
        """An answer to each prompt, which must leave room for one.

        Padded on the left and masked: an answer does not depend on the others. Sampling (of one prompt, or it would)
        starts from the same seed every time, as in FastChat.
        """
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        torch.manual_seed(0)
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=max(map(self.room, prompts)),
                pad_token_id=self.pad,
                **(greedy if temperature < GREEDY else {"do_sample": True, "temperature": temperature}),
            )
        rows = made[:, width:].tolist()
        return [self._text(row[: self.room(prompt)]) for row, prompt in zip(rows, prompts, strict=True)]

    def _text(self, ids: list[int]) -> str:
        end = next((place for place, token in enumerate(ids) if token in self.ends), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


def template_ids(tokenizer: Any, messages: list[dict[str, str]], generation_prompt: bool, source: str) -> list[int]:
    """A conversation as token ids by a tokenizer's own chat template.

    Raises:
        UserError: the template refuses it; names `source`.
    """
    try:
        text = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            strftime_now=TEMPLATE_DATE.strftime,  # answers must not depend on the day
        )
    except Exception as error:  # a template is a program: it refuses with raise_exception or fails in any way
        refused = f"{source}: the chat template of {tokenizer.name_or_path} refuses it"
        raise UserError(f"{refused}: {one_line(error)}") from error
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer(
    asked: Sequence[Conversation], get_writer: Callable[[], Writer], batch_size: int, file: Path, say: Callable
) -> Answers:
    """The answers to all turns, in order; those that `file` has from before are taken from there.

    Args:
        get_writer: loads the model, if anything is left to be answered.
        file: JSON lines with `conversation`, `turn` and `answer`; answers are added as they come.

    Raises:
        UserError: a question that fills the model's positions by itself; names its row. A later turn that finds no
            room is answered by an empty text.
    """
    rows = read_lines(file)
    done: dict[tuple[int, int], str] = {(row["conversation"], row["turn"]): row["answer"] for row in rows}
    write_result(file, as_jsonl(rows))  # without half a line at the end
    pace = _Pace(sum(len(one.turns) for one in asked), len(done), say)
    with file.open("a", encoding="utf-8") as stream:
        for turn in range(max(len(one.turns) for one in asked)):
            left = [i for i, one in enumerate(asked) if turn < len(one.turns) and (i, turn) not in done]
            for some, texts in _turn(asked, left, turn, done, get_writer, batch_size):
                done |= {(i, turn): text for i, text in zip(some, texts, strict=True)}
                stream.write(as_jsonl([{"conversation": i, "turn": turn, "answer": done[i, turn]} for i in some]))
                stream.flush()
                pace.advance(len(some))
    return [[done[i, turn] for turn in range(len(one.turns))] for i, one in enumerate(asked)]


def _turn(
    asked: Sequence[Conversation],
    left: list[int],
    turn: int,
    done: dict[tuple[int, int], str],
    get_writer: Callable[[], Writer],
    batch_size: int,
) -> Iterator[tuple[list[int], list[str]]]:
    """Answers to one turn of the conversations `left`, a batch at a time."""
    if not left:
        return
    writer = get_writer()
    before = {i: [done[i, earlier] for earlier in range(turn)] for i in left}
    prompts = {i: template_ids(writer.tokenizer, asked[i].messages(before[i]), True, asked[i].source) for i in left}
    full = [i for i in left if writer.room(prompts[i]) < 1]
    if full and turn == 0:
        size = len(prompts[full[0]])
        raise UserError(f"{asked[full[0]].source}: its {size} tokens fill the model's {writer.positions} positions")
    if full:
        yield full, [""] * len(full)
    ordered = sorted((i for i in left if i not in set(full)), key=lambda i: (len(prompts[i]), i))
    greedy = [i for i in ordered if asked[i].temperature < GREEDY]
    batches = [greedy[start : start + batch_size] for start in range(0, len(greedy), batch_size)]
    batches += [[i] for i in ordered if asked[i].temperature >= GREEDY]
    for some in batches:
        yield some, writer.write([prompts[i] for i in some], asked[some[0]].temperature)


class _Pace:
    """A line now and then: answers so far and the time left."""

    def __init__(self, total: int, before: int, say: Callable) -> None:
        self.total, self.before, self.say = total, before, say
        self.done, self.start, self.shown = before, time.perf_counter(), 0.0

    def advance(self, answers: int) -> None:
        self.done += answers
        now = time.perf_counter()
        if now - self.shown < 10 and self.done < self.total:
            return
        self.shown = now
        left = (self.total - self.done) * (now - self.start) / (self.done - self.before)
        self.say(f"answered {self.done} of {self.total}  {time.strftime('%H:%M:%S', time.gmtime(left))} left")
