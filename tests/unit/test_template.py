"""Ids and response masks written by hand, with the real Mistral v1 and Llama 3 tokenizers (from PyPI packages).

Independent references: sentencepiece and mistral_common for the one, llama_models' tiktoken for the other.
"""

import hashlib
import importlib.util
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_tvkd.data.pairs import Row, read_rows, row_from_record
from nemo_tvkd.data.template import (
    Template,
    Tokenized,
    load_tokenizer,
    tokenize_rows,
    tokenizer_fingerprint,
)
from nemo_tvkd.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"

MISTRAL_CHAT = (  # Mistral-7B-Instruct-v0.2's
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_CHAT_V01 = (  # Mistral-7B-Instruct-v0.1's prints a space behind </s> and none before the response
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
LLAMA3_CHAT = (  # Meta-Llama-3-8B-Instruct's
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

TEXTS = (
    *("", " ", "Hello world", " Hello", "  \n a", "a  b   c\t d ", "don't 12345 x_y", "\n\nHuman: Hi\n\nAssistant:"),
    *("héllo 世界 🤖\n\nx", "ሰላም", "naïve — “quoted”", "\u200b\ufeff", "def f(x):\n    return x**2\n"),
)


def file_of(package: str, *parts: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed: its tokenizer is what is tested")
    return str(Path(spec.submodule_search_locations[0]).joinpath(*parts))


@pytest.fixture(scope="module")
def mistral_file() -> str:
    return file_of("mistral_common", "data", "tokenizer.model.v1")


@pytest.fixture(scope="module")
def llama_file() -> str:
    return file_of("llama_models", "llama3", "tokenizer.model")


@pytest.fixture(scope="module")
def mistral(mistral_file: str) -> Any:
    return load_tokenizer(mistral_file)


@pytest.fixture(scope="module")
def llama(llama_file: str) -> Any:
    return load_tokenizer(llama_file)


@pytest.fixture(scope="module")
def templates(mistral: Any, llama: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    folder = tmp_path_factory.mktemp("jinja")
    made = {"mistral plain": Template(mistral, "plain"), "llama plain": Template(llama, "plain")}
    for name, text, tokenizer in (
        ("mistral", MISTRAL_CHAT, mistral),
        ("mistral v0.1", MISTRAL_CHAT_V01, mistral),
        ("llama", LLAMA3_CHAT, llama),
    ):
        path = folder / f"{name}.jinja"
        path.write_text(text)
        made[name] = Template(tokenizer, str(path))
    return made


def jinja(tokenizer: Any, text: str, tmp_path: Path, **more: Any) -> Template:
    path = tmp_path / "t.jinja"
    path.write_text(text)
    return Template(tokenizer, str(path), **more)


def pair(ask: str = "Hi", chosen: str = "Yes", rejected: str | None = "No") -> Row:
    prompt = [{"role": "user", "content": ask}]
    return row_from_record({"prompt": prompt, "chosen": chosen, "rejected": rejected}, "f:1", rejected is not None)


def ids(tokenized: Tokenized) -> tuple[list[int], list[int], list[int]]:
    assert tokenized.rejected_ids is not None
    for array in (tokenized.prompt_ids, tokenized.chosen_ids, tokenized.rejected_ids):
        assert array.dtype == np.int32
    return tokenized.prompt_ids.tolist(), tokenized.chosen_ids.tolist(), tokenized.rejected_ids.tolist()


# --- loading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_mistral_ids_are_sentencepieces(text: str, mistral: Any, mistral_file: str) -> None:
    import sentencepiece

    expected = sentencepiece.SentencePieceProcessor(model_file=mistral_file).encode(text)
    assert mistral(text, add_special_tokens=False)["input_ids"] == expected
    assert mistral(text)["input_ids"] == [1, *expected]


def test_mistral_special_ids(mistral: Any) -> None:
    assert (len(mistral), mistral.unk_token_id, mistral.bos_token_id, mistral.eos_token_id) == (32000, 0, 1, 2)


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


def test_mistral_v3_control_tokens_take_no_space() -> None:
    tokenizer = load_tokenizer(file_of("mistral_common", "data", "mistral_instruct_tokenizer_240323.model.v3"))
    # as mistral_common encodes it: <s> [INST] ▁Hi [/INST] ▁Yes </s>
    assert tokenizer("<s>[INST] Hi[/INST] Yes</s>", add_special_tokens=False)["input_ids"] == [1, 3, 16127, 4, 6360, 2]


@pytest.mark.parametrize("text", TEXTS)
def test_llama3_ids_are_tiktokens(text: str, llama: Any) -> None:
    reference = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    expected = reference.encode(text, bos=False, eos=False)
    assert llama(text, add_special_tokens=False)["input_ids"] == expected
    assert llama(text)["input_ids"] == [128000, *expected]


def test_llama3_special_tokens(llama: Any) -> None:
    reference = pytest.importorskip("llama_models.llama3.tokenizer").Tokenizer.get_instance()
    assert (len(llama), llama.bos_token_id, llama.eos_token_id) == (128256, 128000, 128001)
    assert llama.convert_tokens_to_ids("<|eot_id|>") == 128009
    assert {t.content: i for i, t in llama.added_tokens_decoder.items()} == reference.special_tokens
    assert llama("<|eot_id|>x", add_special_tokens=False)["input_ids"] == [128009, 87]


def test_saved_tokenizer_is_the_same(mistral: Any, llama: Any, tmp_path: Path) -> None:
    for name, tokenizer in (("mistral", mistral), ("llama", llama)):
        tokenizer.save_pretrained(tmp_path / name)
        loaded = load_tokenizer(str(tmp_path / name))
        assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
        assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    loaded.pad_token = "<|eot_id|>"
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(llama)
    loaded.eos_token = "<|eot_id|>"
    assert tokenizer_fingerprint(loaded) != tokenizer_fingerprint(llama)
    assert tokenizer_fingerprint(mistral) != tokenizer_fingerprint(llama)


def test_directory_with_nothing_but_the_model_file(mistral: Any, mistral_file: str, tmp_path: Path) -> None:
    shutil.copy(mistral_file, tmp_path / "tokenizer.model")
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path))) == tokenizer_fingerprint(mistral)


def test_llama3_file_replaced_under_the_same_path(llama_file: str, tmp_path: Path) -> None:
    """tiktoken's own cache goes by path alone and would still see the old file."""
    path = tmp_path / "tokenizer.model"
    lines = Path(llama_file).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1000]))
    with pytest.raises(UserError, match=r"^teacher\.tokenizer: .*tokenizer\.model has 1000 BPE ranks"):
        load_tokenizer(str(path), "teacher.tokenizer")
    path.write_bytes(b"".join(lines))
    assert len(load_tokenizer(str(path))) == 128256
    path.write_bytes(b"".join(lines[:500]) + b"???? x\n")
    with pytest.raises(UserError, match=r"^student\.tokenizer: .*damaged"):
        load_tokenizer(str(path))


