"""A benchmark's results as text."""

from typing import Any

TITLES = {"alpaca_eval": "AlpacaEval", "mt_bench": "MT-Bench"}


def show(results: dict[str, Any], folder: str) -> str:
    """The table that the command prints, of what results.json holds."""
    lines = []
    if results["tasks"]:
        width = max(len("task"), *map(len, results["tasks"]))
        lines.append(f"{'task':{width}}  {'shots':>5}  {'samples':>7}  {'metric':24}  {'value':>7}  {'stderr':>7}")
        for name, row in results["tasks"].items():
            shots = "-" if row["shots"] is None else row["shots"]
            error = "-" if row["stderr"] is None else f"{row['stderr']:.4f}"
            lines.append(
                f"{name:{width}}  {shots:>5}  {row['samples']:>7}  {row['metric']:24}  {row['value']:7.4f}  {error:>7}"
            )
        if results["leaderboard_average"] is not None:
            lines.append(f"Open LLM Leaderboard v1, average of the six: {results['leaderboard_average']:.4f}")
    for part, title in TITLES.items():
        if part not in results:
            continue
        row = results[part]
        line = f"{title}: {row['answers']} answers of {row['mean_length']:.0f} characters on average"
        if "reward" in row:
            error = row["reward"]["stderr"]
            line += f", reward {row['reward']['mean']:.4g}" + ("" if error is None else f" +- {error:.2g}")
        lines.append(line)
    return "\n".join([*lines, f"results: {folder}/results.json"])
