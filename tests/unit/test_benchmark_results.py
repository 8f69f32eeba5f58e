"""A whole `nemo-tvkd benchmark` on a tiny checkpoint, against plain transformers; its files; continuing it."""

import json
import math
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmark_cases import NEW_TOKENS, PROMPTS, QUESTIONS, SHOTS, Cases, Plain, one_catalogue
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nemo_tvkd.__main__ import main
from nemo_tvkd.commands.benchmark.answers import Writer, answer, template_ids
from nemo_tvkd.commands.benchmark.prompts import Conversation
from nemo_tvkd.commands.benchmark.rewards import score


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with one_catalogue():
        yield Cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def plain(cases: Cases) -> Plain:
    return Plain(cases)


@pytest.fixture(scope="module")
def done(cases: Cases) -> Path:
    output = cases.folder / "benchmark"
    assert main(cases.options(output, tasks=f"[colours:{SHOTS},things:0]")) == 0
    return output


@pytest.fixture(scope="module")
def results(done: Path) -> dict:
    return json.loads((done / "results.json").read_text())


@pytest.mark.parametrize(("name", "shots"), [("colours", SHOTS), ("things", 0)])
def test_tasks_have_the_accuracy_of_plain_log_likelihoods(
    results: dict, done: Path, plain: Plain, name: str, shots: int
) -> None:
    accuracy, normed = plain.accuracies(name, shots)
    file = json.loads((done / "tasks" / f"{name}.json").read_text())
    assert (results["tasks"][name]["metric"], results["tasks"][name]["shots"]) == ("acc_norm,none", shots)
    assert results["tasks"][name]["value"] == pytest.approx(normed, abs=1e-12)
    assert file["lm_eval"]["results"][name]["acc,none"] == pytest.approx(accuracy, abs=1e-12)
    count = results["tasks"][name]["samples"]
    assert count == {"colours": 28, "things": 18}[name]
    assert results["tasks"][name]["stderr"] == pytest.approx(math.sqrt(normed * (1 - normed) / (count - 1)))


def test_answers_for_alpaca_eval_are_those_of_generate(done: Path, plain: Plain, results: dict) -> None:
    rows = json.loads((done / "alpaca_eval.json").read_text())
    expected = [plain.answer([{"role": "user", "content": row["instruction"]}]) for row in PROMPTS]
    assert rows == [
        {"instruction": row["instruction"], "output": said, "generator": "model", "dataset": "own"}
        for row, said in zip(PROMPTS, expected, strict=True)
    ]
    lengths = {len(plain.tokenizer(said)["input_ids"]) for said in expected}
    assert len(lengths) > 3, "the answers must end at different tokens"
    assert max(lengths) >= NEW_TOKENS / 2
    told = results["alpaca_eval"]
    assert (told["answers"], told["mean_length"]) == (12, statistics.fmean(map(len, expected)))


def test_answers_for_mt_bench_are_those_of_generate(done: Path, plain: Plain, results: dict) -> None:
    rows = lines(done / "mt_bench.jsonl")
    assert [row["question_id"] for row in rows] == [81, 84, 90]
    assert all(set(row) == {"question_id", "answer_id", "model_id", "choices", "tstamp"} for row in rows)
    assert len({row["answer_id"] for row in rows}) == 3
    for row in rows:
        question = next(one for one in QUESTIONS if one["question_id"] == row["question_id"])
        sampling = {"do_sample": True, "temperature": 0.7} if question["category"] == "writing" else {}
        first = plain.answer([{"role": "user", "content": question["turns"][0]}], **sampling)
        second = plain.answer(
            [
                {"role": "user", "content": question["turns"][0]},
                {"role": "assistant", "content": first},
                {"role": "user", "content": question["turns"][1]},
            ],
            **sampling,
        )
        assert row["choices"] == [{"index": 0, "turns": [first, second]}]
        assert row["model_id"] == "model"
    assert results["mt_bench"]["answers"] == 6