@pytest.mark.parametrize("kind", ["missing", "empty folder", "text", "empty", "damaged folder"])
def test_what_is_no_tokenizer(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if "folder" in kind:
        path.mkdir()
    elif kind != "missing":
        path.write_text("just text\n" if kind == "text" else "")
    if kind == "damaged folder":
        (path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(path), "teacher.tokenizer")
    assert str(caught.value).startswith("teacher.tokenizer: ")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- chat templates -----------------------------------------------------------------------------------------------

MISTRAL_PROMPT = [1, 733, 16289, 28793, 15359, 733, 28748, 16289, 28793]  # <s> ▁[ INST ] ▁Hi ▁[ / INST ]
LLAMA_PROMPT = [128000, 128006, 882, 128007, 271, 13347, 128009, 128006, 78191, 128007, 271]


def test_mistral_chat_ids(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(pair(), 100, None)
    assert ids(made) == (MISTRAL_PROMPT, [5592, 2], [1770, 2])  # ▁Yes </s>, ▁No </s>
    assert (made.source, made.truncated) == ("f:1", False)


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
    with pytest.raises(UserError, match=r"^data\.chat_template=nowhere\.jinja is none of auto, plain, tokenizer"):
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


# --- lengths, examples, hashes ------------------------------------------------------------------------------------


def test_long_prompt_keeps_bos_and_its_end(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(pair(), 100, 4)
    assert made.prompt_ids.tolist() == [1, *MISTRAL_PROMPT[-3:]]
    assert made.truncated
    assert templates["mistral"].encode(pair(), 100, 1).prompt_ids.tolist() == [1]
    assert not templates["mistral"].encode(pair(), 100, 9).truncated
    no_bos = Template(templates["mistral"].tokenizer, "plain")
    no_bos._lead = []
    assert no_bos.encode(replace(pair(), plain_prompt="Hi"), 100, 1).prompt_ids.tolist() == [15359]
    full = no_bos._plain(pair())[0]
    assert no_bos.encode(pair(), 100, 3).prompt_ids.tolist() == full[-3:]


def test_long_response_is_cut_without_an_end(templates: dict[str, Template]) -> None:
    row = pair(chosen="one two three four", rejected="No")
    whole = ids(templates["mistral"].encode(row, 100, None))[1]
    assert len(whole) == 5
    made = templates["mistral"].encode(row, 13, None)
    assert ids(made) == (MISTRAL_PROMPT, whole[:4], [1770, 2])  # only </s> did not fit
    assert made.truncated
    assert not templates["mistral"].encode(row, 14, None).truncated


def test_prompt_that_fills_max_length(templates: dict[str, Template]) -> None:
    for limit in (None, 8, 9, 50):
        with pytest.raises(UserError, match=r"^f:1: the prompt's 9 tokens fill data\.max_length=9$"):
            templates["mistral"].encode(pair(), 9, limit)
    assert ids(templates["mistral"].encode(pair(), 10, None)) == (MISTRAL_PROMPT, [5592], [1770])


def test_same_ids_are_a_bad_row(templates: dict[str, Template]) -> None:
    row = pair(chosen="one two three", rejected="one two four")
    with pytest.raises(UserError, match=r"^f:1: chosen and rejected have the same 2 token ids"):
        templates["mistral"].encode(row, 11, None)
    with pytest.raises(UserError, match=r"^f:1: chosen and rejected have the same 2 token ids"):
        templates["llama"].encode(pair(chosen="Yes", rejected="Yes "), 100, None)


def test_example_has_no_rejected(templates: dict[str, Template]) -> None:
    made = templates["llama"].encode(pair(rejected=None), 100, None)
    assert (made.prompt_ids.tolist(), made.chosen_ids.tolist()) == (LLAMA_PROMPT, [9642, 128009])
    assert made.rejected_ids is None


def test_pair_id(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(pair(), 100, None)
    data = struct.pack("<3q", 9, 2, 2) + struct.pack("<13i", *MISTRAL_PROMPT, 5592, 2, 1770, 2)
    assert made.pair_id == hashlib.sha256(data).hexdigest()[:32]
    single = templates["mistral"].encode(pair(rejected=None), 100, None)
    data = struct.pack("<3q", 9, 2, -1) + struct.pack("<11i", *MISTRAL_PROMPT, 5592, 2)
    assert single.pair_id == hashlib.sha256(data).hexdigest()[:32]


def test_rewards_are_kept(templates: dict[str, Template]) -> None:
    made = templates["mistral"].encode(replace(pair(), chosen_reward=2.0, rejected_reward=-1.0), 100, None)
    assert (made.chosen_reward, made.rejected_reward) == (2.0, -1.0)


def test_tokenize_rows_counts(templates: dict[str, Template]) -> None:
    rows = [
        pair(),
        pair(ask="one two three four five six"),
        pair(chosen="one two three four five", rejected="six seven eight nine ten"),
        replace(pair(chosen="Yes", rejected="Yes "), source="f:4"),
    ]
    with pytest.raises(UserError, match=r"^f:4: "):
        tokenize_rows(rows, templates["llama"], max_length=16, max_prompt_length=14)
    kept, report = tokenize_rows(rows, templates["llama"], max_length=16, max_prompt_length=14, on_bad_row="skip")
    assert [made.truncated for made in kept] == [False, True, True]
    assert (report.pairs, report.prompts_truncated, report.responses_truncated) == (3, 1, 2)
    assert report.bad == ["f:4: chosen and rejected have the same 2 token ids"]
    with pytest.raises(UserError, match=r"^each of the 1 rows is bad; the first: f:4: "):
        tokenize_rows(rows[3:], templates["llama"], max_length=16, max_prompt_length=14, on_bad_row="skip")
    with pytest.raises(UserError, match=r"data\.on_bad_row=warn"):
        tokenize_rows(rows, templates["llama"], max_length=16, max_prompt_length=14, on_bad_row="warn")


@pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here ({REAL})")
@pytest.mark.parametrize("name", ["mistral plain", "llama plain", "llama"])
def test_real_pairs(name: str, templates: dict[str, Template]) -> None:
    """Nothing of the text is lost or shifted between prompt and response, whatever the row."""
    template = templates[name]
    rows = read_rows([str(REAL)], on_bad_row="skip")[0][:400]
    kept, report = tokenize_rows(rows, template, max_length=4096, max_prompt_length=None)
    assert (report.pairs, report.prompts_truncated, report.responses_truncated) == (400, 0, 0)
    end = 128009 if name == "llama" else template.tokenizer.eos_token_id
    for row, made in zip(rows, kept, strict=True):
        for response, text, plain in zip(
            ids(made)[1:], (row.chosen, row.rejected), (row.plain_chosen, row.plain_rejected), strict=True
        ):
            assert response[-1] == end
            assert end not in response[:-1]
            if name == "llama":
                assert template.tokenizer.decode(response[:-1]) == text
            else:
                whole = template.tokenizer.decode([*made.prompt_ids[1:], *response[:-1]])
                assert whole == row.plain_prompt + (plain or "")
