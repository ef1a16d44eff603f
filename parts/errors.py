"""The error of a setting."""


class SettingError(ValueError):
    """A setting that nothing can be built with; the message begins with its name."""
