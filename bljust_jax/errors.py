"""The one exception that stands for a mistake of the user's: `main` prints it as a single line and
exits with 2."""


class UserError(Exception):
    """Bad input. The message is one line that names the file, the line or the field, and the
    cure."""
