"""The one exception that means "the user can fix this"; the command line prints it as one line and exits 2."""


class UserError(Exception):
    """A mistake in the configuration, the data or a path.

    The message is one line that names the key, file or row and says what would be right.
    """
