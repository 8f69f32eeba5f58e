"""Running real training of reward models, DRDO and e-DPO in the rank pool: checkpoints with heads, their gradients."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import reference as ref
import reference_rewards as rewards
import torch
from rank_pool import Layout, RankPool
from torch import Tensor
from training import VOCAB, gradients_as_hf, import_checkpoint, make_items, run_training, save_hf, train_task
from transformers import LlamaForCausalLM

ONE, TP2, PP2, DP2 = Layout(), Layout(tp=2), Layout(pp=2), Layout(dp=2)
TP2SP, TP2PP2 = Layout(tp=2, sp=True), Layout(tp=2, pp=2)
TOLERANCE = 1e-5
HEAD = "module.reward_head.weight"
ONLINE = ("oracle", "oracle/1")
"""Names of online oracles."""


class Judges:
    """A student and two larger oracles, all with reward heads; Hugging Face models, heads [1, H] and NeMo checkpoints.

    The first student is the tied one of the `models` fixture, the second has an output layer of its own.
    """

    def __init__(self, pool: RankPool, models: Any, folder: Path) -> None:
        self.students: dict[str, LlamaForCausalLM] = {
            "tied": models.student,
            "untied": ref.tiny_llama(4, vocab=VOCAB, hidden=32, layers=2, heads=4, kv_heads=2, tie=False),
        }
        self.plain: Path = models.paths["student"]
        self.reference: LlamaForCausalLM = models.teacher
        self.reference_path: Path = models.paths["teacher"]
        self.head = rewards.random_head(5, 32)
        self.paths: dict[str, Path] = {}
        for name, student in self.students.items():
            source = save_hf(student, folder / f"{name}_hf")
            save_head(self.head, source)
            self._import(pool, name, source, folder)
        self.oracles = [
            ref.tiny_llama(6, vocab=VOCAB, hidden=48, layers=4, heads=6, kv_heads=2),
            ref.tiny_llama(7, vocab=VOCAB, hidden=64, layers=2, heads=4, kv_heads=4),
        ]
        self.oracle_heads = [rewards.random_head(8, 48), rewards.random_head(9, 64)]
        for name, oracle, head in zip(ONLINE, self.oracles, self.oracle_heads, strict=True):
            source = save_hf(rewards.as_classifier(oracle, head), folder / f"{name.replace('/', '_')}_hf")
            self._import(pool, name, source, folder)

    def _import(self, pool: RankPool, name: str, source: Path, folder: Path) -> None:
        self.paths[name] = folder / name.replace("/", "_")
        pool.run(ONE, import_checkpoint, str(source), str(self.paths[name]))

    def judge(self, pairs: Sequence[ref.RefPair], oracles: int = 1) -> Tensor:
        """r* of the first `oracles` oracles, [K, pairs, 2]."""
        both = list(zip(self.oracles, self.oracle_heads, strict=True))[:oracles]
        return torch.stack([rewards.oracle_rewards(oracle, head, pairs) for oracle, head in both])

    def online(self, oracles: int = 1) -> dict[str, Path]:
        return {name: self.paths[name] for name in ONLINE[:oracles]}


@pytest.fixture(scope="session")
def judges(pool: RankPool, models: Any, tmp_path_factory: pytest.TempPathFactory) -> Judges:
    """For a test module to import."""
    return Judges(pool, models, tmp_path_factory.mktemp("judges"))


def save_head(head: Tensor, folder: Path) -> None:
    """A reward head beside a causal LM's weights."""
    from safetensors.torch import save_file

    save_file({"weight": head.clone()}, folder / "reward_head.safetensors", metadata={"format": "pt"})


def judged_items(pairs: list[ref.RefPair], oracles: Tensor | None, margins: Sequence[float] | None = None) -> list[Any]:
    """Items that carry the rewards [K, pairs, 2] of K oracles, as from a store or columns, and a margin each."""
    items = make_items(pairs)
    for index, item in enumerate(items):
        if oracles is not None:
            item.numbers |= {
                f"oracle/{k}.reward" if k else "oracle.reward": (float(w), float(lost))
                for k, (w, lost) in enumerate(oracles[:, index])
            }
        if margins is not None:
            item.tokens.margin = float(margins[index])
    return items


def initial_head(hidden: int, std: float, seed: int) -> Tensor:
    """Task: the head [1, H] of a run whose student has none."""
    from nemo_tvkd.models.reward_head import RewardHead

    return RewardHead(hidden, std, seed).weight.detach().clone()


def read_head(folder: str, hidden: int) -> Tensor | None:
    """Task: the head, or its gradient, in a distributed checkpoint as it is stored; None where there is none."""
    from torch.distributed import checkpoint

    reader = checkpoint.FileSystemReader(folder)
    entry = reader.read_metadata().state_dict_metadata.get(HEAD)
    if entry is None:
        return None
    assert tuple(entry.size) == (1, hidden), entry.size
    found = {HEAD: torch.full((1, hidden), torch.nan, dtype=entry.properties.dtype)}
    checkpoint.load(found, storage_reader=reader, no_dist=True)
    return found[HEAD]


