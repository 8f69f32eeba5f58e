"""data.assistant_turns: ids and masks of whole conversations, written by hand, with the real tokenizers.

Independent references: bare tiktoken and sentencepiece, which know neither templates nor this package.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TURNS, conversation, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.records import row_from_record
from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError

Parts = list[tuple[list[int], bool, str]]
"""A conversation's parts: their ids, whether they are trained, and the text they stand for."""

START, END, EOT, BREAK = 128006, 128007, 128009, 271
LLAMA3: Parts = [
    ([128000, START, 9125, END, BREAK, 3513, 10015, 13, EOT], False, "system\n\nBe brief."),
    ([START, 882, END, BREAK, 13347, EOT], False, "user\n\nHi"),
    ([START, 78191, END, BREAK], False, "assistant\n\n"),
    ([9642, 30, EOT], True, "Yes?"),
    ([START, 882, END, BREAK, 17, 10, 17, EOT], False, "user\n\n2+2"),
    ([START, 78191, END, BREAK], False, "assistant\n\n"),
    ([28070, 13, EOT], True, "Four."),
    ([START, 882, END, BREAK, 2948, 8, EOT], False, "user\n\n(a)"),
    ([START, 78191, END, BREAK], False, "assistant\n\n"),
    ([1921, 8, EOT], True, "(b)"),
]
MISTRAL: Parts = [
    (
        [1, 733, 16289, 28793, 1739, 6817, 28723, 13, 13, 23809, 733, 28748, 16289, 28793],
        *(False, "[INST] Be brief.\n\nHi [/INST]"),
    ),
    ([5592, 28804, 2], True, "Yes?"),
    ([733, 16289, 28793, 28705, 28750, 28806, 28750, 733, 28748, 16289, 28793], False, "[INST] 2+2 [/INST]"),
    ([9611, 28723, 2], True, "Four."),
    ([733, 16289, 28793, 325, 28708, 28731, 733, 28748, 16289, 28793], False, "[INST] (a) [/INST]"),
    ([325, 28726, 28731, 2], True, "(b)"),
]
LLAMA3_PLAIN: Parts = [  # "?\n\n" and ".\n\n" begin in an answer and belong to it; the end token ends the last one
    ([128000, 3513, 10015, 382, 35075, 25, 21694, 271, 72803, 25], False, "Be brief.\n\nHuman: Hi\n\nAssistant:"),
    ([7566, 1980], True, " Yes?\n\n"),
    ([35075, 25, 220, 17, 10, 17, 271, 72803, 25], False, "Human: 2+2\n\nAssistant:"),
    ([13625, 382], True, " Four.\n\n"),
    ([35075, 25, 320, 64, 696, 72803, 25], False, "Human: (a)\n\nAssistant:"),
    ([320, 65, 8, 128001], True, " (b)"),
]
PLAIN_HEAD = [1, 1739, 6817, 28723, 13, 13, 28769, 6366, 28747, 15359, 13, 13, 7226, 11143, 28747]
HUMAN, ASSISTANT = [13, 13, 28769, 6366, 28747], [13, 13, 7226, 11143, 28747]
MISTRAL_PLAIN: Parts = [
    (PLAIN_HEAD, False, ""),
    ([5592, 28804], True, ""),
    ([*HUMAN, 28705, 28750, 28806, 28750, *ASSISTANT], False, ""),
    ([9611, 28723], True, ""),
    ([*HUMAN, 325, 28708, 28731, *ASSISTANT], False, ""),
    ([325, 28726, 28731, 2], True, ""),
]
CASES = {
    "llama3": ("llama", "llama3", LLAMA3),
    "mistral": ("mistral", "mistral", MISTRAL),
    "llama3 plain": ("llama", "plain", LLAMA3_PLAIN),
    "mistral plain": ("mistral", "plain", MISTRAL_PLAIN),
}


@pytest.fixture(scope="module")
def by_name(llama: Any, mistral: Any) -> dict[str, Template]:
    tokenizers = {"llama": llama, "mistral": mistral}
    return {name: Template(tokenizers[which], chat) for name, (which, chat, _) in CASES.items()}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, by_name: dict[str, Template]) -> tuple[Template, Parts]:
    return by_name[request.param], CASES[request.param][2]


def ids_of(parts: Parts) -> list[int]:
    return [i for ids, _, _ in parts for i in ids]


def mask_of(parts: Parts) -> list[bool]:
    return [trained for ids, trained, _ in parts for _ in ids]


# --- ids and masks written by hand ------------------------------------------------------------------------------------


def test_the_last_turn(case: tuple[Template, Parts]) -> None:
    template, parts = case
    made = template.encode(conversation(*TURNS), 200, None)
    assert made.prompt_ids.tolist() == ids_of(parts[:-1])
    assert made.chosen_ids.tolist() == parts[-1][0]
    assert made.chosen_mask is None


