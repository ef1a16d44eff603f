"""Errors that are shown to the user in one line."""

import contextlib


class UserError(Exception):
    """A user's mistake; the message is one line that names the flag or file."""


class SettingError(ValueError):
    """A setting with an unusable value; the message begins with its name."""


@contextlib.contextmanager
def as_flag_errors():
    """A block in which a SettingError, which a flag can correct, becomes a UserError."""
    try:
        yield
    except SettingError as error:
        raise UserError(f"--{error}") from error
