"""Errors that are shown to the user in one line."""


class UserError(Exception):
    """A user's mistake; the message is one line that names the flag or file."""


class SettingError(ValueError):
    """A setting with an unusable value; the message begins with its name."""
