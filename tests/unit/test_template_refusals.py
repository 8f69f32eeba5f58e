"""Chat templates that write what no row can be made of, and settings that name none: each is told with what to do.

And those that are odd but right: what they print around an answer is no part of it, and every turn has its mask.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
from bad_input import Fails, World, write_rows
from chat_templates import MISTRAL_CHAT, TURNS, conversation, trained

from nemo_tvkd.config.compose import compose
from nemo_tvkd.data.template import Template
from nemo_tvkd.errors import UserError
from nemo_tvkd.prepare.training import prepare_training

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # every question starts with BOS, as in Llama 2's own
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] | trim + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
REASONING = (  # Qwen 3's and DeepSeek's keep the thoughts of the last answer alone
    "{{ bos_token }}{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '[' + m['role'] + '] ' + text + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
LATE_SYSTEM = (  # Mistral v3's writes the system's text before the last question
    "{{ bos_token }}{% set system = messages[0]['content'] %}{% for m in messages[1:] %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.index0 >= messages | length - 3 %}{{ system + ' ' }}"
    "{% endif %}{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (  # and the date
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ 'You are helpful. ' + strftime_now('%Y') }}{% endif %}"
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
CHAT = TURNS[1:]
ANSWERS = ["Yes?", "Four.", "(b)"]


def jinja(folder: Path, text: str) -> str:
    path = folder / "t.jinja"
    path.write_text(text)
    return str(path)


# --- odd, and right ---------------------------------------------------------------------------------------------------


def test_a_newline_behind_the_end_token(llama: Any, tmp_path: Path) -> None:
    """ChatML's: neither trained nor part of the last answer, but what the next turn stands behind."""
    chatml = copy.deepcopy(llama)
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    template = Template(chatml, jinja(tmp_path, CHATML))
    for row in (conversation(*TURNS), conversation(*CHAT)):
        made = template.encode(row, 200, None, turns="all")
        assert trained(chatml, made) == [f"{answer}<|im_end|>" for answer in ANSWERS]
        assert made.chosen_ids[-1] == chatml.convert_tokens_to_ids("<|im_end|>")
        assert chatml.decode(made.chosen_ids).count("<|im_end|>\n<|im_start|>user\n") == 2


def test_bos_before_every_question(mistral: Any, tmp_path: Path) -> None:
    """Llama 2's format has it so: it is no double one, which would stand twice in a row."""
    made = Template(mistral, jinja(tmp_path, LLAMA2)).encode(conversation(*CHAT), 200, None, turns="all")
    assert [*made.prompt_ids, *made.chosen_ids].count(1) == 3
    assert trained(mistral, made) == [f"{answer} </s>" for answer in ANSWERS]


def test_no_generation_prompt(llama: Any, tmp_path: Path) -> None:
    """The model has to write an answer's header, which then counts to the answer."""
    text = CHATML[: CHATML.index("{% if add")].replace("<|im_end|>", "<|eot_id|>")
    made = Template(llama, jinja(tmp_path, text)).encode(conversation(*CHAT), 200, None, turns="all")
    assert trained(llama, made) == [f"<|im_start|>assistant\n{answer}<|eot_id|>" for answer in ANSWERS]


def test_a_default_system_prompt_and_the_date(mistral: Any, tmp_path: Path) -> None:
    template = Template(mistral, jinja(tmp_path, DEFAULT_SYSTEM))
    made = template.encode(conversation(*CHAT), 200, None, turns="all")
    assert mistral.decode(made.prompt_ids) == "<s> You are helpful. 2024[user] Hi</s> [assistant]"
    assert trained(mistral, made) == [f"{answer}</s>" for answer in ANSWERS]
    assert mistral.decode(template.encode(conversation(*TURNS), 200, None).prompt_ids).startswith("<s> [system] Be")


def test_white_space_that_a_template_trims(llama: Any) -> None:
    row = conversation(*CHAT[:1], ("assistant", " \n Yes?\n\n"), *CHAT[2:])
    assert trained(llama, Template(llama, "llama3").encode(row, 200, None, turns="all")) == [
        f"{answer}<|eot_id|>" for answer in ANSWERS
    ]


