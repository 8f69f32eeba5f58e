"""`nemo-tvkd doctor`: each thing that it looks at, right and wrong, in a chain of tiny models.

What it says must be what the commands would: no mistake that ends a job may be OK, and nothing that works may fail.
"""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from bad_input import World, write_rows
from doctor_cases import ROWS, Chain

from nemo_tvkd.commands.doctor.memory import OUTSIDE_TENSORS
from nemo_tvkd.commands.doctor.sizes import estimate
from nemo_tvkd.commands.doctor.stages import StageChecks
from nemo_tvkd.data.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("without_nemo", "no_ranks")


def test_nothing_to_say(chain: Chain) -> None:
    found = chain.examine()
    assert {check.level for check in found} == {"OK"}
    names = {check.name for check in found}
    for stage in ("first", "second", "third"):
        looked = ("configuration", "student.path", "layout", "batch", "tokenizer", "data", "memory", "hours")
        assert {f"{stage}: {name}" for name in looked} <= names
    for stage, model in (("judge", "score.model"), ("verdict", "checkpoint")):
        assert {f"{stage}: {name}" for name in ("layout", model, "tokenizer", "data", "memory", "hours")} <= names
    assert {"disk space", "third: teacher.path", "export: checkpoint"} <= names


MISTAKES: dict[str, tuple[list[str], str, list[str]]] = {
    "a value of a key": (["third.trainer.precision=fp16"], "third: configuration", ["trainer.precision=fp16", "bf16"]),
    "an unknown key": (["judge.optim.lr=1"], "judge: configuration", ["stage judge", "optim.lr"]),
    "no such data": (["judge.data.train=/no/rows.jsonl"], "judge: data", ["data.train", "/no/rows.jsonl"]),
    "no such validation data": (["third.data.validation=/no/v.jsonl"], "third: data.validation", ["/no/v.jsonl"]),
    "no validation data to score": (["judge.data.validation=/no/v.jsonl"], "judge: data.validation", ["/no/v.jsonl"]),
    "no data to evaluate": (["verdict.data.validation="], "verdict: data", ["data.validation is not set"]),
    "prompts fill the length": (["third.data.max_length=8"], "third: data", ["rows.jsonl:1", "data.max_length=8"]),
    "heads": (["judge.parallel.tensor_model_parallel_size=8", "judge.cluster.nodes=4"], "judge: layout", ["=8", "4"]),
    "key/value heads": (
        ["judge.parallel.tensor_model_parallel_size=4", "judge.cluster.gpus_per_node=4"],
        "judge: layout",
        ["tensor_model_parallel_size=4", "2 key/value heads", "score.model"],
    ),
    "layers": (
        ["second.parallel.pipeline_model_parallel_size=4", "second.cluster.nodes=2"],
        "second: layout",
        ["pipeline_model_parallel_size=4", "2 layers", "student.path"],
    ),
    "ranks": (["first.parallel.pipeline_model_parallel_size=4"], "first: layout", ["1 nodes x 2 ranks", "= 4"]),
    "a batch": (["second.trainer.global_batch_size=6"], "second: batch", ["=6", "=2 x 2 data-parallel replicas"]),
    "too few rows for a step": (["third.trainer.global_batch_size=20"], "third: hours", ["16 rows", "no step", "=20"]),
    "too few rows on CPUs": (
        ["third.cluster.gpus_per_node=0", "third.trainer.global_batch_size=64"],
        "third: hours",
        ["16 rows", "no step"],
    ),
    "no template": (["first.data.chat_template=llama4"], "first: tokenizer", ["data.chat_template=llama4", "llama3"]),
    "no end token": (["first.data.end_token='<|eos|>'"], "first: tokenizer", ["data.end_token=<|eos|>", "<|user|>"]),
    "no pad token": (["second.data.pad_token='<p>'"], "second: tokenizer", ["data.pad_token=<p>", "<pad>"]),
    "no tokenizer": (["third.student.tokenizer=/no/t"], "third: tokenizer", ["student.tokenizer", "/no/t"]),
    "nothing known to score": (["judge.score.what=[values]"], "judge: configuration", ["score.what=values", "value"]),
    "no scores": (["third.teacher.scores="], "third: settings", ["teacher.scores is not set", "teacher.mode=cached"]),
    "scores that nothing reads": (["third.teacher.mode=online"], "third: settings", ["teacher.mode=cached"]),
    "no oracle": (["third.algorithm=drdo"], "third: settings", ["oracle.path is not set", "algorithm=drdo"]),
    "a reference that is not there": (["verdict.reference=/no/m"], "verdict: reference", ["reference", "/no/m"]),
    "a model that is not there": (["second.student.path=/no/m"], "second: student.path", ["/no/m", "directory"]),
    "a hub id": (["second.student.path=no-org/none"], "second: student.path", ["hf download no-org/none", "HF_HOME"]),
}