def test_rewards_are_those_of_the_plain_model(done: Path, plain: Plain, results: dict) -> None:
    said = [row["output"] for row in json.loads((done / "alpaca_eval.json").read_text())]
    expected = plain.rewards(
        [
            [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": answer}]
            for row, answer in zip(PROMPTS, said, strict=True)
        ]
    )
    rows = lines(done / "rewards" / "alpaca_eval.jsonl")
    assert [(row["row"], row["turn"]) for row in rows] == [(n, 0) for n in range(12)]
    assert [row["reward"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert statistics.stdev(expected) > 0.05, "the judge must tell the answers apart"
    told = results["alpaca_eval"]["reward"]
    assert told["mean"] == pytest.approx(statistics.fmean(expected), abs=1e-6)
    assert told["stderr"] == pytest.approx(statistics.stdev(expected) / math.sqrt(12), abs=1e-6)


def test_rewards_of_later_turns_see_the_conversation_so_far(done: Path, plain: Plain) -> None:
    turns = {row["question_id"]: row["choices"][0]["turns"] for row in lines(done / "mt_bench.jsonl")}
    talks = []
    for question in QUESTIONS:
        talk: list[dict[str, str]] = []
        for asked, said in zip(question["turns"], turns[question["question_id"]], strict=True):
            talk += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            talks.append([*talk])
    rows = lines(done / "rewards" / "mt_bench.jsonl")
    assert [(row["row"], row["turn"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [row["reward"] for row in rows] == pytest.approx(plain.rewards(talks), abs=1e-5)


def test_the_same_command_goes_on_where_it_was(cases: Cases, done: Path, results: dict, tmp_path: Path) -> None:
    output = shutil.copytree(done, tmp_path / "benchmark")
    for name in (
        "results.json",
        "tasks/things.json",
        "alpaca_eval.json",
        "rewards/alpaca_eval.jsonl",
        "mt_bench.jsonl",
    ):
        (output / name).unlink()
    kept = json.loads((output / "tasks" / "colours.json").read_text()) | {"value": 2.0}
    (output / "tasks" / "colours.json").write_text(json.dumps(kept))
    partial = [{"conversation": n, "turn": 0, "answer": f"kept {n}"} for n in (3, 7)]
    text = "".join(json.dumps(row) + "\n" for row in partial)
    (output / "answers" / "alpaca_eval.jsonl").write_text(text + '{"conversation": 5, "tur')
    assert main(cases.options(output, tasks=f"[colours:{SHOTS},things:0]")) == 0
    found = json.loads((output / "results.json").read_text())
    assert found["tasks"]["colours"]["value"] == 2.0, "a finished task is not run again"
    assert found["tasks"]["things"] == results["tasks"]["things"]
    before = json.loads((done / "alpaca_eval.json").read_text())
    after = json.loads((output / "alpaca_eval.json").read_text())
    assert [n for n in range(12) if after[n] != before[n]] == [3, 7]
    assert [after[n]["output"] for n in (3, 7)] == ["kept 3", "kept 7"]
    finished = [lines(folder / "mt_bench.jsonl") for folder in (done, output)]
    assert [[row["answer_id"] for row in rows] for rows in finished] == [[row["answer_id"] for row in finished[0]]] * 2


def test_answers_end_where_the_models_positions_end(plain: Plain, tmp_path: Path) -> None:
    asked = [Conversation("f:1", ("Say ten words about the lamp.", "word " * 40), 0.0, {})]
    writer = Writer(plain.model, plain.tokenizer, NEW_TOKENS)
    prompt = template_ids(plain.tokenizer, asked[0].messages([]), True, "f:1")
    whole = writer.write([prompt], 0.0)[0]
    writer.positions = len(prompt) + 2
    messages: list[str] = []
    answers = answer(asked, lambda: writer, 4, tmp_path / "answers.jsonl", messages.append)
    assert len(whole) > len(answers[0][0]) > 0
    assert whole.startswith(answers[0][0])
    assert answers[0][1] == "", "the second question fills the model's positions"
    assert messages[-1] == "answered 2 of 2  00:00:00 left"


def test_a_reward_model_without_padding_token(cases: Cases, plain: Plain) -> None:
    judge = AutoModelForSequenceClassification.from_pretrained(cases.judge, torch_dtype=torch.float32)
    judge.config.pad_token_id = None  # transformers refuses batches then
    asked = [Conversation("f:1", (text,), 0.0, {}) for text in ("Say a word.", "Say two more words about a cup.")]
    rows = score(asked, [["Red."], ["A cup is blue."]], judge, AutoTokenizer.from_pretrained(cases.judge), 4)
    talks = [one.messages([said]) for one, said in zip(asked, ("Red.", "A cup is blue."), strict=True)]
    assert [row["reward"] for row in rows] == pytest.approx(plain.rewards(talks), abs=1e-5)
