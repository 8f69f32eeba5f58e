"""The demo's files: determinism, rows, tokenizer, chat template, checkpoints."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import demo_data
import demo_pairs
import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "demo_data.py"
SMALL = {"pairs": 40, "heldout": 20, "sft": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "data"
    demo_data.make_demo_data(directory, **SMALL)
    return directory


@pytest.fixture(scope="module")
def tokenizer(made: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(made / "student_hf")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_same_bytes_in_another_process(made: Path, tmp_path: Path) -> None:
    # Another process has another hash seed: an order that depends on a set or on hash() would show.
    command = [sys.executable, str(SCRIPT), str(tmp_path / "again")]
    command += [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    subprocess.run(command, check=True, capture_output=True)
    assert digests(tmp_path / "again") == digests(made)
    assert sorted(digests(made)) == sorted([*demo_data.FILES, "done.json"])


def test_done_directory_is_left_alone_and_a_damaged_one_is_remade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fake_checkpoints(directory: Path, seed: int) -> None:
        calls.append(seed)
        for name in demo_data.FILES:
            if "_hf/" in name:
                (directory / name).parent.mkdir(exist_ok=True)
                (directory / name).touch()

    monkeypatch.setattr(demo_data, "_write_checkpoints", fake_checkpoints)
    demo_data.make_demo_data(tmp_path, **SMALL)
    demo_data.make_demo_data(tmp_path, **SMALL)
    assert calls == [0]
    (tmp_path / "teacher_hf" / "config.json").unlink()
    demo_data.make_demo_data(tmp_path, **SMALL)
    assert calls == [0, 0]
    demo_data.make_demo_data(tmp_path, seed=1, **SMALL)
    assert calls == [0, 0, 1]
    (tmp_path / "done.json").write_text("{half")
    demo_data.make_demo_data(tmp_path, seed=1, **SMALL)
    assert calls == [0, 0, 1, 1]


def test_caller_random_state_is_untouched(tmp_path: Path) -> None:
    import random

    import torch

    state, torch_state = random.getstate(), torch.get_rng_state()
    demo_data.make_demo_data(tmp_path, pairs=2, heldout=2, sft=2)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_files_hold_the_rows(made: Path) -> None:
    assert read(made / "pairs_train.jsonl") == demo_pairs.make_pairs(0, SMALL["pairs"], heldout=False)
    assert read(made / "pairs_heldout.jsonl") == demo_pairs.make_pairs(0, SMALL["heldout"], heldout=True)
    assert read(made / "sft_train.jsonl") == demo_pairs.make_conversations(0, SMALL["sft"])


def test_tokenizer(demo_rows: dict[str, list[dict[str, Any]]], tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert len(tokenizer) == tokenizer.vocab_size == demo_data.VOCAB_SIZE
    assert demo_data.VOCAB_SIZE % 128 != 0
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(demo_data.SPECIAL_TOKENS)
    specials = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token)
    assert specials == ("<pad>", "<s>", "</s>")
    assert tokenizer("lamp").input_ids[0] == tokenizer.bos_token_id
    for text in ("Plain text , with odd  spaces.\n", "Ünïcödé 漢字 🙂 <tag> 12", demo_rows["train"][0]["prompt"]):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    rows = demo_rows["train"] + demo_rows["heldout"]
    texts = [row[side] for side in ("prompt", "chosen", "rejected") for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False).input_ids
    assert tokenizer.batch_decode(encoded) == texts
    prompts, responses = encoded[: len(rows)], encoded[len(rows) :]
    assert 8 <= min(map(len, prompts)) <= max(map(len, prompts)) <= 25
    assert 8 <= min(map(len, responses)) + 1 <= max(map(len, responses)) + 1 <= 30  # with the end token


def test_chat_template(demo_rows: dict[str, list[dict[str, Any]]], tokenizer: Any) -> None:
    messages = demo_rows["sft"][0]["messages"]
    user, assistant = (message["content"] for message in messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == f"<s><|user|>\n{user}\n<|assistant|>\n{assistant}</s>"
    for row in demo_rows["sft"][:200]:
        prompt = tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(row["messages"])
        response = tokenizer(row["messages"][1]["content"], add_special_tokens=False).input_ids
        assert whole == prompt + response + [tokenizer.eos_token_id]
        assert whole.count(tokenizer.bos_token_id) == 1
    second_turn = tokenizer.apply_chat_template(messages * 2, tokenize=False)
    assert second_turn.startswith(text)
    assert second_turn.count("</s>") == 2
    with pytest.raises(Exception, match="not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_checkpoints_load(made: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(made / f"{name}_hf")
    tokenizer = AutoTokenizer.from_pretrained(made / f"{name}_hf")
    config = model.config
    assert config.vocab_size == len(tokenizer)
    for token in ("bos", "eos", "pad"):
        expected = getattr(tokenizer, f"{token}_token_id")
        assert getattr(config, f"{token}_token_id") == expected
        assert getattr(model.generation_config, f"{token}_token_id") == expected
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert config.num_attention_heads % 2 == config.num_key_value_heads % 2 == config.num_hidden_layers % 2 == 0
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.tie_word_embeddings == (name == "student")
    assert (config.rope_scaling or {}).get("rope_type") == ("llama3" if name == "student" else None)
    assert model.num_parameters() == {"teacher": 1_680_576, "student": 412_800}[name]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who owns the lamp?"}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3)
    assert output.shape[1] > prompt.shape[1]


def test_models_share_the_tokenizer_only(made: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (made / "teacher_hf" / name).read_bytes() == (made / "student_hf" / name).read_bytes()