@pytest.mark.parametrize(("words", "name", "said"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake(plain: Chain, words: list[str], name: str, said: list[str]) -> None:
    if words[0].startswith("second.student.path"):
        plain.recipe["stages"]["second"]["models"] = {}
    found = plain.failing(*words)
    assert found.keys() == {name}, found
    assert found[name].startswith("FAIL")
    for part in said:
        assert part in found[name], found


FINE = {
    "an end token": ["first.data.end_token='<|user|>'"],
    "one step": ["third.trainer.global_batch_size=16"],
    "a step of several epochs": ["third.trainer.global_batch_size=32", "third.trainer.max_epochs=2"],
    "steps are told": ["third.trainer.global_batch_size=64", "third.trainer.max_steps=3"],
    "an oracle that is not read": ["third.oracle.path=/no/oracle"],
    "an online teacher": ["third.teacher.mode=online", "third.teacher.scores="],
    "nodes without GPUs": ["cluster.gpus_per_node=0", "cluster.ranks_per_node=2"],
    "tensor parallelism": ["third.parallel.tensor_model_parallel_size=2", "judge.parallel.sequence_parallel=false"],
}


@pytest.mark.parametrize("words", FINE.values(), ids=FINE.keys())
def test_no_mistake(plain: Chain, words: list[str]) -> None:
    assert plain.failing(*words) == {}


def test_a_teacher_whose_values_are_stored_need_not_fit_the_students_layout(chain: Chain) -> None:
    chain.recipe["models"]["big"]["path"] = str(chain.config_of("teacher", num_hidden_layers=3))
    halves = "third.parallel.pipeline_model_parallel_size=2"
    assert chain.failing(halves) == {}
    line = chain.only("third: layout", halves, "third.teacher.mode=online", "third.teacher.scores=")
    assert "3 layers of teacher.path" in line


def test_a_vocabulary_that_does_not_divide(chain: Chain) -> None:
    """It is padded to a multiple of 128: 3 divides six heads, and not 1024 entries."""
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "intermediate_size": 96}
    chain.recipe["models"]["little"]["path"] = str(chain.config_of("student", **sizes))
    three = ["second.parallel.tensor_model_parallel_size=3", "second.cluster.gpus_per_node=3"]
    assert "1024 padded vocabulary entries" in chain.only("second: layout", *three)


def test_a_vocabulary_smaller_than_the_tokenizer(chain: Chain, world: World) -> None:
    size = len(load_tokenizer(str(world.student)))
    chain.recipe["models"]["little"]["path"] = str(chain.config_of("student", vocab_size=size - 1))
    found = chain.failing()
    assert f"{size} entries but the model's vocabulary has {size - 1}" in found["second: tokenizer"]


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "no such"])
def test_another_family_of_models(chain: Chain, family: str) -> None:
    place = chain.config_of("teacher")
    (place / "config.json").write_text(f'{{"model_type": "{family}"}}')
    chain.recipe["models"]["big"]["path"] = str(place)
    found = chain.failing()
    assert any(line.startswith("FAIL") and family in line for line in found.values()), found
    assert {name.split(":")[0] for name in found} <= {"first", "judge", "third"}


def test_tensor_parallelism_across_nodes_is_slow_and_works(chain: Chain) -> None:
    words = ["judge.parallel.tensor_model_parallel_size=2", "judge.cluster.gpus_per_node=1", "judge.cluster.nodes=2"]
    line = chain.only("judge: layout", *words)
    assert line.startswith("WARN")
    assert "across nodes" in line


