"""What is made when the site is built: the reference from the dataclasses and --help, modules, the changelog."""

import ast
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from nemo_tvkd.commands.help import options, usage
from nemo_tvkd.config.compose import TRAINING, choices
from nemo_tvkd.config.documented import Key, keys
from nemo_tvkd.config.table import COMMANDS, OWN_KEYS
from nemo_tvkd.losses.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[2]
NO_PREFIX = "itself"


def on_files(files: Files, config: Any, **context: Any) -> Files:
    """mkdocs' event: add the pages."""
    made = {"reference/commands.md": commands(), "reference/algorithms.md": algorithms()}
    made |= {f"reference/{command}.md": command_page(command) for command in OWN_KEYS}
    made["changelog.md"] = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """mkdocs' event: the list of modules where a page asks for it."""
    return markdown.replace("<!-- modules -->", modules())


def modules() -> str:
    """Every module of the package with the first sentence of its docstring, a table for each folder."""
    package = REPOSITORY / "nemo_tvkd"
    parts = []
    for folder in sorted(path.parent for path in package.rglob("__init__.py")):
        rows = []
        for file in sorted(folder.glob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            first = " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
            rows.append(f"| `{file.name}` | {first} |\n")
        name = folder.relative_to(REPOSITORY).as_posix()
        parts.append(f"### {name}/\n\n| file | what |\n|---|---|\n{''.join(rows)}")
    return "\n".join(parts)


def commands() -> str:
    """What `--help` says, with a link to each command's keys."""
    parts = [f"# Command line\n\n```text\n{usage()}\n```\n\nEvery command takes `--help`; those with keys `--cfg job`."]
    for name, command in COMMANDS.items():
        notes = f"{command.notes}\n{options(name)}".strip()
        page = "submit" if name == "doctor" else name
        link = f"[Its keys]({page}.md)\n" if page in OWN_KEYS else "It has no keys.\n"
        shown = f"```text\n{notes}\n```\n\n" if notes else ""
        parts.append(f"## {_title(name)}\n\n{_opening(name)}\n{shown}{link}")
    return "\n\n".join(parts)


def algorithms() -> str:
    """Every method's keys."""
    head = (
        "# Algorithms' keys\n\n`algorithm=NAME` chooses the method with its defaults; its keys are then set one by "
        "one, as in `algorithm=dpo algorithm.beta=0.05`. What they mean in the equations: "
        "[Algorithms](../algorithms.md).\n"
    )
    parts = [head]
    for name, kind in ((name, method.config) for name, method in METHODS.items()):
        source = " ".join((kind.__doc__ or "").split())
        entries = [key for key in keys(kind, "algorithm.") if key.name != "algorithm.name"]
        shown = "".join(entry(key, f"{name}.") for key in entries) or "It has no keys of its own.\n"
        parts.append(f"## algorithm={name}\n\n{source}\n\n{shown}")
    return "\n".join(parts)


def command_page(command: str) -> str:
    """Every key of a command, by section."""
    kind = COMMANDS[command].schema
    title = "submit, doctor" if command == "submit" else _title(command)
    parts = [f"# {title}\n\n{_opening(command)}"]
    if command in TRAINING:
        parts.append("## algorithm\n\n[The keys of each method](algorithms.md) are on a page of their own.\n")
    if command == "submit":
        known = {group: ", ".join(f"`{name}`" for name in choices(group)) for group in ("recipe", "cluster")}
        parts += [f"`{group}=` one of {names}.\n" for group, names in known.items()]
    listed = [key for key in keys(kind) if key.name != "algorithm"]
    for section, members in groupby(listed, lambda key: key.name.partition(".")[0] if "." in key.name else NO_PREFIX):
        heading = "The command's own" if section == NO_PREFIX else section
        parts.append(f"## {heading} {{ #{section} }}\n\n" + "".join(map(entry, members)))
    return "\n".join(parts)


def entry(key: Key, anchor: str = "") -> str:
    """One key as an item of a definition list."""
    facts = [key.kind, f"default `{key.default}`" if key.default else "empty by default", *filter(None, [key.admits])]
    return f"`{key.name}`{{ #{anchor}{key.name} }}\n:   {key.meaning}\n\n    *{'; '.join(facts)}*\n\n"


def _title(name: str) -> str:
    """A command as it is typed."""
    return f"{name} {COMMANDS[name].subcommand}".strip()


def _opening(name: str) -> str:
    """What a command does, and an example in lines that fit."""
    what, example = COMMANDS[name].what, COMMANDS[name].example
    lines = textwrap.wrap(example, 78, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    joined = " \\\n".join(lines)
    return f"{what[0].upper()}{what[1:]}.\n\n```bash\n{joined}\n```\n"
