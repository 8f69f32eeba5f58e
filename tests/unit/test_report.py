"""`nemo-tvkd report`: the figures of run folders, compared with ones computed here from the same files."""

import json
import math
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from run_folders import BENCHMARK, PREFERENCES, SFT_ROWS, TVKD_ROWS, chain, scaled, stage, submission, trained, write

from nemo_tvkd.commands.report import main
from nemo_tvkd.commands.report.contents import collect
from nemo_tvkd.commands.report.folder import read_run
from nemo_tvkd.commands.report.page import markdown
from nemo_tvkd.errors import UserError

Rows = list[dict[str, str]]


def table(text: str, title: str) -> Rows:
    """The first Markdown table behind a title, a dictionary by header for each row."""
    lines = text[text.index(title) :].splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("|"))
    cells = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert all(len(row) == len(cells[0]) for row in cells)
    assert all(set(cell) <= set("-:") for cell in cells[1])
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def report(run_dir: Path) -> str:
    """As in report.md; drawing the curves takes longer than all the rest."""
    return markdown(collect(read_run(run_dir, single=True), datetime(2026, 11, 21, 12, 30, tzinfo=timezone.utc)))


def results(run_dir: Path) -> dict[str, dict[str, str]]:
    return {row["stage"]: row for row in table(report(run_dir), "## Results")}


