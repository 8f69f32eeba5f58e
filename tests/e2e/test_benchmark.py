"""`nemo-tvkd benchmark` by the command line: stopped by a signal, then run again to its end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmark_cases import PROMPTS, Cases, Plain, write_rows


def test_a_stopped_benchmark_goes_on(tmp_path: Path) -> None:
    cases = Cases(tmp_path)
    rows = [{"instruction": f"{row['instruction']} Number {n}."} for n in range(5) for row in PROMPTS]
    prompts = write_rows(tmp_path / "many.json", rows, as_list=True)
    output = tmp_path / "benchmark"
    command = cases.options(output, tasks="[colours]", prompts=prompts, batch_size=1)
    partial = output / "answers" / "alpaca_eval.jsonl"

    def start() -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "nemo_tvkd", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    process = start()
    deadline = time.monotonic() + 300
    while not partial.is_file() or partial.read_text().count("\n") < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 85
    assert "stopped by a signal" in error
    assert error.count("\n") == 1
    first = [json.loads(line) for line in partial.read_text().splitlines() if line.endswith("}")]
    assert 5 <= len(first) < len(rows)
    first[0]["answer"] = "kept"
    write_rows(partial, first)
    assert not (output / "results.json").exists()

    process = start()
    printed, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    bars = [line for line in error.replace("\r", "\n").splitlines() if line]
    assert all("%|" in line for line in bars), error
    assert len(bars) <= 4, "a bar in a log moves every 30 s"
    results = json.loads((output / "results.json").read_text())
    answers = [row["output"] for row in json.loads((output / "alpaca_eval.json").read_text())]
    plain = Plain(cases)
    expected = [plain.answer([{"role": "user", "content": row["instruction"]}]) for row in rows]
    place = first[0]["conversation"]
    assert answers == [*expected[:place], "kept", *expected[place + 1 :]]
    assert results["tasks"]["colours"]["value"] == pytest.approx(plain.accuracies("colours", 0)[1], abs=1e-12)
    assert results["alpaca_eval"]["answers"] == results["alpaca_eval"]["reward"]["answers"] == len(rows)
    assert results["mt_bench"]["answers"] == 6
    assert results["versions"].keys() >= {"nemo_tvkd", "torch", "transformers", "lm_eval"}
    assert "colours" in printed
    assert "AlpacaEval: 60 answers" in printed
