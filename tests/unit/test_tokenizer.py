"""Loaded tokenizers, the real Mistral v1 and Llama 3 ones (from PyPI packages), give the ids of their own libraries.

Independent references: sentencepiece for the one, llama_models' tiktoken for the other.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import file_of

from nemo_tvkd.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from nemo_tvkd.errors import UserError

TEXTS = (
    *("", " ", "Hello world", " Hello", "  \n a", "a  b   c\t d ", "don't 12345 x_y", "\n\nHuman: Hi\n\nAssistant:"),
    *("héllo 世界 🤖\n\nx", "ሰላም", "naïve — “quoted”", "\u200b\ufeff", "def f(x):\n    return x**2\n"),
)


@pytest.mark.parametrize("text", TEXTS)
def test_mistral_ids_are_sentencepieces(text: str, mistral: Any, mistral_file: str) -> None:
    import sentencepiece

    expected = sentencepiece.SentencePieceProcessor(model_file=mistral_file).encode(text)
    assert mistral(text, add_special_tokens=False)["input_ids"] == expected
    assert mistral(text)["input_ids"] == [1, *expected]


def test_mistral_special_ids(mistral: Any) -> None:
    assert (len(mistral), mistral.unk_token_id, mistral.bos_token_id, mistral.eos_token_id) == (32000, 0, 1, 2)


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
