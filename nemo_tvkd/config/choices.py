"""The words that single configuration keys take. Imports nothing: shell completion reads them too."""

from collections.abc import Sequence

from nemo_tvkd.parallel.statistic import VALUE_KINDS

FORMS = ("potential_difference", "next_value")
TERMINALS = ("bootstrap", "zero")
LOGPROBS = ("sum", "mean")
CONTRASTS = ("ratio", "product")
STUDENT_REWARDS = ("head", "implicit")
ENSEMBLES = ("mean", "min")
STORAGE = ("all", "ends")
SCORABLE = ("value", "logprob", "reward")

CHOICES: dict[str, Sequence[str]] = {
    "trainer.precision": ("bf16", "fp32"),
    "trainer.resume": ("auto", "never"),
    "optim.schedule": ("constant", "linear", "cosine"),
    "data.on_bad_row": ("error", "skip"),
    "data.assistant_turns": ("last", "all"),
    "rows": ("auto", "pairs", "examples"),
    "order": ("file", "margin", "disagreement"),
    "logger.wandb.mode": ("online", "offline"),
    "teacher.mode": ("online", "cached"),
    "reference.mode": ("online", "cached"),
    "oracle.mode": ("online", "cached", "columns"),
    "oracle.normalize": ("none", "zscore"),
    "algorithm.logprob": LOGPROBS,
    "algorithm.contrast": CONTRASTS,
    "algorithm.student_reward": STUDENT_REWARDS,
    "algorithm.ensemble": ENSEMBLES,
    **dict.fromkeys(("algorithm.shaping.value", "shaping.value"), VALUE_KINDS),
    **dict.fromkeys(("algorithm.shaping.form", "shaping.form"), FORMS),
    **dict.fromkeys(("algorithm.shaping.terminal", "shaping.terminal"), TERMINALS),
    "score.value_kind": VALUE_KINDS,
    "score.value_storage": STORAGE,
    "score.precision": ("bf16", "fp32"),
    "precision": ("bf16", "fp32"),
    "kind": ("auto", "causal_lm", "reward_model"),
    "benchmark.backend": ("hf", "vllm"),
    "benchmark.precision": ("bf16", "fp32"),
    "recipe_scale": ("full", "tiny"),
    "cluster.gpu_directive": ("gpus-per-node", "gres", "none"),
    "cluster.container.runtime": ("none", "pyxis", "apptainer", "docker"),
}
