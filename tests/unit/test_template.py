"""Ids and response masks written by hand, with the real Mistral v1 and Llama 3 tokenizers (from PyPI packages).

Independent reference: mistral_common.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_templates import LLAMA3_CHAT, LLAMA_PROMPT, MISTRAL_PROMPT, ids, pair

from nemo_tvkd.data.records import row_from_record
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenizer import load_tokenizer
from nemo_tvkd.errors import UserError


def jinja(tokenizer: Any, text: str, tmp_path: Path, **more: Any) -> Template:
    path = tmp_path / "t.jinja"
    path.write_text(text)
    return Template(tokenizer, str(path), **more)


# --- chat templates -----------------------------------------------------------------------------------------------


def test_mistral_chat_ids(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(pair(), 100, None)
    assert ids(made) == (MISTRAL_PROMPT, [5592, 2], [1770, 2])  # ▁Yes </s>, ▁No </s>
    assert (made.source, made.truncated) == ("f:1", False)


def test_mistral_chat_is_mistral_commons(templates: dict[str, Template]) -> None:
    """The reference encodes each piece by itself; the template's text, read in one go, must give the same ids."""
    messages = pytest.importorskip("mistral_common.protocol.instruct.messages")
    request = pytest.importorskip("mistral_common.protocol.instruct.request")
    tokenizers = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "héllo 世界 🤖")]
    kinds = {"user": messages.UserMessage, "assistant": messages.AssistantMessage}
    asked = request.ChatCompletionRequest(messages=[kinds[role](content=text) for role, text in turns])
    expected = tokenizers.MistralTokenizer.v1().encode_chat_completion(asked).tokens
    prompt = [{"role": role, "content": text} for role, text in turns]
    row = row_from_record({"prompt": prompt, "chosen": "a", "rejected": "b"}, "f:1", True)
    assert templates["mistral"].encode(row, 100, None).prompt_ids.tolist() == expected


def test_llama3_chat_ids(templates: dict[str, Template]) -> None:
    """The turn's own end token counts, though the tokenizer's EOS is another one: none is appended."""
    made = templates["llama"].encode(pair(), 100, None)
    assert ids(made) == (LLAMA_PROMPT, [9642, 128009], [2822, 128009])


def test_what_the_template_prints_behind_the_end_is_cut(templates: dict[str, Template], mistral: Any) -> None:
    prompt, chosen, rejected = ids(templates["mistral v0.1"].encode(pair(), 100, None))
    assert prompt == MISTRAL_PROMPT
    assert mistral.convert_ids_to_tokens(chosen) == ["Yes", "</s>"]
    assert mistral.convert_ids_to_tokens(rejected) == ["No", "</s>"]


def test_response_that_would_change_the_prompts_ids_is_read_by_itself(
    templates: dict[str, Template], mistral: Any
) -> None:
    """ "](" is one token of Mistral's: read in place, the prompt of one response would not be the other's."""
    prompt, chosen, rejected = ids(templates["mistral v0.1"].encode(pair(chosen="(a)", rejected="No"), 100, None))
    assert prompt == MISTRAL_PROMPT
    assert mistral.convert_ids_to_tokens(chosen) == ["▁(", "a", ")", "</s>"]
    assert mistral.convert_ids_to_tokens(rejected) == ["▁No", "</s>"]


@pytest.mark.parametrize("name", ["mistral", "llama", "mistral plain", "llama plain"])
def test_masks_cover_multi_byte_text(name: str, templates: dict[str, Template]) -> None:
    template = templates[name]
    row = pair("世界?", "héllo 🤖 — ሰላም", "“no”\n\nnaïve")
    made = template.encode(row, 200, None)
    end = "<|eot_id|>" if name == "llama" else template.tokenizer.eos_token
    for response, text in zip(ids(made)[1:], (row.chosen, row.rejected), strict=True):
        assert template.tokenizer.decode(response).strip() == f"{text}{end}"
    prompt = template.tokenizer.decode(made.prompt_ids, skip_special_tokens=True)
    assert "世界?" in prompt
    assert row.chosen not in prompt


def test_chatml_without_end_and_with_extra_end(llama: Any, tmp_path: Path) -> None:
    """A template that ends in no token the tokenizer calls an end: EOS is appended, or the given id counts."""
    chat = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} ###\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    _, chosen, _ = ids(jinja(llama, chat, tmp_path).encode(pair(), 100, None))
    assert llama.decode(chosen) == " Yes ###\n<|end_of_text|>"
    mark = llama(" ###\n", add_special_tokens=False)["input_ids"]
    assert len(mark) == 1
    _, chosen, _ = ids(jinja(llama, chat, tmp_path, extra_end_ids=mark).encode(pair(), 100, None))
    assert llama.decode(chosen) == " Yes ###\n"