def check_gradient(name: str, got: Tensor, want: Tensor, scale: float) -> None:
    """Within 1e-5 of its own norm, or of a thousandth of the largest parameter's."""
    difference = (got.double() - want).norm().item()
    assert difference <= TOLERANCE * max(want.norm().item(), 1e-3 * scale), (name, difference, want.norm().item())


@dataclasses.dataclass
class Step:
    """One training step and what it must give."""

    layout: Layout
    algorithm: str
    expected: Tensor
    """The reference's loss, with its graph."""
    metrics: dict[str, float]
    student: LlamaForCausalLM
    checkpoint: Path
    items: list[Any]
    options: list[str]
    head: Tensor | None = None
    """The leaf of the reference's graph."""
    frozen: dict[str, Path] = dataclasses.field(default_factory=dict)

    def check(self, pool: RankPool, folder: Path) -> dict[str, Any]:
        """Loss, metrics, and the gradient of every parameter, the head's included; returns the row."""
        gradients = str(folder / "gradients")
        row = run_training(
            pool,
            self.layout,
            folder / "run",
            algorithm=self.algorithm,
            student=self.checkpoint,
            items=self.items,
            frozen=self.frozen,
            gradients=gradients,
            hook=HeadsAgree,
            options=self.options,
        )[0]
        assert row["loss"] == pytest.approx(self.expected.item(), rel=TOLERANCE), (row["loss"], self.expected)
        for name, value in self.metrics.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (name, row[name], value)
        assert (rewards.CORRELATION in row) == (rewards.CORRELATION in self.metrics)
        self._check_gradients(pool, gradients, row)
        return row

    def _check_gradients(self, pool: RankPool, gradients: str, row: dict[str, Any]) -> None:
        want = ref.gradients(self.expected, self.student)
        of_head = pool.run(ONE, read_head, f"{gradients}/weights", self.student.config.hidden_size)[0]
        got = pool.run(ONE, gradients_as_hf, gradients, str(self.checkpoint))[0]
        assert set(got) == set(want)
        assert (of_head is None) == (self.head is None)
        if self.head is not None:
            got["reward head"] = of_head
            want["reward head"] = torch.autograd.grad(self.expected, self.head)[0]
            assert want["reward head"].norm() > 0
        scale = max(g.norm().item() for g in want.values())
        for name, gradient in want.items():
            check_gradient(name, got[name], gradient, scale)
        total = torch.stack([g.norm() for g in want.values()]).norm().item()
        assert row["grad_norm"] == pytest.approx(total, rel=TOLERANCE), (row["grad_norm"], total)


def HeadsAgree() -> Any:
    """A callback: after every update all ranks that hold the policy's head hold the same one.

    Heads compute in float32. The policy's parameter is float32, or in a bf16 run bf16 with a float32 master; a frozen
    oracle's is float32 always.
    """
    import lightning.pytorch as pl
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.utils import unwrap_model

    from nemo_tvkd.models.online import OnlineScorer

    class Agree(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            scorers = [c for c in trainer.callbacks if isinstance(c, OnlineScorer)]
            frozen = [unwrap_model(module) for scorer in scorers for _, module, _ in scorer.models]
            for model in (*frozen, unwrap_model(pl_module.module)):
                if head := getattr(model, "reward_head", None):
                    head.register_forward_hook(computes_in_float32)
                    assert model not in frozen or head.weight.dtype == torch.float32

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            model = unwrap_model(pl_module.module)
            if (head := getattr(model, "reward_head", None)) is None:
                return
            assert head.weight.dtype == model.config.params_dtype
            assert getattr(head.weight, "main_param", head.weight).dtype == torch.float32
            for group in (parallel_state.get_tensor_model_parallel_group(), parallel_state.get_data_parallel_group()):
                all_heads = [torch.empty_like(head.weight) for _ in range(group.size())]
                dist.all_gather(all_heads, head.weight.detach(), group=group)
                assert all(torch.equal(other, all_heads[0]) for other in all_heads), "the heads have come apart"

    return Agree()


def computes_in_float32(head: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    """A forward hook: the reward is not one of lower precision, stored in float32."""
    assert output.dtype == torch.float32
    exact = (inputs[0].detach().double() * head.weight.detach().double()).sum(-1)
    assert torch.allclose(output.detach().double(), exact, rtol=1e-5, atol=1e-5), "rounded on the way"


def train_and_list_models(*arguments: Any) -> list[tuple[int, bool, bool]]:
    """Task: `train_task`; returns (layers, has an output layer, has a reward head) of every model that was built."""
    from nemo_tvkd.models.architecture import CausalLMConfig

    built = []
    original = CausalLMConfig.configure_model

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        built.append((self.num_layers, self.lm_head, self.reward_head))
        return original(self, *args, **kwargs)

    CausalLMConfig.configure_model = counted
    try:
        train_task(*arguments)
    finally:
        CausalLMConfig.configure_model = original
    return built
