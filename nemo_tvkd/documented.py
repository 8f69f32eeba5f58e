"""The keys of a configuration with their meanings, from the dataclasses that define them."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any


def documented(config: Any, kind: type) -> str:
    """A configuration of the dataclass `kind` as YAML; each key's docstring stands behind it as a comment."""
    return "\n".join(_lines(config, kind, "")) + "\n"


def meanings(kind: type) -> dict[str, str]:
    """Field name -> docstring, of a dataclass and those it derives from."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not is_dataclass(part):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(body, ast.ClassDef)
        for key, text in zip(body.body, body.body[1:], strict=False):
            said = _text(text)
            if said and isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name):
                found[key.target.id] = said
    return found


def _text(node: ast.stmt) -> str:
    """What a statement says that is a string alone."""
    value = node.value.value if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) else ""
    return " ".join(value.split()) if isinstance(value, str) else ""


def _lines(config: Any, kind: type, indent: str) -> Iterator[str]:
    from omegaconf import OmegaConf

    said = meanings(kind)
    written_values = OmegaConf.to_container(config, resolve=False)  # a default may be made of another key
    assert isinstance(written_values, dict)
    for field in fields(kind):
        value = written_values[field.name]
        if isinstance(field.type, type) and is_dataclass(field.type):
            yield f"{indent}{field.name}:"
            yield from _lines(OmegaConf.create(value), field.type, indent + "  ")
            continue
        written = OmegaConf.to_yaml(OmegaConf.create({field.name: value})).splitlines()
        comment = said.get(field.name, "")
        if comment and len(written[0]) + len(indent) + len(comment) > 110:
            yield from textwrap.wrap(comment, 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            comment = ""
        yield f"{indent}{written[0]}" + (f"  # {comment}" if comment else "")
        yield from (indent + line for line in written[1:])
