"""The demo's data generator: determinism, splits, rewards, tokenizer, chat template, checkpoints, claimed figures."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "demo_data.py"
SMALL = {"pairs": 40, "heldout": 20, "sft": 30}


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    # launch/ is a folder of scripts, no package, so the module is loaded from its file.
    spec = importlib.util.spec_from_file_location("demo_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "data"
    demo.make_demo_data(directory, **SMALL)
    return directory


@pytest.fixture(scope="module")
def full(demo: ModuleType) -> dict[str, list[dict[str, Any]]]:
    """The rows at the demo's own sizes, without the checkpoints."""
    return {
        "train": demo.make_pairs(0, 1500, heldout=False),
        "heldout": demo.make_pairs(0, 300, heldout=True),
        "sft": demo.make_conversations(0, 2000),
    }


@pytest.fixture(scope="module")
def tokenizer(made: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(made / "student_hf")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_same_bytes_in_another_process(demo: ModuleType, made: Path, tmp_path: Path) -> None:
    # Another process has another hash seed: an order that depends on a set or on hash() would show.
    command = [sys.executable, str(SCRIPT), str(tmp_path / "again")]
    command += [part for name, value in SMALL.items() for part in (f"--{name}", str(value))]
    subprocess.run(command, check=True, capture_output=True)
    assert digests(tmp_path / "again") == digests(made)
    assert sorted(digests(made)) == sorted([*demo.FILES, "done.json"])


def test_other_seed_gives_other_data(demo: ModuleType) -> None:
    assert demo.make_pairs(0, 5, heldout=False) != demo.make_pairs(1, 5, heldout=False)
    assert demo.make_conversations(0, 5) != demo.make_conversations(1, 5)
    assert demo.split_facts(0) != demo.split_facts(1)


def test_done_directory_is_left_alone_and_a_damaged_one_is_remade(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fake_checkpoints(directory: Path, seed: int) -> None:
        calls.append(seed)
        for name in demo.FILES:
            if "_hf/" in name:
                (directory / name).parent.mkdir(exist_ok=True)
                (directory / name).touch()

    monkeypatch.setattr(demo, "_write_checkpoints", fake_checkpoints)
    demo.make_demo_data(tmp_path, **SMALL)
    demo.make_demo_data(tmp_path, **SMALL)
    assert calls == [0]
    (tmp_path / "teacher_hf" / "config.json").unlink()
    demo.make_demo_data(tmp_path, **SMALL)
    assert calls == [0, 0]
    demo.make_demo_data(tmp_path, seed=1, **SMALL)
    assert calls == [0, 0, 1]
    (tmp_path / "done.json").write_text("{half")
    demo.make_demo_data(tmp_path, seed=1, **SMALL)
    assert calls == [0, 0, 1, 1]


def test_caller_random_state_is_untouched(demo: ModuleType, tmp_path: Path) -> None:
    import random

    import torch

    state, torch_state = random.getstate(), torch.get_rng_state()
    demo.make_demo_data(tmp_path, pairs=2, heldout=2, sft=2)
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_files_hold_the_rows(demo: ModuleType, made: Path) -> None:
    assert read(made / "pairs_train.jsonl") == demo.make_pairs(0, SMALL["pairs"], heldout=False)
    assert read(made / "pairs_heldout.jsonl") == demo.make_pairs(0, SMALL["heldout"], heldout=True)
    assert read(made / "sft_train.jsonl") == demo.make_conversations(0, SMALL["sft"])


def test_splits_are_disjoint(demo: ModuleType, full: dict[str, list[dict[str, Any]]]) -> None:
    def facts(prompts: list[str]) -> set[tuple[str, str, str]]:
        questions = [demo.read_prompt(prompt) for prompt in prompts]
        return {(q.thing, name, value) for q in questions for name, value in q.facts.items()}

    def named(prompt: str, response: str) -> set[tuple[str, str, str]]:
        thing = demo.read_prompt(prompt).thing
        return {(thing, name, value) for name, value in demo._statements(response)}

    heldout = facts([row["prompt"] for row in full["heldout"]])
    training = facts([row["prompt"] for row in full["train"]])
    for row in full["train"]:
        training |= named(row["prompt"], row["chosen"]) | named(row["prompt"], row["rejected"])
    for row in full["sft"]:
        user, assistant = (message["content"] for message in row["messages"])
        training |= facts([user]) | named(user, assistant)
    assert len(heldout) > 300
    assert not heldout & training
    for rows in (full["train"], full["heldout"]):
        assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)


def test_rewards_are_those_of_the_text(demo: ModuleType, full: dict[str, list[dict[str, Any]]]) -> None:
    margins = []
    for row in full["train"] + full["heldout"]:
        for side in ("chosen", "rejected"):
            assert demo.judge(row["prompt"], row[side]).reward == row[f"{side}_reward"]
        assert row["chosen_reward"] > row["rejected_reward"]
        margins.append(round(row["chosen_reward"] - row["rejected_reward"], 6))
    assert min(margins) < 0.5
    assert max(margins) > 3.5
    assert len(set(margins)) > 15


@pytest.mark.parametrize(
    ("response", "correct", "consistent", "polite", "concise"),
    [
        ("The lamp belongs to Anna. Glad to help you.", 1, 1, 1, 1),
        ("I think it belongs to Boris. Nobody can help you.", 0, 1, 0, 1),
        ("It belongs to Anna. Really, it belongs to Boris.", 1, 0, 0, 1),
        ("It belongs to Boris. Really, it belongs to Anna.", 0, 0, 0, 1),
        ("The lamp is painted red. Thank you for asking.", 0, 1, 1, 1),
        ("It belongs to Anna. And it also is painted red. A dull question.", 1, 1, 0, 1),
        ("It belongs to Anna. A sailor often sings at night.", 1, 1, 0, 0),
        ("", 0, 1, 0, 1),
        ("What?", 0, 1, 0, 0),
    ],
)
def test_judge(demo: ModuleType, response: str, correct: int, consistent: int, polite: int, concise: int) -> None:
    prompt = "Hello. The lamp is painted red and belongs to Anna. Who owns the lamp?"
    qualities = demo.judge(prompt, response)
    assert qualities == demo.Qualities(bool(correct), bool(consistent), bool(polite), bool(concise))
    assert qualities.reward == pytest.approx(2.0 * correct + 1.2 * consistent + 0.7 * polite + 0.4 * concise)


def test_judge_refuses_foreign_prompts(demo: ModuleType) -> None:
    with pytest.raises(ValueError, match="not a prompt of the demo world"):
        demo.judge("What is the capital of France?", "Paris.")


def test_rewards_tell_all_qualities_apart(demo: ModuleType) -> None:
    from itertools import product

    rewards = {demo.Qualities(*qualities).reward for qualities in product((False, True), repeat=4)}
    assert len(rewards) == 16


def test_sft_answers_are_a_mix(demo: ModuleType, full: dict[str, list[dict[str, Any]]]) -> None:
    assert [message["role"] for message in full["sft"][0]["messages"]] == ["user", "assistant"]
    judged = [demo.judge(*(message["content"] for message in row["messages"])) for row in full["sft"]]
    for name, rate in demo.RATES.items():
        assert sum(getattr(qualities, name) for qualities in judged) / len(judged) == pytest.approx(rate, abs=0.04)


def test_docstring_reports_the_heuristics(demo: ModuleType, full: dict[str, list[dict[str, Any]]]) -> None:
    rows = full["train"] + full["heldout"]
    lines = (demo.__doc__ or "").splitlines()
    for start, score in (
        ("the shorter response", demo.shortness),
        ("the response with a word of courtesy", demo.courtesy),
        ("the response whose first statement", demo.correctness),
    ):
        claimed = float(next(line for line in lines if line.strip().startswith(start)).split()[-1])
        assert demo.heuristic_accuracy(rows, score) == pytest.approx(claimed, abs=0.002)
        assert demo.heuristic_accuracy(full["heldout"], score) == pytest.approx(claimed, abs=0.05)
        assert claimed < 0.65 or score is demo.correctness


def test_no_single_word_decides(demo: ModuleType, full: dict[str, list[dict[str, Any]]]) -> None:
    rows = full["train"] + full["heldout"]
    words = [[set(row[side].split()) for row in rows] for side in ("chosen", "rejected")]
    for word in sorted(set().union(*words[0], *words[1])):
        lead = sum((word in chosen) - (word in rejected) for chosen, rejected in zip(*words, strict=True)) / len(rows)
        assert abs(lead) / 2 < 0.1, word


def test_tokenizer(demo: ModuleType, full: dict[str, list[dict[str, Any]]], tokenizer: Any) -> None:
    assert tokenizer.is_fast
    assert len(tokenizer) == tokenizer.vocab_size == demo.VOCAB_SIZE
    assert demo.VOCAB_SIZE % 128 != 0
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(demo.SPECIAL_TOKENS)
    specials = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token)
    assert specials == ("<pad>", "<s>", "</s>")
    assert tokenizer("lamp").input_ids[0] == tokenizer.bos_token_id
    for text in ("Plain text , with odd  spaces.\n", "Ünïcödé 漢字 🙂 <tag> 12", full["train"][0]["prompt"]):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    rows = full["train"] + full["heldout"]
    texts = [row[side] for side in ("prompt", "chosen", "rejected") for row in rows]
    encoded = tokenizer(texts, add_special_tokens=False).input_ids
    assert tokenizer.batch_decode(encoded) == texts
    prompts, responses = encoded[: len(rows)], encoded[len(rows) :]
    assert 8 <= min(map(len, prompts)) <= max(map(len, prompts)) <= 25
    assert 8 <= min(map(len, responses)) + 1 <= max(map(len, responses)) + 1 <= 30  # with the end token


def test_chat_template(full: dict[str, list[dict[str, Any]]], tokenizer: Any) -> None:
    messages = full["sft"][0]["messages"]
    user, assistant = (message["content"] for message in messages)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == f"<s><|user|>\n{user}\n<|assistant|>\n{assistant}</s>"
    for row in full["sft"][:200]:
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
def test_checkpoints_load(demo: ModuleType, made: Path, name: str) -> None:
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
