"""What a run says about conversations is written into its side files, once, and into no other place."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dialogues import BOS, EOS, EOT, PAD, SPECIAL, base_model, base_tokenizer, side_files
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from nemo_tvkd.checkpoints.side_files import write_dialogue
from nemo_tvkd.data.template import Template
from nemo_tvkd.data.tokenizer import Dialogue, load_tokenizer

pytestmark = pytest.mark.usefixtures("without_nemo")

TEXT = Path(__file__).resolve().parents[2].joinpath("conf/chat_template/llama3.jinja").read_text()
LLAMA3 = Dialogue("", TEXT, "<|eot_id|>", "<pad>", EOT)
MESSAGES = [{"role": "user", "content": "a <pad> é"}, {"role": "assistant", "content": "b"}]
RENDERED = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na <pad> é<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>"
)


def check(folder: Path, ends: Any = (EOT, EOS)) -> Any:
    """What every reader must find; the tokenizer."""
    tokenizer, generation = AutoTokenizer.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == RENDERED
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, EOT, PAD)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (
        BOS,
        ends if isinstance(ends, int) else list(ends),
        PAD,
    )
    config = AutoConfig.from_pretrained(folder)
    assert (config.eos_token_id, config.pad_token_id) == (EOT, PAD)
    assert tokenizer(RENDERED, add_special_tokens=False).input_ids == read(RENDERED)
    assert Template(tokenizer).fingerprint == Template(base_tokenizer(), "llama3").fingerprint
    return tokenizer


def read(text: str) -> list[int]:
    """By the base tokenizer, of which every special token is one."""
    return base_tokenizer()(text, add_special_tokens=False).input_ids


def entries(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_a_base_model(tmp_path: Path) -> None:
    """Single entries of its files, and no other; the second time not a byte."""
    folder = base_model(tmp_path / "base", 1)
    before = {name: entries(folder / name) for name in side_files(folder) if name.endswith(".json")}
    kept = side_files(folder)
    write_dialogue(LLAMA3, folder)
    check(folder)
    written = side_files(folder)
    assert written.keys() == kept.keys()
    assert {name for name in kept if kept[name] != written[name]} == {
        *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    }
    tokens = {"eos_token": "<|eot_id|>", "pad_token": "<pad>"}
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"eos_token_id": EOT, "pad_token_id": PAD},
        "generation_config.json": {"eos_token_id": [EOT, EOS], "pad_token_id": PAD},
        "tokenizer_config.json": tokens | {"chat_template": TEXT},
        "special_tokens_map.json": tokens,
    }
    for name, changed in changes.items():
        assert entries(folder / name) == before[name] | changed, name
    write_dialogue(LLAMA3, folder)
    assert side_files(folder) == written


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "both"])
def test_another_template_is_replaced_wherever_it_stands(tmp_path: Path, place: str) -> None:
    folder = base_model(tmp_path / "base", 1)
    if place != "chat_template.jinja":
        told = entries(folder / "tokenizer_config.json") | {"chat_template": "theirs"}
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
    if place != "tokenizer_config.json":
        (folder / "chat_template.jinja").write_text("theirs too")
    write_dialogue(LLAMA3, folder)
    check(folder)


def test_the_same_template_in_a_file_of_its_own_stays_there(tmp_path: Path) -> None:
    folder = base_model(tmp_path / "base", 1, base_tokenizer(eos_token="<|eot_id|>", pad_token="<pad>"))
    (folder / "chat_template.jinja").write_text(TEXT)
    before = side_files(folder)
    write_dialogue(LLAMA3, folder)
    after = side_files(folder)
    assert {name for name in before if before[name] != after[name]} == {"config.json", "generation_config.json"}
    check(folder)


def test_tokens_that_only_their_role_made_special(tmp_path: Path) -> None:
    """The old end token is a token of its own no longer once nothing names it: the tokenizer is then saved whole."""
    tokenizer = base_tokenizer()
    folder = base_model(tmp_path / "base", 1, tokenizer)
    backend, told = entries(folder / "tokenizer.json"), entries(folder / "tokenizer_config.json")
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] != EOS]
    del told["added_tokens_decoder"][str(EOS)]
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    before = load_tokenizer(str(folder))
    assert before("a<|end_of_text|>", add_special_tokens=False).input_ids[-1] == EOS
    write_dialogue(LLAMA3, folder)
    after = check(folder)
    assert after("a<|end_of_text|>", add_special_tokens=False).input_ids[-1] == EOS
    assert after.all_special_tokens != before.all_special_tokens
    assert Template(after)._end_ids >= Template(before, "llama3")._end_ids


def test_a_bare_tokenizer_model(mistral: Any, mistral_file: str, tmp_path: Path) -> None:
    """As Mistral publishes it; what comes to lie beside it reads as the file alone did."""
    text = (Path(__file__).resolve().parents[2] / "conf/chat_template/mistral.jinja").read_text()
    folder = base_model(tmp_path / "base", 1)
    for old in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        old.unlink()
    shutil.copy2(mistral_file, folder / "tokenizer.model")
    write_dialogue(Dialogue("", text, "</s>", "<unk>", 2), folder)
    made = AutoTokenizer.from_pretrained(folder)
    assert (made.eos_token, made.pad_token) == ("</s>", "<unk>")
    for words in ("Hello  there, naïve 你好 🤖\n\n</s><|eot_id|>", "a"):
        assert made(words).input_ids == mistral(words).input_ids
    assert made.apply_chat_template(MESSAGES, tokenize=False) == "<s>[INST] a <pad> é [/INST] b</s>"


@pytest.mark.parametrize(
    ("there", "config", "ends"),
    [
        ({"eos_token_id": EOS}, EOS, [EOT, EOS]),
        ({"eos_token_id": [EOS, EOT, 4]}, EOS, [EOS, EOT, 4]),
        ({"eos_token_id": [3, 4]}, EOS, [EOT, 3, 4, EOS]),
        ({}, [EOS, 3], [EOT, EOS, 3]),
        ({}, None, EOT),
        ({"eos_token_id": EOT}, EOT, EOT),
        (None, EOS, [EOT, EOS]),
    ],
)
def test_everything_that_ends_a_response(
    tmp_path: Path, there: dict[str, Any] | None, config: Any, ends: list[int] | int
) -> None:
    folder = base_model(tmp_path / "base", 1)
    file = folder / "generation_config.json"
    (folder / "config.json").write_text(json.dumps(entries(folder / "config.json") | {"eos_token_id": config}))
    file.unlink()
    if there is not None:
        file.write_text(json.dumps(there | {"bos_token_id": BOS}))
    write_dialogue(LLAMA3, folder)
    check(folder, ends=ends)


def test_a_template_alone(tmp_path: Path) -> None:
    """Generation stops where its turns end, though the end token is the tokenizer's own."""
    folder = base_model(tmp_path / "base", 1)
    config = (folder / "config.json").read_bytes()
    write_dialogue(Dialogue("", TEXT, "", "", EOT), folder)
    assert (folder / "config.json").read_bytes() == config
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [EOT, EOS]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.chat_template, tokenizer.eos_token_id, tokenizer.pad_token) == (TEXT, EOS, None)


def test_tokens_alone(tmp_path: Path) -> None:
    folder = base_model(tmp_path / "base", 1)
    write_dialogue(replace(LLAMA3, chat_template=None), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.chat_template, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, EOT, PAD)


def test_a_tokenizer_that_the_run_was_given(tmp_path: Path) -> None:
    """It takes the place of the checkpoint's, of which there may be none."""
    folder = base_model(tmp_path / "base", 1)
    base_tokenizer().save_pretrained(tmp_path / "given")
    for old in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        old.unlink()
    write_dialogue(replace(LLAMA3, tokenizer=str(tmp_path / "given")), folder)
    check(folder)
    assert load_tokenizer(str(tmp_path / "given")).chat_template is None
    assert len(SPECIAL) == EOT + 1
