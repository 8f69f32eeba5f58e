"""`nemo-tvkd data check`: what it counts, what it prints, and that no text of the data steers a terminal."""

import gzip
import json
import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from data_files import read_rows
from pair_records import ASK, HH, PAIR, RIGHT, write

from nemo_tvkd.__main__ import main
from nemo_tvkd.data.encoding import tokenize_rows
from nemo_tvkd.data.template import Template

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "hh_rlhf_harmless_1200.jsonl.gz"
EMPTY = (87, 517, 926, 1104)
real_data = pytest.mark.skipif(not REAL.exists(), reason=f"the real HH-RLHF pairs are not here: {REAL} does not exist")

Run = Callable[..., tuple[str, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a check that ends well; what it prints at 80 columns, and its figures."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def check(*arguments: object, code: int = 0) -> tuple[str, dict[str, Any]]:
        output = tmp_path / "new folder" / "check.json"
        assert main(["data", "check", *map(str, arguments), f"output={output}"]) == code
        printed = capsys.readouterr().out
        assert all(len(line) <= 80 for line in printed.splitlines())
        return printed, json.loads(output.read_text())

    return check


@pytest.fixture(scope="module")
def llama_folder(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama 3's tokenizer as Hugging Face has it: it loads faster than from its ranks."""
    folder = tmp_path_factory.mktemp("llama")
    llama.save_pretrained(folder)
    return str(folder)


def words(printed: str) -> str:
    return " ".join(printed.split())


@real_data
def test_real_pairs(run: Run, mistral_file: str) -> None:
    printed, figures = run(REAL, f"tokenizer={mistral_file}", "data.max_length=2048")
    assert figures["files"] == [{"path": str(REAL), "format": ".jsonl.gz", "records": 1200}]
    assert figures["layouts"] == {"chosen/rejected transcripts": 1196}
    assert figures["public_sets"] == {"Anthropic/hh-rlhf": 1200}
    assert (figures["rows"], figures["records"], figures["usable"], figures["bad"]) == ("pairs", 1200, 1196, 4)
    places = [f"{REAL}:{line}" for line in EMPTY]
    assert figures["bad_rows"] == [{"what": "chosen: the response is empty", "count": 4, "examples": places}]
    assert figures["truncation"] == {
        **{"max_length": 2048, "max_prompt_length": None},
        **dict.fromkeys(("prompts_cut", "responses_cut", "rows_cut", "rows_lost"), 0),
    }
    assert figures["duplicates"]["count"] == 0
    assert sum(figures["chosen_longer"].values()) == 1196
    assert "4 chosen: the response is empty hh_rlhf_harmless_1200.jsonl.gz:87, 517, 926, 1104" in words(
        printed.replace("\n", "")
    )
    assert "1,196 pairs to train on; data.on_bad_row=skip leaves the 4 bad rows out" in words(printed)
    assert "\x1b" not in printed


@real_data
def test_lengths_and_cuts_are_those_of_training(run: Run, mistral: Any, mistral_file: str, tmp_path: Path) -> None:
    """Against the lengths that sentencepiece counts, and what tokenising for training cuts."""
    with gzip.open(REAL, "rt", encoding="utf-8") as stream:
        lines = list(islice(stream, 300))
    path = tmp_path / "some.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    _, figures = run(path, f"tokenizer={mistral_file}", "data.max_length=160", "data.max_prompt_length=100")
    pieces = sentencepiece.SentencePieceProcessor(model_file=mistral_file)
    prompts: list[int] = []
    chosen: list[int] = []
    rejected: list[int] = []
    for number, line in enumerate(lines, 1):
        if number in EMPTY:
            continue
        record = json.loads(line)
        head = record["chosen"].rpartition("\n\nAssistant:")[0] + "\n\nAssistant:"
        prompts.append(len(pieces.encode(head)) + 1)  # <s>
        for sizes, side in ((chosen, "chosen"), (rejected, "rejected")):
            sizes.append(len(pieces.encode(record[side])) + 2 - prompts[-1])  # <s> and </s>
    total = np.array(prompts) + np.maximum(chosen, rejected)
    for name, found_by in (("prompt", prompts), ("chosen", chosen), ("rejected", rejected), ("total", total.tolist())):
        ordered, found = sorted(found_by), figures["lengths"][name]
        assert (found["min"], found["max"]) == (ordered[0], ordered[-1])
        assert found["mean"] == pytest.approx(sum(ordered) / len(ordered), abs=0.06)
        for percent in (5, 25, 50, 75, 95, 99):
            place = -(-percent * len(ordered) // 100) - 1
            assert found[f"p{percent}"] == ordered[place]
    longer = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    same = sum(a == b for a, b in zip(chosen, rejected, strict=True))
    assert figures["chosen_longer"] == {"longer": longer, "same": same, "shorter": 299 - longer - same}
    rows, _ = read_rows([str(path)], on_bad_row="skip")
    kept, made = tokenize_rows(
        rows, Template(mistral, "plain"), max_length=160, max_prompt_length=100, on_bad_row="skip"
    )
    cuts = figures["truncation"]
    assert (cuts["prompts_cut"], cuts["responses_cut"]) == (made.prompts_truncated, made.responses_truncated)
    assert cuts["rows_cut"] == sum(row.truncated for row in kept)
    assert cuts["rows_lost"] == len(made.bad)
    assert figures["usable"] == len(kept)
    assert sum(kind["count"] for kind in figures["bad_rows"]) == 1 + len(made.bad)


BROKEN = [
    b'{"prompt": "Q1", "chosen": "x \\u001b[31mred [bold]b[/bold] \\u202e\\u0007 :smile:", "rejected": "b", "id": 3, '
    b'"chosen_reward": 1, "rejected_reward": 2}',
    b'{"prompt": "Q1", "chosen": "good", "rejected": ""}',
    b'{"prompt": "Q2", "chosen": "good", "rejected": " "}',
    b'{"prompt": ',
    b"\xff\xfe",
    b"[1,2]",
    b'{"prompt": "x", "chosen": "same", "rejected": "same"}',
    b'{"\\u001b[31mkey\\r": 1}',
    b'{"prompt": "twice", "chosen": "a", "rejected": "b"}',
    b'{"prompt": "twice", "chosen": "a", "rejected": "b"}',
    b'{"prompt": "x", "chosen": "other", "rejected": "other"}',
]


def test_broken_rows_by_kind(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join(BROKEN))
    printed, figures = run(path)
    assert (figures["records"], figures["usable"], figures["bad"]) == (11, 3, 8)
    kinds = [
        (kind["what"], [place.removeprefix(f"{path}:") for place in kind["examples"]]) for kind in figures["bad_rows"]
    ]
    needed = "a pair needs chosen and rejected, and prompt unless they hold whole conversations"
    assert kinds == [
        ("rejected: the response is empty", ["2", "3"]),
        ("chosen and rejected are identical: 'same'", ["7", "11"]),
        ("unreadable JSON: Expecting value at column 13", ["4"]),
        ("unreadable JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte", ["5"]),
        ("the row is a list, not an object with named columns", ["6"]),
        (f"missing column chosen and rejected: {needed}; found: \\x1b[31mkey\\r", ["8"]),
    ]
    assert figures["duplicates"] == {"count": 1, "examples": [[f"{path}:9", f"{path}:10"]]}
    assert (figures["with_id"], figures["with_rewards"]) == (1, 1)
    assert figures["rewards"] == {"chosen_higher": 0, "equal": 0, "rejected_higher": 1}
    assert figures["unit"] == "characters"
    assert figures["lengths"]["prompt"]["max"] == 5
    assert r"⟦x \x1b[31mred [bold]b[/bold] \u202e\x07 :smile:⟧" in printed
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
    assert "2 rejected: the response is empty broken.jsonl:2, 3" in words(printed)
    assert "1 (33.3%): broken.jsonl:10 is broken.jsonl:9" in printed


def test_examples_with_their_mask(run: Run, tmp_path: Path, llama_folder: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"chosen": HH + " Four.", "rejected": HH + " Five."}])
    options = (f"tokenizer={llama_folder}", "data.chat_template=llama3")
    printed, figures = run(path, *options)
    (made,) = figures["examples"]
    piece = {"trained": True, "special": False}
    assert made["chosen"] == [{"text": "Four.", **piece}, {"text": "<|eot_id|>", "trained": True, "special": True}]
    assert made["tokens"] == {"prompt": 27, "chosen": 3, "rejected": 3}
    assert "".join(p["text"] for p in made["prompt"]).startswith(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>"
    )
    assert not any(p["trained"] for p in made["prompt"])
    assert "⟦Four.<|eot_id|>⟧" in printed
    assert figures["template"] == "llama3"
    cut, _ = run(path, *options, "data.max_length=29")
    assert "⟦Four.⟧" in cut  # no end token: it was cut
    assert "(prompt 27, chosen 2, rejected 2 tokens, cut)" in cut
    assert "responses cut  2 (100.0%) at data.max_length=29" in cut


def test_all_turns_of_an_example(run: Run, tmp_path: Path, llama_folder: str) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}, ASK, RIGHT]
    path = write(tmp_path / "a.jsonl", [{"messages": turns}])
    options = (f"tokenizer={llama_folder}", "data.chat_template=llama3", "data.assistant_turns=all")
    printed, figures = run(path, *options)
    assert figures["rows"] == "examples"
    trained = "".join(p["text"] if p["trained"] else "|" for p in figures["examples"][0]["chosen"])
    assert re.sub(r"\|{2,}", "|", trained.replace("<|eot_id|>", "#")) == "Hello!#|Four.#"
    assert "⟦Hello!<|eot_id|>⟧" in printed
    assert "⟦Four.<|eot_id|>⟧" in printed