def test_all_turns(case: tuple[Template, Parts]) -> None:
    template, parts = case
    first = next(i for i, part in enumerate(parts) if part[1])
    made = template.encode(conversation(*TURNS), 200, None, turns="all")
    assert made.prompt_ids.tolist() == ids_of(parts[:first])
    assert made.chosen_ids.tolist() == ids_of(parts[first:])
    assert made.chosen_mask is not None
    assert made.chosen_mask.tolist() == mask_of(parts[first:])
    assert not made.truncated


def test_one_answer_is_the_same_either_way(case: tuple[Template, Parts]) -> None:
    row = conversation(*TURNS[:3])
    last, every = (case[0].encode(row, 200, None, turns=turns) for turns in ("last", "all"))
    assert last.prompt_ids.tolist() == every.prompt_ids.tolist()
    assert last.chosen_ids.tolist() == every.chosen_ids.tolist()
    assert last.pair_id == every.pair_id
    assert every.chosen_mask is not None
    assert every.chosen_mask.all()


def test_the_hand_written_ids_are_bare_tiktokens(llama_file: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    # Llama 3's own split of a text into words
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    special = {"<|begin|>": 128000, "<|end_of_text|>": 128001, "<|start|>": START, "<|end|>": END, "<|eot|>": EOT}
    ranks = load_tiktoken_bpe(llama_file)
    bare = tiktoken.Encoding(name="llama3", pat_str=words, mergeable_ranks=ranks, special_tokens=special)
    marks = set(special.values())
    for ids, _, text in LLAMA3:
        assert bare.decode([i for i in ids if i not in marks]) == text
    written = "".join("".join(bare.decode(ids)) for ids, _, _ in LLAMA3)
    assert bare.encode(written, allowed_special="all") == ids_of(LLAMA3)
    whole = "".join(text for _, _, text in LLAMA3_PLAIN)
    assert bare.encode(f"<|begin|>{whole}<|end_of_text|>", allowed_special="all") == ids_of(LLAMA3_PLAIN)


def test_the_hand_written_ids_are_bare_sentencepieces(mistral_file: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    bare = sentencepiece.SentencePieceProcessor(model_file=mistral_file)
    for ids, answer, text in MISTRAL:
        assert bare.encode(text) == (ids[:-1] if answer else ids[ids[0] == 1 :])
    plain = "".join(text for _, _, text in LLAMA3_PLAIN)
    assert [1, *bare.encode(plain), 2] == ids_of(MISTRAL_PLAIN)


# --- any conversation -------------------------------------------------------------------------------------------------

words = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn"), exclude_characters="<>|[]:") | st.just("\n"),
    max_size=20,
).map(lambda text: f"q{text}.")
"""Texts without marks, that templates do not trim to nothing."""
talks = st.tuples(
    st.lists(words, max_size=1), st.lists(st.tuples(words, words), min_size=1, max_size=4), st.sampled_from([*CASES])
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(talks)
def test_what_is_trained_spells_the_answers(
    by_name: dict[str, Template], talk: tuple[list[str], list[tuple[str, str]], str]
) -> None:
    """And nothing but them, with their end tokens; the conversation's tokens are those that "last" reads."""
    system, turns, name = talk
    template = by_name[name]
    asked = [turn for pair in turns for turn in zip(("user", "assistant"), pair, strict=True)]
    row = conversation(*(("system", text) for text in system), *asked)
    last, every = (template.encode(row, 4096, None, turns=turns) for turns in ("last", "all"))
    assert [*every.prompt_ids, *every.chosen_ids] == [*last.prompt_ids, *last.chosen_ids]
    end = {"llama3": "<|eot_id|>", "mistral": "</s>"}.get(name, "")
    found = trained(template.tokenizer, every)
    if not end:  # a plain transcript ends the last answer alone
        found[-1] = found[-1].removesuffix(template.tokenizer.eos_token)
    assert [text.strip() for text in found] == [f"{answer.strip()}{end}" for _, answer in turns]


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_a_long_conversation_loses_its_end(llama: Any) -> None:
    template, row, ids, mask = Template(llama, "llama3"), conversation(*TURNS), ids_of(LLAMA3[3:]), mask_of(LLAMA3[3:])
    for room in range(1, len(ids) + 1):
        made = template.encode(row, 19 + room, None, turns="all")
        assert made.chosen_ids.tolist() == ids[:room]
        assert made.chosen_mask is not None
        assert made.chosen_mask.tolist() == mask[:room]
        assert made.truncated == (room < len(ids))
    with pytest.raises(UserError, match=r"^f:1: the prompt's 19 tokens fill data\.max_length=19"):
        template.encode(row, 19, None, turns="all")


def test_a_long_first_question_keeps_its_end(llama: Any) -> None:
    made = Template(llama, "llama3").encode(conversation(*TURNS), 200, 5, turns="all")
    assert made.prompt_ids.tolist() == [128000, START, 78191, END, BREAK]
    assert made.chosen_ids.tolist() == ids_of(LLAMA3[3:])
    assert made.chosen_mask is not None
    assert made.chosen_mask.tolist() == mask_of(LLAMA3[3:])


def test_no_trained_token_left(mistral: Any) -> None:
    """An answer of nothing has no token in a plain transcript."""
    record = {"chosen": "\n\nHuman: Hi\n\nAssistant:\n\nHuman: No\n\nAssistant: Yes"}
    row, template = row_from_record(record, "f:7", False), Template(mistral, "plain")
    made = template.encode(row, 100, None, turns="all")
    assert trained(mistral, made) == ["Yes</s>"]
    with pytest.raises(UserError, match=r"^f:7: no token of an assistant's turn fits data\.max_length=16$"):
        template.encode(row, 16, None, turns="all")
    kept, report = tokenize_rows(
        [row, conversation(*TURNS)], template, max_length=16, max_prompt_length=None, on_bad_row="skip", turns="all"
    )
    assert [made.source for made in kept] == ["f:1"]
    assert (report.responses_truncated, len(report.bad)) == (1, 1)


# --- tokens that span two turns, and tokenizers that cannot say so ----------------------------------------------------


def test_a_token_belongs_to_the_turn_it_begins_in(templates: dict[str, Template], mistral: Any) -> None:
    """Mistral v0.1's template writes no space before an answer, and "](" is one token: the prompt's, but for the first
    answer, which is read by itself as it is where it is the last."""
    turns = [("user", "Hi"), ("assistant", "(a)"), ("user", "Hi"), ("assistant", "(b)")]
    made = templates["mistral v0.1"].encode(conversation(*turns), 100, None, turns="all")
    pieces = mistral.convert_ids_to_tokens(made.chosen_ids.tolist())
    assert pieces[:4] == ["▁(", "a", ")", "</s>"]
    assert pieces[-5:] == ["INST", "](", "b", ")", "</s>"]
    assert made.chosen_mask is not None
    assert made.chosen_mask[:4].all()
    assert made.chosen_mask[-5:].tolist() == [False, False, True, True, True]
    assert mistral.decode(made.prompt_ids) == "<s> [INST] Hi [/INST]"


@pytest.fixture(scope="module")
def slow(mistral_file: str) -> Any:
    from transformers import LlamaTokenizer

    made = LlamaTokenizer(vocab_file=mistral_file, legacy=True)
    assert not made.is_fast
    return made


@pytest.mark.parametrize(("chat", "parts"), [("mistral", MISTRAL), ("plain", MISTRAL_PLAIN)])
def test_a_slow_tokenizer(slow: Any, chat: str, parts: Parts) -> None:
    made = Template(slow, chat).encode(conversation(*TURNS), 200, None, turns="all")
    assert [*made.prompt_ids, *made.chosen_ids] == ids_of(parts)
    assert made.chosen_mask is not None
    assert made.chosen_mask.tolist() == mask_of(parts[1:])


def test_a_slow_tokenizer_cannot_tell_where_a_token_spans_two_turns(slow: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    turns = [("user", "Hi"), ("assistant", " Yes</s>"), ("user", "[No]"), ("assistant", " So")]
    template = Template(slow, str(path))
    made = template.encode(conversation(*turns), 100, None, turns="all")
    assert trained(slow, made) == [" Yes</s>", " So</s>"]
    turns[-1] = ("assistant", "(b)")  # "](" is one token
    with pytest.raises(UserError, match=r"^f:1: .*a slow tokenizer, without character offsets, cannot tell.*=last "):
        template.encode(conversation(*turns), 100, None, turns="all")


def test_a_tokenizer_that_leaves_white_space_out_of_its_offsets(llama: Any) -> None:
    """The "\\n\\n" before an answer then seems to stand behind it; the mask is the same."""
    from tokenizers import processors  # type: ignore[import-untyped]

    trimming = copy.deepcopy(llama)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    for chat, parts in (("llama3", LLAMA3[3:]), ("plain", LLAMA3_PLAIN[1:])):
        made = Template(trimming, chat).encode(conversation(*TURNS), 200, None, turns="all")
        assert made.chosen_ids.tolist() == ids_of(parts)
        assert made.chosen_mask is not None
        assert made.chosen_mask.tolist() == mask_of(parts)


def test_an_answer_that_opens_a_conversation_is_read_and_not_trained(llama: Any, mistral: Any) -> None:
    row = conversation(("assistant", "Hello"), *TURNS[1:3])
    assert trained(llama, Template(llama, "llama3").encode(row, 100, None, turns="all")) == ["Yes?<|eot_id|>"]
    made = Template(mistral, "plain").encode(row, 100, None, turns="all")
    assert trained(mistral, made) == ["Yes?</s>"]
    assert mistral.decode(made.prompt_ids).endswith("Assistant: Hello\n\nHuman: Hi\n\nAssistant:")
