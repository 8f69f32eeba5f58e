"""A chat template: where its text comes from (the tokenizer, the built-in ones, a file), and turns written by it."""

import difflib
import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from nemo_tvkd.config.places import BUILT_IN_TEMPLATES, OWN_TEMPLATES, TEMPLATE_NAMES
from nemo_tvkd.data.fields import Turn
from nemo_tvkd.errors import UserError
from nemo_tvkd.files import package_folder

TEMPLATE_DATE = date(2024, 7, 26)
"""The date for templates that print today's: ids, and the scores bound to them, must be the same tomorrow."""


def template_text(tokenizer: Any, setting: str, key: str) -> tuple[str, str | None]:
    """(name, template text or None for the plain transcript) of a setting of `key`.

    Of several templates that a tokenizer has by name, it is the one named "default".
    """
    if setting == "plain" or (setting == "auto" and not tokenizer.chat_template):
        return "plain", None
    if setting in ("auto", "tokenizer"):
        return "tokenizer", _own(tokenizer.chat_template, key)
    if setting in BUILT_IN_TEMPLATES:
        return setting, _built_in(tokenizer, setting, key)
    try:
        return setting, Path(setting).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = OWN_TEMPLATES if setting.endswith(".jinja") else TEMPLATE_NAMES  # a file was meant
        near = difflib.get_close_matches(setting, names, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{key}={setting} is not one of {', '.join(names)} nor a jinja file{hint}") from error


def _own(template: str | dict[str, str] | None, key: str) -> str:
    """A tokenizer's own."""
    if not template:
        raise UserError(f"{key}=tokenizer: the tokenizer has no chat template; give a jinja file or plain")
    if isinstance(template, str):
        return template
    if "default" not in template:
        raise UserError(
            f"{key}: of the tokenizer's chat templates ({', '.join(template)}) none is named default: save the one "
            "that is meant in a jinja file, and give that"
        )
    return template["default"]


def _built_in(tokenizer: Any, name: str, key: str) -> str:
    vocabulary = tokenizer.get_vocab() if BUILT_IN_TEMPLATES[name] else {}
    if missing := [token for token in BUILT_IN_TEMPLATES[name] if token not in vocabulary]:
        raise UserError(f"{key}={name}: the tokenizer has no {missing[0]}, which this template is made of")
    return (package_folder("conf") / "chat_template" / f"{name}.jinja").read_text(encoding="utf-8")


class ChatTemplate:
    """Turns as a jinja template writes them.

    Args:
        text: the template.
        setting: "KEY=NAME", for errors.

    Raises:
        UserError: a syntax error in it.
    """

    def __init__(self, tokenizer: Any, text: str, setting: str) -> None:
        self._tokenizer, self._text, self._setting = tokenizer, text, setting
        self._check_syntax()

    def render(self, messages: Sequence[Turn], generation_prompt: bool, source: str) -> str:
        """The turns' text, up to where an answer begins with `generation_prompt`.

        Raises:
            UserError: the template refuses the turns of row `source`; says what to do about a system turn.
        """
        try:
            return self._apply(messages, generation_prompt)
        except Exception as error:  # a template is a program: it refuses with raise_exception or fails in any way
            reason = " ".join(str(error).split())[:200]
            hint = self._hint(error, messages, generation_prompt)
            raise UserError(f"{source}: {self._setting} refuses the conversation: {reason}{hint}") from error

    def _hint(self, error: Exception, messages: Sequence[Turn], generation_prompt: bool) -> str:
        """What to do about turns that were refused; "" where nobody knows."""
        from jinja2 import TemplateError

        if type(error) is not TemplateError:  # it failed; what it refuses by itself, it says why
            columns = [name for name in ("tools", "documents") if re.search(rf"\b{name}\b", self._text)]
            read = " and ".join(columns)
            return f"; it reads {read}, which rows do not have: give a template without them" if read else ""
        if not messages or messages[0]["role"] != "system":
            return ""
        try:
            self._apply(messages[1:], generation_prompt)
        except Exception:
            return ""
        return (
            "; it takes no system turn: the built-in template mistral writes its text before the first question, and "
            "so may a jinja file of yours"
        )

    def _apply(self, messages: Sequence[Turn], generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._text,
            add_generation_prompt=generation_prompt,
            tokenize=False,
            strftime_now=TEMPLATE_DATE.strftime,
        )

    def _check_syntax(self) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError

        try:
            self._apply([{"role": "user", "content": "a"}], True)
        except TemplateSyntaxError as error:
            raise UserError(f"{self._setting}: line {error.lineno}: {error.message}") from error
        except (TemplateError, TypeError, ValueError, LookupError):
            return  # it may want other turns than this one; real rows will tell, by name
