"""The constants of a script as command-line flags."""

import argparse
import difflib

KINDS = (int, float, str, tuple)


class UserError(Exception):
    """A mistake of the user's; the message is one line that names the flag or file."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with the nearest flag for a typo."""

    def error(self, message):
        wrong = message.removeprefix("unrecognized arguments: ").split()[0]
        near = difflib.get_close_matches(wrong.split("=")[0], self._option_string_actions, n=1)
        hint = f" (did you mean {near[0]}?)" if near and wrong.startswith("--") else ""
        self.exit(2, f"{self.prog}: {message}{hint}; --help lists the flags\n")


def constants(module):
    """{NAME: value} of the settings at the top of a script, in their order."""
    return {
        name: value
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, KINDS)
    }


def parse(module, argv):
    """Set the module's constants from flags and return the other options.

    `H5_SAVE_PATH` is set by `--h5-save-path`, and so on. The options are `demo` and `resume` (bool)
    and `device` (string or None).

    Raises:
        SystemExit: code 2 with one line on stderr, for an unknown flag or a value of another kind.
        UserError: a value that makes no sense.
    """
    summary = module.__doc__.splitlines()[0]
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = Parser(f"{module.__name__}.py", None, summary, allow_abbrev=False)
    parser.formatter_class = formatter
    run = parser.add_argument_group("the run")
    run.add_argument("--demo", action="store_true", help="synthetic data, drawn on the spot")
    run.add_argument("--resume", action="store_true", help="go on where a run stopped")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ...; without it CUDA where there is one")
    group = parser.add_argument_group("the constants of the script")
    defaults = constants(module)
    for name, value in defaults.items():
        several = {"nargs": "+", "type": type(value[0])} if isinstance(value, tuple) else {}
        kind = {"type": type(value), **several}
        flag = "--" + name.lower().replace("_", "-")
        group.add_argument(flag, dest=name, default=value, help=" ", metavar="X", **kind)
    options = parser.parse_args(argv)
    if options.demo:  # an easier task, so fewer epochs unless the user says how many
        parser.set_defaults(EPOCHS=module.DEMO_EPOCHS)
        options = parser.parse_args(argv)
    for name, default in defaults.items():
        value = getattr(options, name)
        setattr(module, name, tuple(value) if isinstance(default, tuple) else value)
    check(constants(module))
    return options


def check(values):
    """Refuse settings no run can have.

    Raises:
        UserError: names the flag, what was expected and what was found.
    """
    for name in ("EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "CLIP_NORM"):
        if not values[name] > 0:
            flag = "--" + name.lower().replace("_", "-")
            raise UserError(f"{flag}: expected a number above 0, found {values[name]}")