def test_a_base_model_without_a_template(chain: Chain, mistral_file: str) -> None:
    chain.recipe["models"]["little"]["path"] = str(chain.config_of("student", vocab_size=32000))
    words = [f"second.student.tokenizer={mistral_file}"]
    line = chain.failing(*words)["second: tokenizer"]
    assert line.startswith("WARN")
    assert "no chat template" in line
    assert "data.chat_template=llama3|mistral|FILE" in line
    tokens = ["second.data.chat_template=mistral", "second.data.end_token='</s>'", "second.data.pad_token='<unk>'"]
    check = chain.check("second: tokenizer", *words, *tokens)
    assert check.level == "OK"
    assert (
        "32000 entries in a vocabulary of 32000 (padded 32000); end </s>, pad <unk>; template mistral" in check.detail
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def test_bad_rows(chain: Chain, tmp_path: Path) -> None:
    same = {"prompt": "Why?", "chosen": "So.", "rejected": "So."}
    mixed = write_rows(tmp_path / "mixed.jsonl", [*ROWS[:7], same, "no JSON", *ROWS[7:]])
    typed = f"judge.data.train={mixed}"
    line = chain.only("judge: data", typed)
    assert line.startswith("FAIL")
    for part in ("16 rows", "2 bad rows", f"{mixed}:8", "data.on_bad_row=skip"):
        assert part in line
    assert chain.only("judge: data", typed, "judge.data.on_bad_row=skip").startswith("WARN")


def test_rows_that_only_their_tokens_make_bad(chain: Chain, tmp_path: Path) -> None:
    long = {"prompt": "lamp " * 200, "chosen": "Yes.", "rejected": "No."}
    rows = write_rows(tmp_path / "long.jsonl", [*ROWS, long])
    line = chain.only("judge: data", f"judge.data.train={rows}")
    assert f"{rows}:17" in line
    assert "data.max_length=128" in line


def test_nothing_but_bad_rows_is_no_matter_of_skipping(chain: Chain, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "bad.jsonl", ["{}", "{}"])
    line = chain.only("judge: data", f"judge.data.train={rows}", "judge.data.on_bad_row=skip")
    assert line.startswith("FAIL")
    assert "bad.jsonl:1" in line


def test_an_empty_file(chain: Chain, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "empty.jsonl", [])
    assert "holds no rows" in chain.only("judge: data", f"judge.data.train={rows}")


def test_conversations_are_examples_for_sft_and_no_pairs_for_score(chain: Chain, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in "abcd"
    ]
    talks = write_rows(tmp_path / "talks.jsonl", rows)
    found = chain.failing(f"second.data.train={talks}", f"judge.data.train={talks}")
    assert found.keys() == {"judge: data"}


# --- sizes ------------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**15, 0, free))


def test_disk_space(chain: Chain, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three training stages of bf16 weights (2), fp32 masters and two moments (12), three checkpoints each."""
    from transformers import AutoModelForCausalLM

    big, little = (
        sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(path).parameters())
        for path in (world.teacher, world.student)
    )
    kept = 2 + 1
    words = ["first", "second", "third"]
    keep = [f"{stage}.trainer.keep_checkpoints=2" for stage in words]
    needed = kept * 14 * (big + 2 * little) + 2 * little  # and the export in bf16
    scores = 4 * 16 * 64  # less than 64 tokens a row
    free_bytes(monkeypatch, needed + scores)
    assert chain.check("disk space", *keep).level == "OK"
    free_bytes(monkeypatch, needed - 1)
    warned = chain.only("disk space", *keep)
    assert warned.startswith("WARN")
    assert "keep_checkpoints" in warned
    free_bytes(monkeypatch, kept * 14 * big - 1)
    assert chain.only("disk space", *keep).startswith("FAIL")


def test_seeds_take_their_own_disk_space(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes(monkeypatch, 4 * 14 * 250_000 + 4 * 4 * 14 * 80_000)
    assert chain.check("disk space", "third.trainer.keep_checkpoints=3").level == "OK"
    line = chain.only("disk space", "third.trainer.keep_checkpoints=3", "third.trainer.seed=1,2,3,4,5,6")
    assert "trainer.keep_checkpoints" in line


def test_a_run_folder_that_cannot_be_made(chain: Chain) -> None:
    chain.run_dir = chain.pairs / "run"
    assert "is a file" in chain.only("run_dir")


def test_memory_against_the_card(plain: Chain) -> None:
    stage = StageChecks(submission := plain.load(), submission.stage("first", ""))
    need = (estimate(stage).total + OUTSIDE_TENSORS) / 2**30
    for share, level in ((0.89, "OK"), (0.92, "WARN"), (1.1, "WARN"), (1.2, "FAIL"), (3, "FAIL")):
        found = plain.check("first: memory", f"first.cluster.gpu_memory_gib={need / share}")
        assert found.level == level, (share, found)
        assert level == "OK" or "micro-batch" in found.advice
        assert "weights" in found.detail


def test_hours_by_hand(chain: Chain, world: World) -> None:
    """4 steps x 4 examples of teacher's size: three forward passes in the layers, four in the output layer."""
    tokenizer = load_tokenizer(str(world.teacher))
    lengths, answers = [], []
    for row in ROWS:
        ask = [{"role": "user", "content": row["prompt"]}]
        whole = tokenizer.apply_chat_template([*ask, {"role": "assistant", "content": row["chosen"]}])
        prompt = tokenizer.apply_chat_template(ask, add_generation_prompt=True)
        lengths.append(len(whole))
        answers.append(len(whole) - len(prompt))
    mean = sum(lengths) / 16
    layer = 48 * (48 + 2 * 24) + 48 * 48 + 3 * 48 * 96  # query, key and value, projection; the feed-forward network
    layers = 4 * (2 * layer + 2 * 48 * mean)
    output = 2 * len(tokenizer) * 48
    flops = sum(lengths) * (3 * layers + 4 * output * sum(answers) / sum(lengths))
    hours = flops / (2 * 1e-12 * 1e12 * 0.35) / 3600  # two GPUs of one operation a second
    found = chain.check("first: hours", "first.cluster.gpu_tflops=1e-12")
    assert f"about {hours:.2g} h: 4 steps, 2 GPUs" in found.detail, hours
    assert found.level == "WARN"
    assert f"{int(hours // 10) + 1} jobs of 10:00:00" in found.detail
    assert chain.check("first: hours", "first.cluster.gpu_tflops=1").level == "OK"
