"""The figures of a benchmark that need no model: shots, groups, the leaderboard's average, the settings of a folder."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_templates import LLAMA3_CHAT, LLAMA_PROMPT, MISTRAL_CHAT, MISTRAL_PROMPT

from nemo_tvkd.commands.benchmark.answers import template_ids
from nemo_tvkd.commands.benchmark.job import claim
from nemo_tvkd.commands.benchmark.prompts import Conversation, read_lines
from nemo_tvkd.commands.benchmark.tasks import LEADERBOARD, Task, figures, leaderboard_average, read_tasks
from nemo_tvkd.config.benchmark import BenchmarkingConfig
from nemo_tvkd.errors import UserError


def test_the_default_is_the_leaderboard_with_its_shots() -> None:
    shots = {task.name: task.shots for task in read_tasks(BenchmarkingConfig().tasks)}
    assert shots == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "truthfulqa_mc2": 0,
        "mmlu": 5,
        "winogrande": 5,
        "gsm8k": 5,
    }


def test_shots_of_other_tasks() -> None:
    assert read_tasks("piqa:3") == [Task("piqa", 3)]
    assert read_tasks(["piqa", "gsm8k", "hellaswag:0"]) == [Task("piqa", None), Task("gsm8k", 5), Task("hellaswag", 0)]
    assert read_tasks([]) == read_tasks("") == []


def test_the_leaderboards_metrics_are_those_that_lm_eval_has() -> None:
    """Its own task files, read as text: their data are not here."""
    import lm_eval

    files = {
        "arc_challenge": "arc/arc_easy.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
        "mmlu": "mmlu/default/_default_template_yaml",
        "winogrande": "winogrande/default.yaml",
        "gsm8k": "gsm8k/gsm8k.yaml",
    }
    for name, (_, metric) in LEADERBOARD.items():
        text = (Path(lm_eval.__file__).parent / "tasks" / files[name]).read_text()
        kind, chosen = metric.split(",")
        assert f"metric: {kind}\n" in text, name
        assert chosen == "none" or f'name: "{chosen}"' in text, name


def test_a_group_is_the_mean_over_its_tasks() -> None:
    found = {
        "results": {
            "mmlu": {"acc,none": 0.9},
            "mmlu_a": {"alias": "a", "acc,none": 0.25, "acc_stderr,none": 0.03},
            "mmlu_b": {"alias": "b", "acc,none": 0.75, "acc_stderr,none": 0.04},
        },
        "n-samples": {"mmlu_a": {"effective": 100}, "mmlu_b": {"effective": 300}},
        "n-shot": {"mmlu_a": 5, "mmlu_b": 5},
    }
    row = figures("mmlu", found)
    assert (row["metric"], row["value"], row["shots"], row["samples"]) == ("acc,none", 0.5, 5, 400)
    assert row["stderr"] == pytest.approx(math.hypot(0.03, 0.04) / 2)


def test_gsm8k_takes_the_strict_match_and_other_tasks_their_first_metric() -> None:
    row = {"alias": "x", "exact_match,flexible-extract": 0.5, "exact_match_stderr,flexible-extract": 0.1,
           "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"}  # fmt: skip
    for name, metric in (("gsm8k", "exact_match,strict-match"), ("gsm8k_other", "exact_match,flexible-extract")):
        found = {"results": {name: row}, "n-samples": {name: {"effective": 4}}, "n-shot": {name: 5}}
        assert figures(name, found)["metric"] == metric
        assert figures(name, found)["stderr"] == (None if name == "gsm8k" else 0.1)


def test_the_average_is_the_leaderboards_or_none() -> None:
    rows = {name: {"value": 0.1 * n, "shots": shots} for n, (name, (shots, _)) in enumerate(LEADERBOARD.items())}
    options = SimpleNamespace(limit=None, apply_chat_template=False)
    assert leaderboard_average(rows, options) == pytest.approx(0.25)
    assert leaderboard_average(rows | {"piqa": {"value": 9.0, "shots": 0}}, options) == pytest.approx(0.25)
    assert leaderboard_average(rows | {"gsm8k": {"value": 0.5, "shots": 8}}, options) is None
    assert leaderboard_average({name: rows[name] for name in list(rows)[1:]}, options) is None
    assert leaderboard_average(rows, SimpleNamespace(limit=10, apply_chat_template=False)) is None
    assert leaderboard_average(rows, SimpleNamespace(limit=None, apply_chat_template=True)) is None


def test_a_conversation_up_to_the_next_question() -> None:
    talk = Conversation("f:1", ("a", "b"), 0.0, {})
    assert [m["content"] for m in talk.messages([])] == ["a"]
    assert [m["content"] for m in talk.messages(["x"])] == ["a", "x", "b"]
    assert [m["content"] for m in talk.messages(["x", "y"])] == ["a", "x", "b", "y"]


def test_chats_have_the_ids_of_real_tokenizers(llama: Any, mistral: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for tokenizer, template, ids in ((llama, LLAMA3_CHAT, LLAMA_PROMPT), (mistral, MISTRAL_CHAT, MISTRAL_PROMPT)):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        assert template_ids(tokenizer, [{"role": "user", "content": "Hi"}], True, "f:1") == ids
    with pytest.raises(UserError, match=r"f:2: the chat template of .* refuses it: Conversation roles must alternate"):
        template_ids(mistral, [{"role": "assistant", "content": "Hi"}] * 2, True, "f:2")


def test_a_folder_keeps_to_its_settings(tmp_path: Path) -> None:
    claim(tmp_path, "alpaca_eval", {"weights": "w", "benchmark.limit": None})
    claim(tmp_path, "mt_bench", {"weights": "v"})
    claim(tmp_path, "alpaca_eval", {"weights": "w", "benchmark.limit": None})
    with pytest.raises(UserError, match=r"has alpaca_eval with benchmark\.limit None, and this is 3"):
        claim(tmp_path, "alpaca_eval", {"weights": "w", "benchmark.limit": 3})


def test_half_a_line_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert read_lines(file) == []
    file.write_text(json.dumps({"a": "x\u2028y"}, ensure_ascii=False) + '\n{"b": 2}\n{"c": "ha')
    assert read_lines(file) == [{"a": "x\u2028y"}, {"b": 2}]
