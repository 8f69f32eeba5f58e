"""Where the assistant's turns stand: in the text of a conversation, and among its tokens.

A turn is what the assistant writes: it begins where the template asks for an answer and ends with the end token. In a
plain transcript it begins behind its "Assistant:" and ends where the next "Human:" begins; no end token follows any
answer there but the last. An answer that opens a conversation has no prompt: it is read, and not trained.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from nemo_tvkd.data.align import Reply, Span
from nemo_tvkd.data.fields import Turn
from nemo_tvkd.data.records import MARK, Row
from nemo_tvkd.errors import UserError

INSTEAD = "data.assistant_turns=last trains the last answer alone"


def chat_turns(
    messages: Sequence[Turn], render: Callable[[Sequence[Turn], bool], str], where: str
) -> tuple[str, list[Span]]:
    """A conversation as its template writes it, and the characters of the assistant's turns in it, ends with them.

    Args:
        messages: all turns; the last one is the assistant's.
        render: (turns, whether an answer is asked for) -> text.
        where: the row and its template, for errors.

    Raises:
        UserError: the template writes a turn otherwise once others follow it, so that its place is unknown.
    """
    whole, spans = render(messages, False), []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or not index:
            continue
        asked = render(messages[:index], True)
        answered = render(messages[: index + 1], False) if index + 1 < len(messages) else whole
        if not (whole.startswith(answered) and answered.startswith(asked)):
            part = "the answer" if whole.startswith(asked) else "what stands before the answer"
            raise UserError(
                f"{where}: turn {index + 1}: {part} is not written in the whole conversation as it is where the "
                f"conversation ends there, so this turn's tokens cannot be located: {INSTEAD}"
            )
        spans.append((len(asked), len(answered)))
    return whole, spans


def plain_turns(row: Row) -> tuple[str, list[Span]]:
    """A conversation as a plain transcript, and the characters of the assistant's turns in it.

    Raises:
        UserError: a turn's own text holds a mark, so that the turns cannot be told apart.
    """
    prompt = row.plain_prompt
    last = (len(prompt), len(prompt) + len(row.plain_chosen))
    spoken = [turn["content"].strip() for turn in row.messages if turn["role"] == "assistant"]
    marks = list(MARK.finditer(prompt)) if spoken else []
    spans = [(mark.end(), after.start()) for mark, after in pairwise(marks) if mark[1] == "Assistant"]
    if [prompt[start:end].strip() for start, end in spans] != spoken:
        raise UserError(
            f'{row.source}: the text of a turn has a "Human:" or "Assistant:" mark of its own, so the turns of the '
            f"plain transcript cannot be told apart: {INSTEAD}"
        )
    opens = bool(spoken) and row.messages[0]["role"] == "assistant"
    return prompt + row.plain_chosen, [*spans[opens:], last]


def tokens_before(at: int, reply: Reply, before: list[int], read: Callable[[str], list[int]], where: str) -> int:
    """How many of a reply's tokens begin before character `at` of its text: one that spans `at` belongs to what it
    begins in.

    Args:
        reply: with offsets, unless the tokenizer is a slow one.
        before: what its text begins with, and its ids do not.
        read: text -> ids.

    Raises:
        UserError: a slow tokenizer, without offsets, has a token that spans `at`.
    """
    count = len(reply.ids)
    if at >= len(reply.rendered):
        return count
    starts, ends = np.array(reply.offsets, dtype=np.int64).reshape(-1, 2).T
    index = int(np.argmax(starts >= at)) if (starts >= at).any() else len(starts)
    if 0 < index < len(starts) and ends[index - 1] == at == starts[index]:
        return index
    # Here a token spans `at`, or offsets leave white space out: ids of the text before it know better, if they fit.
    prefix = read(reply.rendered[:at])
    if [*before, *reply.ids][: len(prefix)] == prefix:
        return len(prefix) - len(before)
    if not reply.offsets:
        raise UserError(
            f"{where}: a token spans the place where a turn begins or ends, and a slow tokenizer, without character "
            f"offsets, cannot tell which: {INSTEAD}"
        )
    return index
