"""The one exception that means "the user can fix this"; the command line prints it as one line and exits 2."""


class UserError(Exception):
    """A mistake in the configuration, the data or a path.

    The message is one line that names the key, file or row and says what would be right.
    """


def one_line(error: BaseException | str, longest: int = 200) -> str:
    """What a library raised or wrote, for a message of one line: at most `longest` characters, never empty."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
