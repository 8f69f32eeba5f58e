"""The messages that commands refuse with, in one file that is reviewed as a diff: tests/golden/messages.txt.

A test that uses the fixture `fails` or `messages` has its messages compared with the file. With --update-messages they
are written there instead: those of tests that ran replace the old ones, those of tests that are gone disappear if all
tests of their file ran. Temporary folders are written as $TMP.
"""

import re
import socket
from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).with_name("golden") / "messages.txt"
REPOSITORY = Path(__file__).resolve().parents[1]
STRICT = False
"""Whether a test whose messages are not in the file fails."""


class Messages:
    """What the file holds, and what this session's tests have said."""

    def __init__(self, update: bool, file: Path = FILE, strict: bool = STRICT) -> None:
        self.update, self.file, self.strict = update, file, strict
        self.known = read(file)
        self.new: dict[str, list[str]] = {}

    def record(self, test: str, message: str, base: Path) -> None:
        """Compare a message of a test with the file's.

        Args:
            base: the folder that holds all temporary ones of the session.

        Raises:
            AssertionError: the file has another message, or (strict) none.
        """
        shown = normalised(message, base)
        messages = self.new.setdefault(test, [])
        messages.append(shown)
        if self.update or (test not in self.known and not self.strict):
            return
        expected = self.known.get(test, [])[len(messages) - 1 : len(messages)]
        hint = f"if it is right, write it into {self.file.name} with pytest --update-messages"
        assert expected, f"{self.file.name} has no message {len(messages)} of {test}: {hint}\n{shown}"
        assert shown == expected[0], f"another message than in {self.file.name}: {hint}"

    def write(self, new: dict[str, list[str]], whole_files: Iterable[str]) -> None:
        """The file with the messages of the tests that ran."""
        gone = {test for test in self.known if test.split("::")[0] in set(whole_files)}
        merged = {test: messages for test, messages in self.known.items() if test not in gone} | new
        self.file.parent.mkdir(exist_ok=True)
        paragraphs = ["\n    ".join([test, *merged[test]]) + "\n" for test in sorted(merged)]
        self.file.write_text("\n".join(paragraphs), encoding="utf-8")


def read(file: Path) -> dict[str, list[str]]:
    """Test -> its messages in order; nothing where there is no file."""
    text = file.read_text(encoding="utf-8").strip("\n") if file.exists() else ""
    paragraphs = [paragraph.split("\n    ") for paragraph in text.split("\n\n") if paragraph]
    return {test: messages for test, *messages in paragraphs}


def normalised(message: str, base: Path) -> str:
    """A message without what differs from run to run: folders, the machine's name."""
    message = re.sub(re.escape(str(base)) + r"/[^/\s'\",;:\])]+", "$TMP", message)
    message = message.replace(str(base), "$TMP").replace(str(REPOSITORY), "$REPOSITORY")
    message = message.replace(str(Path.home()), "$HOME").replace(socket.gethostname(), "$HOST")
    message = re.sub(r"\b(new_store_|pid |\.tmp-?)\d+", r"\g<1>N", message)  # counted over a session's tests
    return " ".join(message.splitlines())
