"""pyproject.toml declares what the package imports."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[2]


def imported() -> dict[str, str]:
    """Top-level module -> a file of the package that imports it, the standard library's left out."""
    modules: dict[str, str] = {}
    for file in (ROOT / "nemo_tvkd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules |= {name.split(".")[0]: str(file.relative_to(ROOT)) for name in names}
    return {name: file for name, file in modules.items() if name not in {*sys.stdlib_module_names, "nemo_tvkd"}}


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()  # type: ignore[index]


def test_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    declared = {normal(requirement) for group in groups for requirement in group}
    distributions = packages_distributions()
    missing = {
        name: file
        for name, file in imported().items()
        if not {normal(each) for each in distributions.get(name, [name])} & declared
    }
    assert not missing
