"""What launchers tell a rank, and what happens when they tell nonsense."""

import os

import pytest

from nemo_tvkd.config.commands import ParallelConfig
from nemo_tvkd.errors import UserError
from nemo_tvkd.runtime import exits, launch
from nemo_tvkd.runtime.launch import world_size

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID",
             "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE")  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_no_launcher() -> None:
    assert not exits.under_launcher()
    assert exits.rank_variables() == {"rank": 0, "world": 1, "local_rank": 0, "local_world": 1}
    assert world_size(ParallelConfig(2, 2)) == 4
    assert world_size(ParallelConfig(2, 1, data_parallel_size=3)) == 6


def test_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 9, "WORLD_SIZE": 16, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    assert exits.rank_variables() == {"rank": 9, "world": 16, "local_rank": 1, "local_world": 8}


@pytest.mark.parametrize("per_node", ["8(x2)", "8,8"])
def test_srun(monkeypatch: pytest.MonkeyPatch, per_node: str) -> None:
    monkeypatch.setenv("SLURM_PROCID", "9")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", per_node)
    assert exits.rank_variables() == {"rank": 9, "world": 16, "local_rank": 1, "local_world": 8}
    assert world_size(ParallelConfig(2, 2)) == 16


def test_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """sbatch gives its script a task id and the job's number of tasks; `nemo-tvkd export-hf` there is one process."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert not exits.under_launcher()
    assert exits.is_rank_zero()


def test_ranks_that_do_not_fit_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UserError, match=r"6 ranks were started but parallel\.tensor_model_parallel_size x .* is 4"):
        world_size(ParallelConfig(2, 2))


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a one-GPU machine, which is not here."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert world_size(ParallelConfig()) == 1
    with pytest.raises(UserError, match="starts 4 ranks here but 1 GPUs are visible"):
        world_size(ParallelConfig(2, 2))


def test_forked_ranks_meet_at_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank must never connect to a thread of the process that is forking the next one: see MEETING_POINT."""
    import torch.distributed.launcher.api as api

    seen: list[str] = []

    def no_launch(config: object, function: object) -> object:
        return lambda *args: seen.append(os.environ[launch.MEETING_POINT])

    monkeypatch.setattr(api, "elastic_launch", no_launch)
    monkeypatch.setattr(launch.cpu, "prepare_nemo", lambda: None)
    monkeypatch.setattr(launch.signal, "signal", lambda *args: None)
    assert launch.run(print, (), 2) == 0
    assert seen[0].startswith("file:///")
    assert launch.MEETING_POINT not in os.environ