def test_lists_weights_and_kinds_of_rows(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [PAIR] * 3)
    two = write(tmp_path / "two.jsonl", [{"prompt": "Q", "completion": "a"}, PAIR])
    _, figures = run(f"[{one}:0.7,{two}:0.3]")
    assert (figures["paths"], figures["weights"]) == ([one, two], [0.7, 0.3])
    assert (figures["rows"], figures["usable"], figures["bad"], figures["duplicates"]["count"]) == ("pairs", 4, 1, 3)
    _, figures = run(two)
    assert figures["rows"] == "pairs"
    printed, figures = run(two, "rows=examples", "examples=1")
    assert (figures["rows"], figures["usable"], figures["bad"]) == ("examples", 2, 0)
    assert list(figures["lengths"]) == ["prompt", "response", "total"]
    assert len(figures["examples"]) == 1
    assert "2 examples to train on." in printed


def test_helpsteer2_tells_what_it_left_out(run: Run, tmp_path: Path) -> None:
    rows = [
        {"prompt": p, "response": r, "helpfulness": h}
        for p, r, h in (("a", "x", 1), ("a", "y", 1), ("b", "x", 1), ("c", "x", 1), ("c", "y", 0))
    ]
    printed, figures = run(write(tmp_path / "a.jsonl", rows))
    assert (figures["records"], figures["usable"], figures["without_preference"], figures["without_partner"]) == (
        5,
        1,
        1,
        1,
    )
    assert "looks like nvidia/HelpSteer2: 5 rows" in words(printed)
    assert "ties 1 pairs of equally rated responses are left out" in words(printed)


def test_a_file_that_ends_early_is_shown_as_far_as_it_goes(run: Run, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(json.dumps({**PAIR, "prompt": os.urandom(40).hex()}).encode() + b"\n" for _ in range(2000))
    path.write_bytes(gzip.compress(lines)[:-2000])
    printed, figures = run(path, code=2)
    assert figures["usable"] > 1000
    assert figures["error"].startswith(f"data.train: {path} cannot be read: Compressed file ended")
    assert "pairs to train on, but: data.train: " in words(printed)


def test_a_model_s_folder_as_tokenizer(run: Run, world: Any, tmp_path: Path) -> None:
    _, figures = run(world.pairs, f"tokenizer={world.student}")
    assert (figures["unit"], figures["usable"]) == ("tokens", 4)