def test_answers_that_end_in_no_token(mistral: Any, tmp_path: Path) -> None:
    """The tokenizer's end token stands behind the last answer alone: nothing is put between others' turns."""
    text = "{{ bos_token }}{% for m in messages %}{{ '\n' + m['role'] + ': ' + m['content'] }}{% endfor %}"
    more = "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
    made = Template(mistral, jinja(tmp_path, text + more)).encode(conversation(*CHAT), 200, None, turns="all")
    assert trained(mistral, made) == ["Yes?", "Four.", "(b)</s>"]
    assert made.chosen_ids.tolist().count(2) == 1


# --- refused by row ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "turn"), [(REASONING, 2), (LATE_SYSTEM, 3)], ids=["reasoning", "late system"])
def test_a_template_that_writes_earlier_turns_otherwise(mistral: Any, tmp_path: Path, text: str, turn: int) -> None:
    turns = [(role, f"<think>so</think>{said}" if role == "assistant" else said) for role, said in TURNS]
    row, template = conversation(*turns[text is REASONING :]), Template(mistral, jinja(tmp_path, text))
    with pytest.raises(UserError) as told:
        template.encode(row, 300, None, turns="all")
    what = "the answer" if text is REASONING else "what stands before the answer"
    assert str(told.value) == (
        f"f:1: data.chat_template={tmp_path / 't.jinja'}: turn {turn}: {what} is not written in the whole conversation "
        "as it is where the conversation ends there, so this turn's tokens cannot be located: "
        "data.assistant_turns=last trains the last answer alone"
    )
    assert mistral.decode(template.encode(row, 300, None).chosen_ids).endswith("(b)</s>")


def test_bos_twice_between_two_turns(mistral: Any, tmp_path: Path) -> None:
    twice = Template(mistral, jinja(tmp_path, LLAMA2.replace("eos_token }}", "eos_token + bos_token }}")))
    for turns in ("last", "all"):
        with pytest.raises(
            UserError, match=r"^f:1: data\.chat_template=.*: token 14 and the one after it are both <s>"
        ):
            twice.encode(conversation(*CHAT), 200, None, turns=turns)
    at_start = Template(mistral, jinja(tmp_path, "{{ bos_token }}" + LLAMA2))
    with pytest.raises(UserError, match=r"^f:1: data\.chat_template=.*: the prompt starts with <s> twice"):
        at_start.encode(conversation(*CHAT), 200, None, turns="all")


def test_one_token_for_bos_and_end_may_meet_itself(llama: Any, tmp_path: Path) -> None:
    one = copy.deepcopy(llama)
    one.bos_token = one.eos_token
    made = Template(one, jinja(tmp_path, LLAMA2)).encode(conversation(*CHAT), 200, None, turns="all")
    assert trained(one, made) == [f" {answer} <|end_of_text|>" for answer in ANSWERS]


@pytest.mark.parametrize(("text", "reason"), [(MISTRAL_CHAT, "Conversation roles must"), (GEMMA, "System role not")])
def test_a_template_without_a_system_turn(mistral: Any, tmp_path: Path, text: str, reason: str) -> None:
    template = Template(mistral, jinja(tmp_path, text))
    for turns in ("last", "all"):
        with pytest.raises(UserError) as told:
            template.encode(conversation(*TURNS), 200, None, turns=turns)
        assert str(told.value).startswith(
            f"f:1: data.chat_template={tmp_path / 't.jinja'} refuses the conversation: {reason}"
        )
        assert str(told.value).endswith(
            "; it takes no system turn: the built-in template mistral writes its text before the first question, and "
            "so may a jinja file of yours"
        )
    two = conversation(("user", "a"), ("user", "b"), ("assistant", "c"))
    if text is MISTRAL_CHAT:  # nothing to do with the system
        with pytest.raises(UserError, match=r"refuses the conversation: Conversation roles must alternate \S+$"):
            template.encode(two, 200, None)


