"""What the values of path keys say: files, folders, hub ids with a configuration and a split, template names."""

import re
from dataclasses import dataclass
from pathlib import Path

NAMED_PART = re.compile(r"(?P<name>.+?)(?:@(?P<config>[\w.+-]+))?(?::(?P<split>[\w.-]+))?")
BUILT_IN_TEMPLATES: dict[str, tuple[str, ...]] = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (),
}
"""The templates of conf/chat_template, with the tokens without which a tokenizer would read their marks as words."""
OWN_TEMPLATES = ("auto", "plain", "tokenizer")
"""Settings of a chat template that add nothing to what the tokenizer has."""
TEMPLATE_NAMES = (*OWN_TEMPLATES, *BUILT_IN_TEMPLATES)
"""Settings of a chat template that are no file's name."""


@dataclass(frozen=True)
class Named:
    """What a path says: a file, folder or hub id; its configuration and its split where they are named, else ""."""

    name: str
    config: str = ""
    split: str = ""

    @property
    def place(self) -> str:
        return f"{self.name}@{self.config}" if self.config else self.name

    @property
    def whole(self) -> bool:
        """Whether neither a configuration nor a split is named."""
        return not (self.config or self.split)


def parse(path: str) -> Named:
    """PATH, PATH:SPLIT or PATH@CONFIG:SPLIT; what exists as it is written is a path, whatever is in its name."""
    if Path(path).exists() or not (match := NAMED_PART.fullmatch(path)):
        return Named(path)
    return Named(match["name"], match["config"] or "", match["split"] or "")
