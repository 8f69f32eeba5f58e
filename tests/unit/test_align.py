"""How far states have read a response's text, and which of a teacher's states answers to one of a student's: by hand.

The real tokenizers over random and real texts are in test_align_real_tokenizers.py.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_templates import ids, pair

from nemo_tvkd.data.align import PROBE, Reply, align_states, find_texts, state_positions
from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError

# --- a state's position, from its tokens' offsets -----------------------------------------------------------------


def read(offsets: list[tuple[int, int]], span: tuple[int, int], tokens: int, text: str = "") -> list[int]:
    text = text or " " * max((end for _, end in offsets), default=9)
    made = state_positions(Reply(list(range(len(offsets))), offsets, text, span), tokens)
    assert made.dtype == np.int32
    return made.tolist()


@pytest.mark.parametrize(
    ("offsets", "span", "tokens", "expected"),
    [
        ([(0, 3), (3, 5)], (0, 5), 3, [0, 3, 5, 6]),  # the end token is appended: it has no offsets
        ([(9, 12), (12, 14), (14, 18)], (9, 14), 3, [0, 3, 5, 6]),  # in place, with its end token
        ([(0, 3), (3, 5), (5, 9), (9, 10)], (0, 5), 3, [0, 3, 5, 6]),  # what stands behind the end token is cut
        ([(8, 12), (12, 14)], (9, 14), 3, [0, 3, 5, 6]),  # a space before the text, in the first token
        ([(6, 7), (7, 8), (8, 9), (9, 11)], (9, 11), 5, [0, 0, 0, 0, 2, 3]),  # before it, in tokens of their own
        ([(0, 1), (0, 4), (4, 5)], (0, 5), 4, [0, 0, 4, 5, 6]),  # sentencepiece's own space has a character's offsets
        ([(0, 2), (2, 4), (4, 5), (5, 9)], (0, 2), 4, [0, 2, 2, 2, 3]),  # markers between text and end token
        ([(0, 5)], (1, 3), 2, [0, 2, 3]),  # one token for all of it, and for what stands around it
        ([(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], (0, 3), 6, [0, 1, 1, 1, 2, 3, 4]),  # a character in three pieces
        ([(0, 1), (0, 1), (0, 1)], (0, 1), 4, [0, 0, 0, 1, 2]),  # the same, nothing behind it
        ([(0, 2), (1, 2), (1, 4), (3, 4)], (0, 4), 5, [0, 1, 1, 3, 4, 5]),  # pieces with their neighbours in them
        ([(0, 1), (2, 2), (3, 4)], (0, 4), 4, [0, 1, 2, 4, 5]),  # offsets that leave spaces out
        ([(0, 2), (0, 0), (2, 4)], (0, 4), 4, [0, 0, 0, 4, 5]),  # a token from nowhere is no end of what was read
        ([], (0, 3), 1, [0, 4]),
    ],
)
def test_positions(offsets: list[tuple[int, int]], span: tuple[int, int], tokens: int, expected: list[int]) -> None:
    assert read(offsets, span, tokens) == expected


def test_what_offsets_leave_out() -> None:
    """White space is read with the token behind it; marks, that a normalizer joined to a letter or dropped, before."""
    assert read([(0, 1), (2, 3)], (0, 3), 3, "a b") == [0, 1, 3, 4]
    assert read([(0, 1), (2, 3), (3, 4)], (0, 5), 4, "e\u0301xo\u0302") == [0, 2, 3, 5, 6]
    assert read([(4, 5), (7, 8), (8, 12)], (4, 7), 3, "Q:  o\u0302\u0323 ###") == [0, 3, 3, 4]


def test_positions_never_decrease() -> None:
    assert read([(0, 2), (2, 4), (1, 3), (4, 5)], (0, 5), 5) == [0, 2, 2, 3, 5, 6]


# --- where the text is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "text", "prompt", "probe", "expected"),
    [
        ("Q: a b</s>", " a b\n", "Q:", "", (3, 6)),
        ("Q:assistant: a</s>", "a", "Q:", f"Q:assistant: {PROBE}</s>", (13, 14)),  # not the a of assistant
        ("a Q: a", "a", "a Q:", "", (5, 6)),  # nor the prompt's
        (f"{PROBE}Q:as {PROBE}", PROBE, f"{PROBE}Q:", f"{PROBE}Q:as {PROBE}", (6, 7)),
        ("Q:[b] b", "b", "Q:", f"Q:{PROBE}", (3, 4)),
        ("Q:b", "b", "Q:", f"Q:short: {PROBE}", (2, 3)),  # what it prints before a text depends on the text
        ("Q:b", "b", "Q:", "Q:\\ue000", (2, 3)),
    ],
)
def test_find_texts(whole: str, text: str, prompt: str, probe: str, expected: tuple[int, int]) -> None:
    assert find_texts([whole, whole], [text, text], prompt, probe) == [expected, expected]


def test_text_that_a_template_changes(llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "upper.jinja"
    path.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | upper }}{% endfor %}")
    template = Template(llama, str(path))
    row = pair(chosen="YES", rejected="No")
    assert template.encode(row, 100, None).chosen_positions is None
    with pytest.raises(UserError) as caught:
        template.encode(row, 100, None, positions=True)
    assert str(caught.value) == (
        f"f:1: data.chat_template={path} changes the response's text, so values cannot be aligned by characters"
    )
    rows = [row, replace(pair(chosen="YES", rejected="NO"), source="f:2")]
    kept, report = tokenize_rows(
        rows, template, max_length=100, max_prompt_length=None, on_bad_row="skip", positions=True
    )
    assert [made.source for made in kept] == ["f:2"]
    assert report.bad == [str(caught.value)]


def test_slow_tokenizer(mistral_file: str) -> None:
    """It is no matter of a row: nothing is skipped for it."""
    from transformers import LlamaTokenizer

    template = Template(LlamaTokenizer(mistral_file, legacy=True), "plain")
    assert template.encode(pair(), 100, None).chosen_positions is None
    for on_bad_row in ("error", "skip"):
        with pytest.raises(UserError, match=r"^LlamaTokenizer is a slow tokenizer"):
            tokenize_rows(
                [pair()], template, max_length=9, max_prompt_length=None, on_bad_row=on_bad_row, positions=True
            )
    with pytest.raises(UserError, match=r"^LlamaTokenizer is a slow tokenizer"):
        template.encode(pair(), 100, None, positions=True)


# --- positions of rows --------------------------------------------------------------------------------------------


def both(template: Template, chosen: str, rejected: str = "No", max_length: int = 100) -> tuple[list[int], list[int]]:
    made = template.encode(pair(chosen=chosen, rejected=rejected), max_length, None, positions=True)
    for positions, tokens in zip((made.chosen_positions, made.rejected_positions), ids(made)[1:], strict=True):
        assert positions is not None
        assert positions.dtype == np.int32
        assert len(positions) == len(tokens) + 1
    return made.chosen_positions.tolist(), made.rejected_positions.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "chosen", "expected"),
    [
        ("mistral", "Yes", [0, 3, 4]),  # ▁Yes </s>
        ("mistral v0.1", "Yes", [0, 3, 4]),  # Yes </s>
        ("llama", "Yes", [0, 3, 4]),
        ("mistral plain", "Yes", [0, 3, 4]),
        ("llama plain", "Yes", [0, 3, 4]),
        ("mistral", "  Hi 世 🤖!\n", [0, 0, 2, 3, 4, 5, 5, 5, 5, 6, 7, 7, 8]),  # ▁▁▁ Hi ▁ 世 ▁ F0 9F A4 96 ! 0A </s>
        ("llama", "  Hi 世 🤖!\n", [0, 2, 4, 5, 5, 6, 7, 8]),  # Hi ␣世 ␣F09F A4 96 ! <|eot_id|>
        ("mistral", "🤖", [0, 0, 0, 0, 0, 1, 2]),  # ▁ F0 9F A4 96 </s>
        ("mistral v0.1", "🤖", [0, 0, 0, 0, 1, 2]),
        ("llama", "🤖", [0, 0, 0, 1, 2]),
        ("mistral plain", "e\u0301 שלום", [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # ▁e ◌́ ▁ ש ל ו ם </s>
        ("llama plain", "e\u0301 שלום", [0, 1, 2, 4, 5, 6, 7, 8]),  # ␣e ◌́ ␣ש ל ו+D7 9D: the middle one ends in half a ם
    ],
)
def test_positions_by_hand(name: str, chosen: str, expected: list[int], templates: dict[str, Template]) -> None:
    assert both(templates[name], chosen) == (expected, [0, 2, 3])
    assert both(templates[name], "No", chosen) == ([0, 2, 3], expected)


def test_response_read_by_itself(templates: dict[str, Template]) -> None:
    """ "](" would change the prompt's ids: both responses are read alone, after a space of sentencepiece's."""
    assert both(templates["mistral v0.1"], "(a)", "🤖") == ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0, 1, 2])


def test_cut_response(templates: dict[str, Template]) -> None:
    """Its last state is where it was cut; inside a character that character is not read."""
    prompt = 9
    for tokens, expected in (
        (1, [0, 0]),
        (2, [0, 0, 2]),
        (7, [0, 0, 2, 3, 4, 5, 5, 5]),
        (9, [0, 0, 2, 3, 4, 5, 5, 5, 5, 6]),
    ):
        made = templates["mistral"].encode(pair(chosen="  Hi 世 🤖!"), prompt + tokens, None, positions=True)
        assert made.chosen_positions is not None
        assert made.chosen_positions.tolist() == expected
    assert both(templates["mistral"], "one two", max_length=prompt + 2) == (
        [0, 3, 7],
        [0, 2, 3],
    )  # only </s> is missing


def test_markers_before_the_end_and_an_appended_end(llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}\n{{ m['role'] }}: {{ m['content'] }} ### ###\n{% endfor %}")
    made = Template(llama, str(path)).encode(pair(chosen="a", rejected="ist"), 100, None, positions=True)
    assert llama.decode(made.chosen_ids) == "assistant: a ### ###\n<|end_of_text|>"
    pieces = [llama.decode([i]) for i in made.chosen_ids]
    at = pieces.index(" a")
    assert made.chosen_positions is not None
    assert made.chosen_positions.tolist() == [0] * (at + 1) + [1] * (len(pieces) - at - 1) + [2]
    assert made.rejected_positions is not None
    assert made.rejected_positions[-2:].tolist() == [3, 4]


def test_normalizer_that_joins_and_splits_characters() -> None:
    """ "ﬁ" becomes two characters, "e◌́" one; both have the offsets of what they were made of."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["</s>", "f", "i", "é", "x", "a", " ", "ax"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "x")]))
    backend.normalizer = tokenizers.normalizers.NFKC()
    template = Template(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), "plain")
    row = replace(pair(), plain_prompt="a", plain_chosen="ﬁe\u0301x", plain_rejected="e\u0301ﬁ")
    made = template.encode(row, 10, None, positions=True)
    assert ids(made) == ([5], [1, 2, 3, 4, 0], [3, 1, 2, 0])
    assert made.chosen_positions is not None
    assert made.chosen_positions.tolist() == [0, 0, 1, 3, 4, 5]
    assert made.rejected_positions is not None
    assert made.rejected_positions.tolist() == [0, 2, 2, 3, 4]
    row = replace(pair(), plain_prompt="ai a", plain_chosen="xe\u0301f", plain_rejected="f")
    made = template.encode(row, 10, None, positions=True)
    assert ids(made) == ([5, 2, 6, 5], [4, 3, 1, 0], [1, 0])  # "ax" is one token: read by themselves
    assert made.chosen_positions is not None
    assert made.chosen_positions.tolist() == [0, 1, 3, 4, 5]