def test_template_that_does_not_start_with_its_prompt(mistral: Any, tmp_path: Path) -> None:
    template = jinja(mistral, "{{ messages | length }}{{ messages[-1]['content'] }}", tmp_path)
    with pytest.raises(
        UserError, match=r"^f:1: data\.chat_template=.*t\.jinja: .*not how the whole conversation starts"
    ):
        template.encode(pair(), 100, None)


@pytest.mark.parametrize("chat", ["{{ bos_token + bos_token + messages[0]['content'] }}", "plain"])
def test_doubled_bos(chat: str, mistral: Any, tmp_path: Path) -> None:
    template = Template(mistral, "plain") if chat == "plain" else jinja(mistral, chat, tmp_path)
    row = replace(pair(), plain_prompt="<s>Hi")
    with pytest.raises(UserError, match=r"^f:1: data\.chat_template=.*: the prompt starts with <s> twice"):
        template.encode(row, 100, None)


def test_template_refuses_a_conversation(templates: dict[str, Template]) -> None:
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    with pytest.raises(
        UserError, match=r"^f:1: data\.chat_template=.* refuses the conversation: Conversation roles must"
    ):
        templates["mistral"].encode(replace(pair(), messages=messages), 100, None)


def test_template_settings(mistral: Any, llama: Any, tmp_path: Path) -> None:
    assert (Template(mistral).name, Template(mistral).fingerprint) == ("plain", "plain")
    with pytest.raises(UserError, match=r"^data\.chat_template=tokenizer: the tokenizer has no chat template"):
        Template(mistral, "tokenizer")
    with pytest.raises(UserError, match=r"^data\.chat_template=nowhere\.jinja is not one of auto, plain, tokenizer"):
        Template(mistral, "nowhere.jinja")
    with pytest.raises(UserError, match=r"^data\.chat_template=.*t\.jinja: line 2: "):
        jinja(mistral, "{{ bos_token }}\n{% if %}", tmp_path)

    llama.save_pretrained(tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(LLAMA3_CHAT)
    chat = load_tokenizer(str(tmp_path / "chat"))
    for setting in ("auto", "tokenizer"):
        template = Template(chat, setting)
        assert template.name == "tokenizer"
        assert template.fingerprint == hashlib.sha256(LLAMA3_CHAT.encode()).hexdigest()
        assert template.encode(pair(), 100, None).prompt_ids.tolist() == LLAMA_PROMPT
    assert jinja(mistral, LLAMA3_CHAT, tmp_path).fingerprint == template.fingerprint
    assert Template(chat, "plain").fingerprint == "plain"


def test_todays_date_is_always_the_same(mistral: Any, tmp_path: Path) -> None:
    """Llama 3.2's template prints the date: ids and the scores bound to them would change overnight."""
    template = jinja(
        mistral, "{{ strftime_now('%d %b %Y') }}{{ messages[1:] | map(attribute='content') | join }}", tmp_path
    )
    assert mistral.decode(template.encode(pair(), 100, None).prompt_ids) == "26 Jul 2024"


# --- plain transcripts --------------------------------------------------------------------------------------------


def test_plain_transcript_ids(templates: dict[str, Template]) -> None:
    row = row_from_record(
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, "f:1", True
    )
    # <s> ▁ \n \n H uman : ▁Hi \n \n Ass istant : | ▁Yes </s>
    prompt = [1, 28705, 13, 13, 28769, 6366, 28747, 15359, 13, 13, 7226, 11143, 28747]
    assert ids(templates["mistral plain"].encode(row, 100, None)) == (prompt, [5592, 2], [1770, 2])
    # <|begin_of_text|> \n\n Human : ␣Hi \n\n Assistant : | ␣Yes <|end_of_text|>
    prompt = [128000, 271, 35075, 25, 21694, 271, 72803, 25]
    assert ids(templates["llama plain"].encode(row, 100, None)) == (prompt, [7566, 128001], [2360, 128001])


def test_plain_strings_and_a_tokenizer_that_adds_eos(mistral_file: str) -> None:
    from transformers import LlamaTokenizerFast

    tokenizer = LlamaTokenizerFast(vocab_file=mistral_file, add_prefix_space=True, legacy=True, add_eos_token=True)
    assert tokenizer("Hi")["input_ids"] == [1, 15359, 2]
    row = row_from_record({"prompt": "Hello", "chosen": " world", "rejected": "\nworld"}, "f:1", True)
    prompt, chosen, rejected = ids(Template(tokenizer, "plain").encode(row, 100, None))
    assert prompt == [1, 22557]
    assert chosen == [1526, 2]
    assert rejected == [13, 9471, 2]


def test_prompt_without_tokens(llama: Any) -> None:
    row = row_from_record({"prompt": "", "chosen": "a", "rejected": "b"}, "f:1", True)
    assert Template(llama, "plain").encode(row, 10, None).prompt_ids.tolist() == [128000]
    template = Template(llama, "plain")
    template._lead = []
    with pytest.raises(UserError, match=r"^f:1: the prompt has no tokens"):
        template.encode(row, 10, None)