def rows(text: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_training_stage_has_its_last_figures_and_the_median_speed(tmp_path: Path) -> None:
    row = results(chain(tmp_path))["train-0"]
    *trained_rows, judged = rows(TVKD_ROWS)
    last = trained_rows[-1]
    assert (row["method"], row["steps"], row["pairs"], row["state"]) == ("tvkd", "100/100", "3200", "done")
    assert float(row["loss"]) == pytest.approx(last["loss"], abs=5e-5)
    assert float(row["accuracy"]) == last["rewards/accuracies"]
    assert float(row["margin"]) == pytest.approx(last["rewards/margins"], abs=5e-5)
    assert float(row["eval loss"]) == pytest.approx(judged["eval_loss"], abs=5e-5)
    assert float(row["eval accuracy"]) == judged["eval_rewards/accuracies"]
    assert float(row["eval margin"]) == pytest.approx(judged["eval_rewards/margins"], abs=5e-5)
    assert float(row["tokens/s"]) == round(float(np.median([r["tokens_per_second"] for r in trained_rows])))


def test_every_figure_of_the_last_rows_is_in_the_stage_section(tmp_path: Path) -> None:
    trained(tmp_path, TVKD_ROWS, "tvkd", 100)
    text = report(tmp_path)
    found = {row[""]: float(row["value"]) for row in table(text[text.index(f"## {tmp_path.name}") :], "Figures")}
    *_, last, judged = rows(TVKD_ROWS)
    expected = {**last, **judged}
    for name in ("step", "tokens_per_second", "pairs_seen"):
        del expected[name]
    assert found == pytest.approx(expected, rel=5e-4)


def test_seeds_have_a_mean_over_those_that_are_done(tmp_path: Path) -> None:
    found = results(chain(tmp_path))
    losses = [rows(scaled(TVKD_ROWS, factor))[2]["loss"] for factor in (1.0, 1.1)]
    mean, spread = np.mean(losses), np.std(losses, ddof=1)
    assert found["train"]["overrides"] == "mean ± s.d. of 2 of 3 seeds"
    assert found["train"]["loss"] == f"{mean:.4g} ± {spread:.2g}"
    assert found["train"]["method"] == "tvkd"
    accuracies = np.array([1.0, 1.1]) * PREFERENCES["rewards/accuracies"]
    assert found["evaluate"]["eval accuracy"] == f"{accuracies.mean():.4g} ± {accuracies.std(ddof=1):.2g}"
    assert [found[f"train-{i}"]["overrides"] for i in range(3)] == [f"trainer.seed={seed}" for seed in (1, 2, 3)]
    assert found["evaluate-1"]["overrides"] == "trainer.seed=2"  # its own overrides are paths only
    assert "export" not in found  # nothing to average


@pytest.mark.parametrize("sweep", [["algorithm.alpha={}"], ["trainer.seed={}", "algorithm.alpha={}"]])
def test_another_sweep_has_no_mean(tmp_path: Path, sweep: list[str]) -> None:
    words = [[word.format(value) for word in sweep] for value in (1, 2)]
    submission(tmp_path, [stage("train", "train", job_id=1, tasks=2, sweep=words)])
    for index in range(2):
        trained(tmp_path / "train" / str(index), TVKD_ROWS, "tvkd", 100)
    found = results(tmp_path)
    assert list(found) == ["train-0", "train-1"]
    assert found["train-1"]["overrides"] == " ".join(words[1])


def test_a_half_finished_chain_says_what_is_missing(tmp_path: Path) -> None:
    text = report(chain(tmp_path))
    states = {row["stage"]: row["state"] for row in table(text, "## Results")}
    assert states["teacher_dpo"] == "replaced"
    assert (states["train-1"], states["train-2"], states["benchmark-2"]) == ("done", "unfinished", "not started")
    note = next(line for line in text.splitlines() if line.startswith("- Not done:"))
    missing = [name for name, state in states.items() if state in ("unfinished", "not started")]
    assert len(missing) == 5
    assert all(f"{name} ({states[name]})" in note for name in missing)
    assert "train-1" not in note


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    row = results(chain(tmp_path))["train-2"]
    second = rows(TVKD_ROWS)[1]
    assert row["steps"] == "20/100"
    assert float(row["loss"]) == pytest.approx(second["loss"], abs=5e-5)
    assert (row["eval loss"], row["restarts"]) == ("", "3")


def test_a_failed_stage_is_told_from_one_that_was_stopped(tmp_path: Path) -> None:
    names = ("crashed", "stopped", "queued", "empty")
    submission(tmp_path, [stage(name, "train", job_id=7) for name in names])
    for name, end in zip(names, ("code 1 ended", "code 85 ended", "code 1 requeued"), strict=False):
        (tmp_path / "jobs" / f"{name}.ends").write_text(f"2026-11-21T12:00:00Z job 7 restart 0 {end}\n")
    states = {name: row["state"] for name, row in results(tmp_path).items()}
    assert states["crashed"] == "failed (exit code 1)"
    assert states["stopped"] == "stopped"
    assert (states["queued"], states["empty"]) == ("unfinished", "not started")


def test_an_end_of_an_earlier_submission_is_no_failure_of_this_one(tmp_path: Path) -> None:
    submission(tmp_path, [stage("train", "train", job_id=8)])
    (tmp_path / "jobs" / "train.ends").write_text("2026-11-21T12:00:00Z job 7 restart 0 code 1 ended\n")
    assert results(tmp_path)["train"]["state"] == "unfinished"


def test_a_node_that_died_counts_as_a_restart(tmp_path: Path) -> None:
    """It writes no line: the next job's number of restarts tells."""
    submission(tmp_path, [stage("train", "train", job_id=7)])
    lines = [
        "job 5 restart 0 code 85 requeued",
        "job 5 restart 1 code 1 ended",
        "job 7 restart 2 code 0 ended",
        "cut o",
    ]
    text = "".join(f"2026-11-21T12:00:00Z {line}\n" for line in lines)
    (tmp_path / "jobs" / "train.ends").write_text(text)
    assert results(tmp_path)["train"]["restarts"] == "3"


def test_a_score_stage_has_its_pairs_and_bytes(tmp_path: Path) -> None:
    text = report(chain(tmp_path))
    row = next(row for row in table(text, "## Results") if row["stage"] == "score")
    assert (row["pairs"], row["size"]) == ("1800", f"{316549 / 1024:.4g} KiB")
    facts = {row[""]: row["value"] for row in table(text, "## score")}
    assert (facts["bytes"], facts["model"]) == ("316549", "runs/teacher_dpo/checkpoints/step-00000100")


def test_an_evaluation_has_its_figures_with_errors_and_by_strength(tmp_path: Path) -> None:
    text = report(chain(tmp_path))
    row = next(row for row in table(text, "## Results") if row["stage"] == "evaluate-0")
    assert row["eval accuracy"] == "0.7133 ± 0.026"
    assert (row["eval margin"], row["pairs"]) == ("6.821 ± 0.81", "300")
    weak, strong = table(text, "By the strength of the preference: rewards, task 0: trainer.seed=1")
    assert weak["oracle's reward difference"] == "0.1 to 1.25"
    assert (weak["accuracy"], weak["margin"], weak["pairs"]) == ("0.6125 ± 0.04", "2.345 ± 0.5", "150")
    assert (weak["oracle agrees"], strong["oracle agrees"]) == ("0.6271", "–")


def test_an_evaluation_has_intervals_and_its_calibration(tmp_path: Path) -> None:
    submission(tmp_path, [stage("evaluate", "evaluate", job_id=1)])
    write(tmp_path / "evaluate" / "preferences.json", PREFERENCES)
    text = report(tmp_path)
    found = {row[""]: row["value"] for row in table(text, "Figures")}
    assert found["rewards/oracle_correlation"] == "0.4321 (0.381 to 0.48)"
    assert found["rewards/margins"] == "6.821 ± 0.81"
    assert "rewards/teacher_agreement" not in found
    assert {row[""]: row["value"] for row in table(text, "Settings")}["confidence"] == "0.95"
    (row,) = table(text, "By the confidence of the margin: rewards")
    assert row["confidence"] == "0.5 to 0.75"
    assert (row["mean"], row["accuracy"], row["pairs"]) == ("0.625", "0.5432", "300")


def test_a_comparison_has_each_checkpoints_accuracy_and_p(tmp_path: Path) -> None:
    submission(tmp_path, [stage("evaluate", "evaluate", job_id=1)])
    tests = {"rewards/accuracies": {"test": "exact McNemar", "p": 0.01, "p_holm": 0.0234}}
    several = [{**PREFERENCES, "checkpoint": name} for name in ("runs/a", "runs/b")]
    compared = [{"checkpoint": "runs/b", "against": "runs/a", "tests": tests}]
    write(tmp_path / "evaluate" / "preferences.json", {"checkpoints": several, "comparisons": compared})
    found = {row[""]: row["value"] for row in table(report(tmp_path), "Figures")}
    assert found["runs/a rewards/accuracies"] == found["runs/b rewards/accuracies"] == "0.7133 ± 0.026"
    assert found["runs/b rewards/accuracies: p (Holm)"] == "0.0234"


def test_a_benchmark_has_a_row_for_each_task(tmp_path: Path) -> None:
    submission(tmp_path, [stage("benchmark", "benchmark", job_id=1)])
    write(tmp_path / "benchmark" / "results.json", BENCHMARK)
    text = report(tmp_path)
    row = table(text, "## Results")[0]
    assert (row["leaderboard average"], row["AlpacaEval reward"]) == ("0.3549", "-1.153 ± 0.021")
    assert row["MT-Bench reward"] == "-0.8725 ± 0.11"
    found = {row[""]: row["value"] for row in table(text, "Figures")}
    assert found["arc_challenge (acc_norm, 25 shots, 1172 samples)"] == "0.3623 ± 0.014"
    assert found["gsm8k (exact_match, 5 shots, 1319 samples)"] == "0.0614"
    assert found["MT-Bench mean answer length"] == "1711"


def test_a_benchmark_without_generations(tmp_path: Path) -> None:
    submission(tmp_path, [stage("benchmark", "benchmark", job_id=1)])
    absent = dict.fromkeys(("leaderboard_average", "alpaca_eval", "mt_bench"))
    write(tmp_path / "benchmark" / "results.json", BENCHMARK | absent)
    text = report(tmp_path)
    assert not {"leaderboard average", "AlpacaEval reward"} & set(table(text, "## Results")[0])
    assert len(table(text, "Figures")) == len(BENCHMARK["tasks"])


def test_the_output_of_a_single_training_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "my_run"
    trained(run_dir, SFT_ROWS, "sft", 150)
    assert main(str(run_dir)) == 0
    text = (run_dir / "report.md").read_text()
    (row,) = table(text, "## Results")
    assert (row["stage"], row["method"], row["steps"], row["state"]) == ("my_run", "sft", "150/150", "done")
    assert row["loss"] == "0.7165"
    assert "recipe" not in text
    assert {file.name for file in run_dir.iterdir()} >= {"report.md", "report.html"}
    assert "| my_run | done " in capsys.readouterr().out


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    trained(tmp_path, "", "dpo", 50, finished=False)
    (tmp_path / "metrics.jsonl").unlink()
    assert next(iter(results(tmp_path).values()))["state"] == "unfinished"


def test_what_is_no_number_is_no_figure(tmp_path: Path) -> None:
    row = {"step": 1, "loss": math.nan, "rewards/margins": "high", "lr": 10**400, "grad_norm": True}
    trained(tmp_path, json.dumps(row) + "\n[1]\n" + '{"step": null}\n{"step": 2, "loss": 0.5}\n', "dpo", 2)
    found = results(tmp_path)[tmp_path.name]
    assert (found["loss"], found["steps"]) == ("0.5", "2/2")
    assert "margin" not in found


def test_one_broken_file_does_not_cost_the_others(tmp_path: Path) -> None:
    chain(tmp_path)
    (tmp_path / "evaluate" / "0" / "preferences.json").write_text('{"pairs": 3')
    write(tmp_path / "score" / "manifest.json", [1])
    text = report(tmp_path)
    found = {row["stage"]: row for row in table(text, "## Results")}
    assert (found["evaluate-0"]["state"], found["train-0"]["loss"]) == ("unreadable", "0.6139")
    assert any("preferences.json cannot be read as JSON" in line for line in text.splitlines() if line[0:2] == "- ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no submission.json"),
        ("{", "submission.json cannot be read as JSON"),
        ('{"version": 2}', "version 1"),
        ('{"version": 1, "stages": [{"name": "x"}]}', "'command'"),
    ],
)
def test_no_run_folder(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "submission.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        main(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert not (tmp_path / "report.md").exists()


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no directory"):
        main(str(tmp_path / "absent"))


def test_a_report_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    trained(tmp_path, SFT_ROWS, "sft", 150)
    (tmp_path / "report.md").mkdir()
    with pytest.raises(UserError, match=r"report\.md cannot be written"):
        main(str(tmp_path))
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".report")]