def test_example_and_default(templates: dict[str, Template]) -> None:
    made = templates["llama"].encode(pair(rejected=None), 100, None, positions=True)
    assert made.chosen_positions is not None
    assert made.chosen_positions.tolist() == [0, 3, 4]
    assert made.rejected_positions is None
    made = templates["llama"].encode(pair(), 100, None)
    assert (made.chosen_positions, made.rejected_positions) == (None, None)


# --- which state answers to which ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([0, 3, 5, 6], [0, 3, 5, 6], [0, 1, 2, 3]),
        ([0, 3, 5, 6], [0, 1, 2, 3, 4, 5, 6], [0, 3, 5, 6]),
        ([0, 1, 2, 3, 4, 5, 6], [0, 3, 5, 6], [0, 0, 0, 1, 1, 2, 3]),  # a longer token is not read before its end
        ([0, 2, 5, 6], [0, 3, 5, 6], [0, 0, 2, 3]),
        ([0, 0, 0, 4, 5], [0, 0, 4, 5], [0, 1, 1, 2, 3]),  # before the text: the last; after the prompt: the prompt's
        ([0, 4, 5], [0, 0, 4, 4, 4, 5], [0, 4, 5]),  # markers: the one that is about to choose the end token
        ([0, 4, 4, 4, 5], [0, 4, 5], [0, 1, 1, 1, 2]),
        ([0, 1, 1, 1, 2, 3], [0, 1, 1, 2, 3], [0, 2, 2, 2, 3, 4]),  # within a character: the last
        ([0, 2, 4, 5], [0, 1, 3], [0, 1, 2, 2]),  # the teacher's response was cut
        ([0, 2], [0, 1, 3, 4], [0, 1]),  # the student's was
        ([0, 5], [0], [0, 0]),
    ],
)
def test_align(student: list[int], teacher: list[int], expected: list[int]) -> None:
    made = align_states(np.array(student, dtype=np.int32), np.array(teacher, dtype=np.int32))
    assert made.dtype == np.int64
    assert made.tolist() == expected


def test_align_is_its_definition() -> None:
    draw = random.Random(7)
    for _ in range(300):
        length = draw.randint(1, 30)
        student, teacher = ([0, *sorted(draw.choices(range(length + 2), k=draw.randint(0, 40)))] for _ in range(2))
        states = align_states(np.array(student), np.array(teacher)).tolist()
        for t, (state, position) in enumerate(zip(states, student, strict=True)):
            assert state == (0 if t == 0 else max(u for u, at in enumerate(teacher) if at <= position))
        assert states == sorted(states)
