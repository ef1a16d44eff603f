"""A standard stream to which writing never ends the program."""

import sys

GONE = (OSError, ValueError, AttributeError)  # broken, closed, or None


class SafeStream:
    """A stream that survives a closed terminal or pipe; anything written after that is lost.

    Args:
        name: of the stream in `sys`, looked up at every use.
    """

    def __init__(self, name):
        self.name = name

    def write(self, text):
        """Write, or give up for good."""
        try:
            getattr(sys, self.name).write(text)
        except GONE:
            setattr(sys, self.name, None)

    def flush(self):
        """Flush, or give up for good."""
        try:
            getattr(sys, self.name).flush()
        except GONE:
            setattr(sys, self.name, None)

    def isatty(self):
        """Whether it is a terminal that is still there."""
        try:
            return getattr(sys, self.name).isatty()
        except GONE:
            return False

    def __getattr__(self, attribute):  # fileno, encoding, ... for tqdm
        return getattr(getattr(sys, self.name), attribute)


STDERR = SafeStream("stderr")