def test_a_template_that_needs_tools(mistral: Any, tmp_path: Path) -> None:
    needs = "{{ bos_token }}{% for tool in tools %}{{ tool.name }}{% endfor %}{{ messages[-1]['content'] }}"
    with pytest.raises(UserError) as told:
        Template(mistral, jinja(tmp_path, needs)).encode(conversation(*CHAT), 200, None)
    assert str(told.value).endswith(
        "refuses the conversation: 'NoneType' object is not iterable; it reads tools, which rows do not have: give a "
        "template without them"
    )


def test_a_transcript_with_marks_of_its_own(mistral: Any) -> None:
    turns = [("user", "Hi"), ("assistant", "Yes\n\nHuman: no"), ("user", "Hi"), ("assistant", "So")]
    template = Template(mistral, "plain")
    with pytest.raises(UserError, match=r'^f:1: the text of a turn has a "Human:" or "Assistant:" mark of its own'):
        template.encode(conversation(*turns), 100, None, turns="all")
    assert mistral.decode(template.encode(conversation(*turns), 100, None).chosen_ids) == "So</s>"


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"), [("lama3", "llama3"), ("Mistral", "mistral"), ("tokeniser", "tokenizer"), ("chatml", "")]
)
def test_an_unknown_name(mistral: Any, name: str, near: str) -> None:
    with pytest.raises(UserError) as told:
        Template(mistral, name)
    assert str(told.value) == (
        f"data.chat_template={name} is not one of auto, plain, tokenizer, llama3, mistral nor a jinja file"
        + (f"; did you mean {near}?" if near else "")
    )


def test_a_tokenizer_with_several_templates(mistral: Any) -> None:
    several = copy.deepcopy(mistral)
    several.chat_template = {"default": MISTRAL_CHAT, "tool_use": "{{ tools[0] }}"}
    for setting in ("auto", "tokenizer"):
        made = Template(several, setting).encode(conversation(*CHAT), 200, None, turns="all")
        assert trained(several, made) == [f"{answer}</s>" for answer in ANSWERS]
    several.chat_template = {"rag": MISTRAL_CHAT, "tool_use": "{{ tools[0] }}"}
    with pytest.raises(UserError) as told:
        Template(several, "auto")
    assert str(told.value) == (
        "data.chat_template: of the tokenizer's chat templates (rag, tool_use) none is named default: save the one "
        "that is meant in a jinja file, and give that"
    )


# --- commands ---------------------------------------------------------------------------------------------------------

TALK = {"messages": [{"role": role, "content": text} for role, text in CHAT]}


@pytest.mark.usefixtures("without_nemo", "no_ranks")
@pytest.mark.parametrize(("turns", "answers"), [("last", None), ("all", 3)])
def test_training_reads_all_turns(
    world: World, tmp_path: Path, turns: str, answers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEMO_TVKD_CACHE", str(tmp_path / "cache"))
    rows = write_rows(tmp_path / "talks.jsonl", [TALK] * 4)
    settings = ["algorithm=sft", f"student.path={world.student}", f"data.assistant_turns={turns}"]
    data = [f"data.train={rows}", f"data.validation={rows}", "trainer.global_batch_size=4"]
    prepared = prepare_training(compose("train", [*settings, *data, f"trainer.output_dir={tmp_path / 'run'}"]))
    for item in (prepared.train[0], prepared.validation[0]):
        mask = item.tokens.chosen_mask
        assert (None if mask is None else sum(mask[1:] & ~mask[:-1]) + mask[0]) == answers


@pytest.mark.usefixtures("without_nemo", "no_ranks")
@pytest.mark.parametrize("algorithm", ["dpo", "tvkd", "reward"])
def test_pairs_differ_in_one_turn(world: World, fails: Fails, algorithm: str) -> None:
    told = fails("train", f"algorithm={algorithm}", f"student.path={world.student}", "data.assistant_turns=all")
    assert told == (
        "data.assistant_turns=all trains every answer of a conversation, with algorithm=sft alone: algorithm="
        f"{algorithm} compares pairs, which differ in the last answer"
    )
