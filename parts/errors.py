"""Errors that are shown to the user in one line."""

import contextlib


class UserError(Exception):
    """A user's mistake; the message is one line that names the flag or file."""


class SettingError(ValueError):
    """A setting with an unusable value; the message begins with its name."""


def one_line(error):
    """What an error says, on one line; the name of its class if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def with_class(error):
    """The class of an error and what it says, if anything, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


@contextlib.contextmanager
def as_flag_errors():
    """A block in which a SettingError, which a flag can correct, becomes a UserError."""
    try:
        yield
    except SettingError as error:
        raise UserError(f"--{error}") from error
