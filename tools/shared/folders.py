"""Folders of images, masks and tables: finding the mask and the table rows of each image."""

from collections import Counter, defaultdict

from parts.errors import UserError
from tools.shared import annotations
from tools.shared.common import to_stderr
from tools.shared.csv_files import read_table
from tools.shared.names import Names, masks_among
from tools.shared.pictures import examples, list_pictures, others, place


class Log:
    """Messages about many files: a line for each problem, and one with a count for each remark."""

    def __init__(self):
        self.problems, self.first, self.remarks = Counter(), {}, defaultdict(list)

    def refuse(self, name, what, reason):
        """Say on stderr which part of a file is not used, and why."""
        line = f"{name}: {what} not used: {' '.join(str(reason).split())}"
        self.problems[what] += 1
        self.first.setdefault(what, line)
        to_stderr(line)

    def unmatched(self, what, problems):
        """Count {name: why it matches no image}, and give examples of each reason on stderr."""
        self.problems[f"{what} without a picture"] += len(problems)
        for reason in dict.fromkeys(problems.values()):
            names = [name for name, why in problems.items() if why == reason]
            to_stderr(f"{what} not used: {reason}: {len(names)} ({examples(names)})")

    def note(self, name, happened):
        """Remember the true ones of {words: whether it is so}; `print_remarks` prints them."""
        for words, is_so in happened.items():
            if is_so:
                self.remarks[words].append(name)

    def print_remarks(self):
        """Print a line for each remark, with a count and examples."""
        for words, names in self.remarks.items():
            print(f"{words}: {len(names)} ({examples(names)})")

    def counts(self):
        """The number of unused things of each kind, in words."""
        found = [f"{what}: {count}" for what, count in self.problems.items() if count]
        return ", ".join(sorted(found, key=lambda text: "without" in text)) or "nothing"


def find_pictures(folder, options):
    """{path: its part below the folder, as text} of pictures; UserError if there are none.

    The masks may be in a sub-folder of the images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of pictures, found no such folder")
    paths = list_pictures([folder], options.out, options.recursive).values()
    if options.masks and folder.resolve() in options.masks.resolve().parents:
        paths = [path for path in paths if options.masks.resolve() not in place(path).parents]
    return {path: path.relative_to(folder).as_posix() for path in paths}


def find_masks(images, options):
    """{path: its part below the folder, as text} of masks, which are removed from the images.

    Without their own folder, they are the files beside the images that are named like masks.
    """
    if options.masks and options.masks.resolve() != options.images.resolve():
        return find_pictures(options.masks, options)
    beside = masks_among(images.values(), bool(options.masks))
    found = {path: text for path, text in images.items() if text in beside}
    for path in found:
        del images[path]
    if found:
        print(f"{options.images}: masks, by their names: {len(found)} ({examples(found.values())})")
    elif options.masks:
        raise UserError(f"--masks {options.masks}: expected masks, such as x_mask.png, found none")
    return found


def match_masks(images, found, log):
    """{image: path of its mask}; UserError if there are masks but none has an image's name.

    Args:
        images, found: {path: its part below the folder} of images and masks.
    """
    texts = {text: path for path, text in found.items()}
    chosen, problems = Names(images).match(texts)
    if found and not chosen:
        expected = f"masks named like the images, such as {next(iter(images.values()))}"
        raise UserError(f"--masks: expected {expected}; found none, but {next(iter(texts))}")
    log.unmatched("mask", problems)
    return {image: texts[text] for image, text in chosen.items()}


def read_notes(images, options, log):
    """({image: [Note]}, paths of the files read); UserError if a table names no image."""
    names, notes, used = Names(images), defaultdict(list), set()
    for source in options.table or [options.images]:
        found, words, files = read_source(source, names, options.recursive, log)
        used.update(map(place, files))
        by_name = defaultdict(list)
        for note in found:
            by_name[note.name].append(note)
        chosen, problems = names.match(by_name)
        if options.table and not chosen:
            expected = f"names of the images, such as {next(iter(images.values()))}"
            other = f"but {next(iter(by_name))}" if by_name else "in no row"
            raise UserError(f"--table {source}: expected {expected}; found none, {other}")
        if words:
            print(words)
        log.unmatched("row", problems)
        for image, name in chosen.items():
            notes[image] += by_name[name]
    return notes, used


def read_source(source, names, recursive, log):
    """(notes, their source in words, files) of a table, an annotation file or a folder of them."""
    if source.is_dir():
        notes, words, files, problems = annotations.read_folder(source, names, recursive)
        for path, reason in problems:
            log.refuse(path.name, "annotation", reason)
        return notes, words, files
    if source.suffix.lower() in (".json", ".xml"):
        try:
            notes = annotations.read_annotations(source, names)
        except ValueError as error:
            raise UserError(f"--table {source}: {error}") from error
        return notes, f"{source.name}: {annotations.describe(notes)}", [source]
    notes, words, problems = read_table(source)
    for line, reason in problems:
        log.refuse(f"{source.name} line {line}", "row", reason)
    return notes, words, [source]


def print_others(options, pictures, places):
    """Print what else the folders of images and masks hold."""
    used = {*map(place, pictures), *places}
    for folder in dict.fromkeys(folder for folder in (options.images, options.masks) if folder):
        if rest := others(folder, used, options.recursive):
            hint = "; --recursive reads sub-folders" if "sub-folder" in rest else ""
            print(f"{folder}: not read: {rest}{hint}")