def test_curves_hold_the_rows_of_training_and_validation(tmp_path: Path) -> None:
    run = collect(read_run(chain(tmp_path), single=True), datetime.now(timezone.utc))
    (section,) = (section for section in run.sections if section.title == "train")
    charts = {chart.title: chart.curves for chart in section.charts}
    assert list(charts) == ["loss", "accuracy", "reward margin", "learning rate", "gradient norm"]
    *trained_rows, judged = rows(TVKD_ROWS)
    first, second, third = charts["loss"]
    assert first.training == [(row["step"], row["loss"]) for row in trained_rows]
    assert first.validation == [(100, judged["eval_loss"])]
    assert second.training[0] == (10, pytest.approx(trained_rows[0]["loss"] * 1.1))
    assert (third.label, len(third.training), third.validation) == ("2", 2, [])
    assert charts["gradient norm"][0].training[1] == (20, trained_rows[1]["grad_norm"])
    sft = next(section for section in run.sections if section.title == "teacher_sft")
    assert [chart.title for chart in sft.charts] == ["loss", "learning rate", "gradient norm"]


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    submission(tmp_path, [stage("a|b<script>", "train")], recipe="*x* `y`")
    text = report(tmp_path)
    assert r"a\|b&lt;script>" in text
    assert r"# \*x\* \`y\`: results" in text
