"""The private Slurm of these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import MissingPrograms, SlurmCluster, build_plugin


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Virtual nodes n1 to n8: tests keep to n1 and n2 unless they take nodes away from jobs."""
    folder = tmp_path_factory.mktemp("slurm")
    try:
        cluster = SlurmCluster(folder, nodes=8, plugin=build_plugin(Path(__file__).with_name("fakepyxis.c"), folder))
    except MissingPrograms as missing:
        pytest.skip(f"no Slurm: {missing}")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
