"""Errors that end in one line."""


class UserError(Exception):
    """A user's mistake; the message is one line that names the flag or file."""


class SettingError(ValueError):
    """A setting that nothing can be built with; the message begins with its name."""
