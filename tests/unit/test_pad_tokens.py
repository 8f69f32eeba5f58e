"""The token that an exported reward model is padded with ends no text, and its files say so."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import LLAMA3_CHAT, MISTRAL_CHAT
from tokenizers import Tokenizer, models, pre_tokenizers  # type: ignore[import-untyped]
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, MistralConfig, PreTrainedTokenizerFast

from nemo_tvkd.checkpoints.hf import Checkpoint
from nemo_tvkd.checkpoints.reward_models import choose_pad_token, end_ids, make_reward_model, pad_token_warning

pytestmark = pytest.mark.usefixtures("without_nemo")

LLAMA_END, LLAMA_EOT, LLAMA_PAD, LLAMA_RESERVED = 128001, 128009, 128004, 128002
PROBE = "Hello there, naïve world! 你好 🤖\n\n</s> <|eot_id|> pad"
ENDLESS = "{{ messages[0]['content'] }}{{ messages[1]['content'] if messages[1:] }}"


def folder_of(path: Path, tokenizer: Any, **config: Any) -> Path:
    """A model's folder without its weights."""
    kind = LlamaConfig if config.pop("model_type", "llama") == "llama" else MistralConfig
    settings = {"vocab_size": len(tokenizer) if tokenizer else 100, "bos_token_id": 1, "eos_token_id": 2} | config
    made = kind(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, **settings)
    made.architectures = [f"{kind.__name__.removesuffix('Config')}ForCausalLM"]
    made.save_pretrained(path)
    if tokenizer:
        tokenizer.save_pretrained(path)
    return path


def small(*specials: str, **named: str) -> Any:
    """A tokenizer of <s>, </s> and these special tokens, and two words, one of which is "pad"."""
    words = ["<s>", "</s>", *specials, "a", "pad"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **({"bos_token": "<s>", "eos_token": "</s>"} | named),
        additional_special_tokens=list(specials),
        clean_up_tokenization_spaces=False,
    )


def choose(tokenizer: Any, ends: set[int], **config: Any) -> int | None:
    settings = {"vocab_size": len(tokenizer) if tokenizer else 100, "bos_token_id": 0, "eos_token_id": 1} | config
    return choose_pad_token(tokenizer, LlamaConfig(**settings), ends)


@pytest.mark.parametrize(
    ("tokenizer", "ends", "config", "chosen"),
    [
        (small("<x>", "<pad>", pad_token="<x>"), {1}, {}, 2),
        (small("<x>", "<PAD>", pad_token="</s>"), {1}, {}, 3),
        (small("<x>", "<PAD>", pad_token="</s>"), {1}, {"pad_token_id": 1}, 3),
        (small("<x>", "<pad>"), {1}, {}, 3),
        (small("<x>", "<pad>"), {1, 3}, {}, None),
        (small("<unk>", "<|reserved_special_token_0|>", "<fim_pad>"), {1}, {}, 4),
        (small("<unk>", "<|reserved_special_token_0|>", "<fim_pad>"), {1, 4}, {}, 3),
        (small("<unk>", "<|reserved_special_token_0|>", "<fim_pad>"), {1, 3, 4}, {}, 2),
        (small("<?>", unk_token="<?>"), {1}, {}, 2),
        (small("<x>"), {1}, {}, None),
        (small(unk_token="</s>"), {1}, {}, None),
        (small(unk_token="<s>"), {1}, {}, None),
        (small("<pad>", pad_token="<pad>"), {1}, {"vocab_size": 2}, None),
        (small("<x>", "<pad>"), {1}, {"pad_token_id": 2}, 2),
        (small("<x>", "<pad>"), {1}, {"pad_token_id": 5}, 3),
        (None, {1}, {"pad_token_id": 5}, 5),
        (None, {1}, {"pad_token_id": 1}, None),
        (None, {1}, {}, None),
    ],
    ids=[
        "its own",
        "its own is the end token",
        "the config's too",
        "none of its own, and a word called pad",
        "the only one ends texts",
        "pad before reserved",
        "reserved before unk",
        "unk at last",
        "unk by another name",
        "nothing unused",
        "unk is the end token",
        "unk is the start token",
        "beyond the model's vocabulary",
        "the config's is special",
        "the config's is a word",
        "no tokenizer",
        "no tokenizer, and the config's ends texts",
        "no tokenizer and none in the config",
    ],
)
def test_the_choice(tokenizer: Any, ends: set[int], config: dict[str, Any], chosen: int | None) -> None:
    assert choose(tokenizer, ends, **config) == chosen


