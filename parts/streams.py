"""A stderr to which writing never ends the program."""

import sys

GONE = (OSError, ValueError, AttributeError)  # broken, closed, or None


class SafeStderr:
    """`sys.stderr`, which survives a closed terminal or pipe; what is written after that is lost.

    It is looked up at every use, so that a test or a notebook may replace it.
    """

    def write(self, text):
        """Write, or give up for good."""
        try:
            sys.stderr.write(text)
        except GONE:
            sys.stderr = None

    def flush(self):
        """Flush, or give up for good."""
        try:
            sys.stderr.flush()
        except GONE:
            sys.stderr = None

    def say(self, line):
        """Write a line at once."""
        self.write(f"{line}\n")
        self.flush()

    def isatty(self):
        """Whether it is a terminal that is still there."""
        try:
            return sys.stderr.isatty()
        except GONE:
            return False

    def __getattr__(self, attribute):  # fileno, encoding, ... for tqdm
        return getattr(sys.stderr, attribute)


STDERR = SafeStderr()
