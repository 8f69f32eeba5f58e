"""Fixtures of all tests, and how `pytest -n 2` shares the tests out between two processes."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
if "NEMO_TVKD_CACHE" not in os.environ:  # of the tests' rows and models nothing is left in runs/
    os.environ["NEMO_TVKD_CACHE"] = tempfile.mkdtemp(prefix="nemo_tvkd-tests-")
    atexit.register(shutil.rmtree, os.environ["NEMO_TVKD_CACHE"], ignore_errors=True)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these tests are about CPU ranks, also on a machine that has GPUs

from golden_messages import Messages
from rank_pool import RankPool

FOLDERS = ("slurm", "e2e", "distributed", "unit")
"""Under xdist those that take longest come first, and short files last, so that both processes end together."""
MESSAGES = pytest.StashKey[Messages]()
WHOLE = pytest.StashKey[set[str]]()
"""Files of which all tests run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-messages", action="store_true", help="write tests/golden/messages.txt anew")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MESSAGES] = Messages(config.getoption("--update-messages"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    options = config.option
    chosen = (
        options.keyword
        or options.markexpr
        or getattr(options, "lf", False)
        or any("::" in word for word in config.args)
    )
    config.stash[WHOLE] = set() if chosen else {item.nodeid.split("::")[0] for item in items}
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (*FOLDERS, _folder(item.nodeid)).index(_folder(item.nodeid)))


def _folder(test: str) -> str:
    return test.split("/")[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests run in one process, and all tests that need Slurm: it is started once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if _folder(nodeid) == "slurm" else nodeid.split("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    messages = config.stash[MESSAGES]
    if hasattr(config, "workeroutput"):  # one of xdist's processes
        config.workeroutput["messages"] = messages.new
        config.workeroutput["whole"] = sorted(config.stash[WHOLE])
    elif messages.update:
        messages.write(messages.new, config.stash.get(WHOLE, set()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    output = getattr(node, "workeroutput", {})
    messages = node.config.stash[MESSAGES]
    messages.new |= output.get("messages", {})
    node.config.stash.setdefault(WHOLE, set()).update(output.get("whole", ()))


@pytest.fixture
def messages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Compares what a command refuses with (without the "nemo-tvkd: ") with tests/golden/messages.txt."""
    known, base = request.config.stash[MESSAGES], tmp_path_factory.getbasetemp()
    return lambda message: known.record(request.node.nodeid, message, base)


@pytest.fixture(scope="session")
def pool() -> Iterator[RankPool]:
    pool = RankPool()
    yield pool
    pool.stop()
