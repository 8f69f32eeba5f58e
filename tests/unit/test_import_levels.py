"""The house has levels: no module imports from a level above its own, lazily or not, and no packages form a circle."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "nemo_tvkd"
LEVELS = (
    ("__init__", "errors", "files", "keys", "losses", "parallel"),
    ("runtime",),
    ("config", "data"),
    ("checkpoints", "scores"),
    ("cluster", "prepare"),
    ("models",),
    ("training",),
    ("commands",),
    ("__main__", "interface"),
)
"""docs/architecture.md shows the same, lowest first."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def imports(folder: Path) -> dict[str, set[str]]:
    """By module of the package in `folder` (dotted, below the package): the modules that it imports anywhere.

    The package's own __init__ offers names of upper levels; tests/unit/test_interface.py sees that it imports none.
    """
    files = {_name(file.relative_to(folder)): file for file in folder.rglob("*.py")}
    edges = {name: _imported(file, files.keys(), folder.name) - {name} for name, file in files.items()}
    return {**edges, "__init__": set()}


def _name(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _imported(file: Path, known: object, package: str) -> set[str]:
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} is a relative import"
            dotted |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant | ast.JoinedStr):  # import_module("nemo_tvkd....")
            dotted |= _named(node)
    inside = {name.removeprefix(f"{package}.") for name in dotted if name.startswith(f"{package}.")}
    return {name for name in inside if name in known} | ({"__init__"} if package in dotted else set())  # type: ignore[operator]


def _named(node: ast.Constant | ast.JoinedStr) -> set[str]:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    first = parts[0].value if parts and isinstance(parts[0], ast.Constant) else ""
    if not isinstance(first, str) or not first.replace(".", "").replace("_", "").isalnum() or not first.isascii():
        return set()
    return {first.rstrip(".")} if first.count(".") else set()


def room(module: str) -> str:
    return module.split(".")[0]


def package(module: str) -> str:
    """Packages are the rooms and, below commands, the room of each command."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "commands" else parts[0]


def upward(edges: dict[str, set[str]]) -> list[str]:
    return sorted(f"{a} -> {b}" for a, found in edges.items() for b in found if LEVEL[room(b)] > LEVEL[room(a)])


def circles(edges: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The groups of packages that reach each other."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in edges.items():
        graph[package(module)] |= {package(target) for target in targets} - {package(module)}
    reached = {name: _reach(name, graph) for name in list(graph)}
    groups = {tuple(sorted(o for o in reached if o in reached[n] and n in reached[o])) for n in reached}
    return sorted(group for group in groups if len(group) > 1)


def _reach(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph.get(ahead.pop(), set()) - seen
        seen |= new
        ahead += new
    return seen


def test_every_module_has_a_level() -> None:
    assert {room(module) for module in imports(PACKAGE)} == set(LEVEL)


def test_no_import_goes_up() -> None:
    assert upward(imports(PACKAGE)) == []


def test_no_circle_of_packages() -> None:
    assert circles(imports(PACKAGE)) == []


@pytest.mark.parametrize("statement", ["from nemo_tvkd.training import trainer", "import nemo_tvkd.training.trainer"])
def test_what_breaks_the_rules_is_seen(tmp_path: Path, statement: str) -> None:
    house = tmp_path / "nemo_tvkd"
    for file in ("__init__.py", "data/__init__.py", "training/__init__.py"):
        (house / file).parent.mkdir(parents=True, exist_ok=True)
        (house / file).touch()
    (house / "data/batch.py").write_text(f"def lazily():\n    {statement}\n")
    (house / "training/trainer.py").write_text("from nemo_tvkd.data.batch import lazily\n")
    assert "data.batch -> training.trainer" in upward(imports(house))
    assert circles(imports(house)) == [("data", "training")]