def test_ends_are_all_that_may_end_a_text(tmp_path: Path) -> None:
    tokenizer = small("<a>", "<b>", "<c>", "<eot>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<eot>' }}{% endfor %}"
    folder = folder_of(tmp_path, tokenizer, eos_token_id=[1, 2])
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 1]}')
    assert end_ids(folder, AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)) == {1, 2, 3, 5}
    (folder / "generation_config.json").write_text('{"eos_token_id": 4}')
    assert end_ids(folder, AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)) == {1, 2, 4, 5}
    (folder / "generation_config.json").write_text('{"eos_')
    assert end_ids(folder, AutoConfig.from_pretrained(folder), None) == {1, 2}


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ unclosed", ENDLESS])
def test_a_template_that_tells_no_end_leaves_the_others(tmp_path: Path, template: str) -> None:
    tokenizer = small("<pad>")
    tokenizer.chat_template = template
    folder = folder_of(tmp_path, tokenizer, eos_token_id=1)
    assert end_ids(folder, AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)) == {1}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def check(folder: Path, pad: int) -> Any:
    """What must hold of every reward model's files; its tokenizer."""
    before = AutoTokenizer.from_pretrained(folder)
    read = [before(PROBE).input_ids, before(PROBE, add_special_tokens=False).input_ids, before.get_vocab()]
    template, others = before.chat_template, json.loads((folder / "config.json").read_text())
    assert make_reward_model(folder, "out") == ""
    config, after = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert config.pad_token_id == after.pad_token_id == pad
    assert config.num_labels == 1
    assert config.architectures[0].endswith("ForSequenceClassification")
    assert [after(PROBE).input_ids, after(PROBE, add_special_tokens=False).input_ids, after.get_vocab()] == read
    assert after.chat_template == template
    assert (after.bos_token, after.eos_token, after.unk_token) == (before.bos_token, before.eos_token, before.unk_token)
    changed = {"architectures", "id2label", "label2id", "pad_token_id"}
    now = json.loads((folder / "config.json").read_text())
    assert {k: v for k, v in now.items() if k not in changed} == {k: v for k, v in others.items() if k not in changed}
    batch = after([PROBE, "a"], padding=True, return_tensors="pt").input_ids
    assert pad in batch[1].tolist()
    return after


def test_llama3(llama: Any, tmp_path: Path) -> None:
    """Its own padding token, also where another one was set that ends turns."""
    folder = folder_of(tmp_path, llama, eos_token_id=[LLAMA_END, LLAMA_EOT], bos_token_id=128000)
    assert choose_pad_token(llama, AutoConfig.from_pretrained(folder), {LLAMA_END, LLAMA_EOT}) == LLAMA_PAD
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"pad_token": "<|eot_id|>"}))
    check(folder, LLAMA_PAD)


def test_llama3_before_it_had_a_padding_token(llama: Any, tmp_path: Path) -> None:
    """Meta-Llama-3's reserved tokens; its chat template ends turns with a token that the base model's config lacks."""
    folder = folder_of(tmp_path, llama, eos_token_id=LLAMA_END, bos_token_id=128000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (folder / name).read_text().replace("<|finetune_right_pad_id|>", "<|reserved_special_token_2b|>")
        (folder / name).write_text(content)
    (folder / "special_tokens_map.json").unlink()
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    tokens |= {"pad_token": "<|eot_id|>", "chat_template": LLAMA3_CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    assert check(folder, LLAMA_RESERVED).pad_token == "<|reserved_special_token_0|>"


def test_what_is_right_already_stays_as_it_is(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, small("<x>", "<pad>", pad_token="</s>"), eos_token_id=1)
    check(folder, 3)
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries, indent=7))
    made = files_of(folder)
    assert make_reward_model(folder, "out") == ""
    assert files_of(folder) == made


def test_mistral_pads_with_unk(mistral: Any, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "mistral", mistral, model_type="mistral")
    (folder / "chat_template.jinja").write_text(MISTRAL_CHAT)
    assert check(folder, 0).pad_token == "<unk>"
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"pad_token": "</s>"}))
    assert make_reward_model(folder, "out") == ""
    assert json.loads((folder / "tokenizer_config.json").read_text()) == tokens | {"pad_token": "<unk>"}


def test_a_bare_tokenizer_model(mistral: Any, mistral_file: str, llama: Any, llama_file: str, tmp_path: Path) -> None:
    """As Meta and Mistral publish it; what is written beside it reads texts as the file alone did here."""
    for known, file, pad, end in ((mistral, mistral_file, 0, 2), (llama, llama_file, LLAMA_PAD, LLAMA_END)):
        folder = folder_of(tmp_path / str(pad), None, vocab_size=200_000, eos_token_id=end)
        shutil.copy2(file, folder / "tokenizer.model")
        assert make_reward_model(folder, "out") == ""
        made = AutoTokenizer.from_pretrained(folder)
        assert AutoConfig.from_pretrained(folder).pad_token_id == made.pad_token_id == pad
        assert made(PROBE).input_ids == known(PROBE).input_ids


def test_without_a_token_to_pad_with(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, small("<x>"), eos_token_id=1, pad_token_id=1)
    tokenizer = files_of(folder)["tokenizer_config.json"]
    warning = make_reward_model(folder, "out")
    assert warning.startswith("warning: out has no token to pad with")
    assert warning.endswith("for batches of one only")
    assert "\n" not in warning
    config = AutoConfig.from_pretrained(folder)
    assert (config.pad_token_id, config.num_labels) == (None, 1)
    assert files_of(folder)["tokenizer_config.json"] == tokenizer


def test_an_import_warns_of_rewards_before_the_end_token(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, small("<pad>"), eos_token_id=1, pad_token_id=1)
    assert pad_token_warning(Checkpoint("hf", folder, folder)) == ""  # no reward model
    make_reward_model(folder, "out")
    assert pad_token_warning(Checkpoint("hf", folder, folder)) == ""
    entries = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(entries | {"pad_token_id": 1}))
    warning = pad_token_warning(Checkpoint("hf", folder, folder))
    assert warning.startswith(f"warning: {folder}: its padding token 1 also ends texts")
    (folder / "tokenizer.json").write_text("{")
    assert pad_token_warning(Checkpoint("hf", folder, folder)) == warning
