"""The keys of a configuration with their meanings, from the dataclasses that define them."""

import ast
import inspect
import itertools
import json
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any

from nemo_tvkd.keys import Values, values_of

WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", NoneType: "null", dict: "mapping"}


@dataclass
class Key:
    """One key of a configuration, for people.

    Attributes:
        name: dotted; a part in capitals stands for a name that the user chooses.
        kind: its type in words.
        default: as it would be typed; empty where it is an empty text.
        meaning: its docstring; empty where it has none.
        admits: its choices or bounds in words; empty where every value of its type will do.
    """

    name: str
    kind: str
    default: str
    meaning: str
    admits: str = ""


def documented(config: Any, kind: type) -> str:
    """A configuration of the dataclass `kind` as YAML; each key's docstring stands behind it as a comment."""
    return "\n".join(_lines(config, kind, "")) + "\n"


def keys(kind: type, prefix: str = "", defaults: Any = None) -> Iterator[Key]:
    """Every key of the dataclass `kind` and of the sections in it, in their order."""
    texts = meanings(kind)
    for field in fields(kind):
        value = getattr(defaults, field.name) if defaults is not None else _default(field)
        name, section = f"{prefix}{field.name}", field.type
        while typing.get_origin(section) is dict and typing.get_args(section)[1] is not Any:
            inner = typing.get_args(section)[1]
            if not (is_dataclass(inner) or typing.get_origin(inner) is dict):
                break
            name, section, value = f"{name}.{_placeholder(field.name, name)}", inner, None
        if isinstance(section, type) and is_dataclass(section):
            yield from keys(section, f"{name}.", value)
        else:
            admits = values_of(field).in_words()
            yield Key(name, _in_words(field.type, value), _as_typed(value), texts.get(field.name, ""), admits)


def _placeholder(field: str, name: str) -> str:
    """What stands for a name that is the user's own: NAME, or of a layout NODE_TYPE and then STAGE."""
    return "NAME" if field != "layouts" else "STAGE" if name.endswith("NODE_TYPE") else "NODE_TYPE"


def _default(field: Any) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _in_words(kind: Any, default: Any) -> str:
    """The type of a field; one that takes anything takes what its default is, or a list of that."""
    if kind is Any:
        one = default[0] if isinstance(default, list) and default else default
        return f"{WORDS[type(one)]}, or a list"
    if isinstance(kind, UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(WORDS[part] for part in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        word = WORDS[typing.get_args(kind)[0]]
        return f"list of {word}" + "s" * word.endswith("number")
    return WORDS[typing.get_origin(kind) or kind]


def _as_typed(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_as_typed, value)) + "]"
    if isinstance(value, str):
        return value
    return json.dumps(value) if not isinstance(value, float) else f"{value:g}"


def meanings(kind: type) -> dict[str, str]:
    """Field name -> docstring, of a dataclass and those it derives from."""
    texts: dict[str, str] = {}
    for part in filter(is_dataclass, reversed(kind.__mro__)):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(body, ast.ClassDef)
        for key, text in itertools.pairwise(body.body):
            if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name) and isinstance(text, ast.Expr):
                texts[key.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def _lines(config: Any, kind: type, indent: str) -> Iterator[str]:
    from omegaconf import OmegaConf

    texts = meanings(kind)
    written = OmegaConf.to_container(config, resolve=False)  # a default may be made of another key
    assert isinstance(written, dict)
    for field in fields(kind):
        section = OmegaConf.get_type(config, field.name)
        if isinstance(section, type) and is_dataclass(section):
            yield f"{indent}{field.name}:"
            yield from _lines(config[field.name], section, indent + "  ")
            continue
        lines = OmegaConf.to_yaml(OmegaConf.create({field.name: written[field.name]})).splitlines()
        comment = _with_values(texts.get(field.name, ""), values_of(field))
        if comment and len(lines[0]) + len(indent) + len(comment) > 110:
            start = f"{indent}# "
            yield from textwrap.wrap(
                comment, 110, initial_indent=start, subsequent_indent=start, break_on_hyphens=False
            )
            comment = ""
        yield f"{indent}{lines[0]}" + (f"  # {comment}" if comment else "")
        yield from (indent + line for line in lines[1:])


def _with_values(text: str, values: Values) -> str:
    """A key's text with its choices or bounds, unless it names all of them."""
    words = values.in_words()
    if not words or (values.choices and all(choice in text for choice in values.choices)):
        return text
    return f"{text} {words[0].upper()}{words[1:]}.".strip()
