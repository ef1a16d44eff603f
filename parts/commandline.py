"""Command lines whose mistakes end in one line, with the nearest flag."""

import argparse
import difflib
from collections import Counter

from parts.errors import UserError

SYNONYMS = {  # names that other programs give to the flags of these constants
    **dict.fromkeys(("lr", "rate"), "LEARNING_RATE"),
    **dict.fromkeys(("wd", "decay"), "WEIGHT_DECAY"),
    **dict.fromkeys(("bs", "batch"), "BATCH_SIZE"),
    **dict.fromkeys(("epoch", "num-epochs", "max-epochs", "n-epochs"), "EPOCHS"),
    **dict.fromkeys(("data", "data-dir", "data-path", "dataset", "root"), "H5_SAVE_PATH"),
    **dict.fromkeys(("out", "output", "output-dir", "save-dir", "save-path"), "FILE_SAVE_PATH"),
    **dict.fromkeys(("ema",), "EMA_DECAY"),
    **dict.fromkeys(("clip", "grad-clip"), "CLIP_NORM"),
    **dict.fromkeys(("random-seed",), "SEED"),
}
LITERALS = {"none": None, "true": True, "false": False}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError, with the nearest flag for a typo."""

    def __init__(self, prog, description, **options):
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=description, allow_abbrev=False, **options)

    def error(self, message):
        unknown = message.startswith("unrecognized arguments: -")
        wrong = message.split()[2] if unknown else ""
        word = wrong.split("=")[0].strip("-").replace("_", "-").lower()
        known = self._option_string_actions
        flags = {name: flag(constant) for name, constant in SYNONYMS.items()}
        flags |= {name.removeprefix("--"): name for name in known}  # "--" makes any two alike
        near = difflib.get_close_matches(word, [n for n in flags if flags[n] in known], n=1)
        hint = f" (did you mean {flags[near[0]]}?)" if near and unknown else ""
        raise UserError(f"{message}{hint}; --help lists the flags")


def whole_number(low, high):
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text):
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            message = f"expected a whole number from {low} to {high}, found '{text}'"
            raise argparse.ArgumentTypeError(message)
        return int(text)

    return parse


SEEDS = whole_number(0, 2**32 - 1)  # the type of a random seed


def flag(name):
    """--h5-save-path for H5_SAVE_PATH."""
    return "--" + name.lower().replace("_", "-")


def options_for(value):
    """The options of argparse for a flag with this default."""
    if isinstance(value, bool):
        return {"action": argparse.BooleanOptionalAction}
    if isinstance(value, dict):
        return {"nargs": "+", "action": _Entries, "entries": value, "metavar": "KEY=VALUE"}
    if isinstance(value, tuple | list):
        return {"nargs": "+", "type": _converter(value), "metavar": "X"}
    metavar = {int: "N", float: "X"}.get(type(value), "TEXT")
    return {"type": _converter([value]), "metavar": metavar}


def _converter(values):
    """The function that turns text into a value of the same type as `values`."""
    kinds = set(map(type, values))
    if kinds in ({bool}, {str}):
        return str if kinds == {str} else _bool
    if kinds and kinds <= {int, float}:
        return (lambda text: float(_number(text))) if float in kinds else _number
    return _guess


def _number(text):
    """An int if the text is one, else a float, so that 0.5 can replace a default of 1."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise argparse.ArgumentTypeError(f"expected a number, found '{text}'")


def _bool(text):
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected True or False, found '{text}'")
    return text.lower() == "true"


def _guess(text):
    """None, True, False, a number or the text itself, where the default has no clear type."""
    try:
        return LITERALS[text.lower()] if text.lower() in LITERALS else _number(text)
    except argparse.ArgumentTypeError:
        return text


class _Entries(argparse.Action):
    """KEY=VALUE ... changes these entries of a dict and keeps the others."""

    def __init__(self, *arguments, entries, **options):
        super().__init__(*arguments, **options)
        self.entries = entries

    def __call__(self, parser, namespace, texts, option_string=None):
        changed = dict(getattr(namespace, self.dest, self.entries))  # the flag may be repeated
        for text in texts:
            key, equals, value = text.partition("=")
            if key not in self.entries or not equals:
                keys = ", ".join(f"{key}=VALUE" for key in self.entries)
                parser.error(f"argument {option_string}: expected {keys}, found '{text}'")
            try:
                changed[key] = _converter([self.entries[key]])(value)
            except argparse.ArgumentTypeError as error:
                parser.error(f"argument {option_string}: {error}")
        setattr(namespace, self.dest, changed)


def as_text(value):
    """A constant's value as it is written after its flag."""
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def count_by_part(what, keys):
    """ "; WHAT: encoder.stem (2), bin (4)", the numbers of tensors by part; "" for no keys."""
    counts = Counter(".".join(key.split(".")[:-1][:2]) for key in sorted(keys))
    parts = [f"{part} ({count})" for part, count in counts.items()]
    if len(parts) > 7:
        parts[6:] = [f"{len(parts) - 6} more"]
    return f"; {what}: {', '.join(parts)}" if parts else ""
