"""Convert a folder of your own pictures to the H5 layout of dataload.py.

    python tools/prepare_folder.py --images photos --masks outlines --table known.csv --out DATA
    python tools/prepare_folder.py --images photos --masks trimaps --foreground 1 3 --out DATA
    python tools/prepare_folder.py --images photos --table instances.json --recursive --out DATA

A mask is a picture named like its image, such as x.png, x_mask.png or x.jpg.png for x.jpg. Bright
or opaque is foreground, black or transparent is background, unless --foreground and --ignore choose
values. Masks may also lie beside the images, as x_mask.png.

A table is a CSV file with the names of the images and any of a box (xmin, ymin, xmax, ymax in
pixels, or x, y, w, h, or as fractions), a class and a split (train, val or test), under their usual
names. It may also be a COCO or labelme JSON, Pascal VOC XML or YOLO file, or a folder of them;
without --table, those beside the images are read. Outlines in them become masks. If an image has
several objects, the box and class of the largest are used. More than two classes go to classes.h5.

Missing or empty entries are unknown. Entries that do not fit are unknown too, named on stderr and
counted. Images are turned upright by their EXIF rotation. So are their masks, assumed to be drawn
on the stored pixels if their shape allows it; boxes and outlines are assumed to be drawn on the
upright image, unless their file gives width and height of the stored one. Images become squares.

Images without a split are divided among train, val and test by the two fractions; if there are
masks, val and test only get images with a mask. Near-duplicates stay together, in a given split if
one has it, and those of val and test images are left out of train, unless that would leave a split
with less than half its images.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dataload import SPLITS
from parts.commandline import Parser
from parts.errors import UserError
from parts.targets import UNKNOWN
from tools.shared import folders, masks, splitting
from tools.shared.common import as_path, command, to_stderr
from tools.shared.csv_files import SPLIT_WORDS
from tools.shared.notes import combine, draw_mask
from tools.shared.pictures import examples, read_picture

TURNED = "images turned upright by their EXIF rotation"
PAGES = "images of several pages, of which the first is used"
RESIZED = "boxes or outlines rescaled from another size of their image"
SEVERAL = "images of several objects, of which the largest is used"
FOLDER = "images whose split is the name of their sub-folder"


def read_sample(image, text, mask_path, notes, options, log):
    """(a Sample without its label, the label as text, its Mask or None); None for no picture.

    Args:
        image: the path; `text` is its name in messages.
        mask_path: of its mask, or None.
        notes: the Notes of tables and annotations about it.
        options, log: of the command; the log names what cannot be used.
    """
    try:
        picture, words, shown = read_picture(image)
    except OSError as error:
        log.refuse(text, "picture", error)
        return None
    known, mask = combine(notes, shown), None
    for what, reason in known.problems:
        log.refuse(text, what, reason)
    try:
        if mask_path:
            mask = masks.read_mask(mask_path, shown, options.size, options.choice)
        elif (pixels := draw_mask(notes, shown, options.size)) is not None:
            mask = masks.mask_from_outlines(pixels)
    except (OSError, ValueError) as error:
        log.refuse(text, "mask", error)
    split = known.split
    if not split and options.recursive and "/" in text:
        split = SPLIT_WORDS.get(text.split("/")[0].casefold(), "")
    sizes = {note.size for note in notes} - {None, (1, 1), shown.size}
    log.note(text, {words: words, TURNED: shown.turn > 1, PAGES: shown.pages > 1})
    log.note(text, {SEVERAL: known.objects > 1, RESIZED: sizes, FOLDER: split != known.split})
    pixels = np.full((options.size, options.size), UNKNOWN, np.uint8)
    if mask:
        log.note(text, {f"masks: {words}": True for words in mask.words})
        pixels = mask.pixels
    box = splitting.NO_BOX if known.box is None else known.box * options.size
    resized = splitting.resize(picture, options.size)
    return splitting.Sample(*resized, pixels[..., None], box, split=split), known.label, mask


def read_samples(images, mask_files, notes, options, log):
    """([Sample], class names); UserError if an input of the user was not used at all."""
    samples, labels, found = [], [], {}
    for image, text in images.items():
        about = notes.get(image, ())
        if read := read_sample(image, text, mask_files.get(image), about, options, log):
            samples.append(read[0])
            labels.append(read[1])
            if read[2]:
                found[text] = read[2]
    if not samples:
        raise UserError(f"--images: expected a readable picture; {log.first['picture']}")
    if mask_files and not found:
        raise UserError(f"--masks: expected one that can be used; {log.first['mask']}")
    says = [any(labels), any(s.has_box or s.split for s in samples)]
    says += [any(note.has_outline for about in notes.values() for note in about)]
    if options.table and not any(says):
        first = log.first.get("box") or log.first.get("class") or "it holds nothing else than names"
        raise UserError(f"--table: expected a box, class, split or outline to use; {first}")
    if found:
        line, warnings = masks.summarise(found, options.choice)
        print(line)
        for warning in warnings:
            to_stderr(f"warning: {warning}")
    classes, numbers = number_classes(labels)
    pairs = zip(samples, numbers, strict=True)
    return [sample._replace(label=number) for sample, number in pairs], classes


def number_classes(labels):
    """(sorted class names, (N,) number of each label, -1 for ""), ignoring case."""
    spelling = {}
    for label, _ in Counter(label for label in labels if label).most_common():
        spelling.setdefault(label.casefold(), label)

    def order(key):
        return (0, int(key), "") if key.isdecimal() else (1, 0, key)

    keys = sorted(spelling, key=order)
    numbers = [keys.index(label.casefold()) if label else -1 for label in labels]
    return [spelling[key] for key in keys], numbers


def to_distribute(samples):
    """(numbers of the samples to divide among all splits, what they have in common, in words).

    They are those with a mask, if there is any mask, else those with a box or label. Others without
    a split go to train.
    """
    rest = [i for i, sample in enumerate(samples) if not sample.split]
    if any(sample.has_mask for sample in samples):
        return [i for i in rest if samples[i].has_mask], "with a mask and without a split"
    known = [i for i in rest if samples[i].has_box or samples[i].label >= 0]
    return known if len(known) >= len(SPLITS) else rest, "without a split"


def place(samples, chosen, groups, options):
    """{split: [Sample]}, the `chosen` numbers divided among the splits, groups (N,) together."""
    val, test = options.val_fraction, options.test_fraction
    fractions = np.array([1 - val - test, val, test])
    strata = [samples[i].label + 1 for i in chosen]
    for labels in (strata, [0] * len(chosen)):  # each class by itself, if there are enough of it
        generator = np.random.default_rng(options.seed)
        parts = splitting.distribute(labels, groups, fractions, generator)
        if len(set(parts.tolist())) == len(SPLITS):
            break
    parts, splits = dict(zip(chosen, parts, strict=True)), {split: [] for split in SPLITS}
    for i, sample in enumerate(samples):
        splits[sample.split or SPLITS[parts.get(i, 0)]].append(sample)
    return splits


def with_given_splits(samples, groups):
    """The samples; one without a split gets that of a sample of its group, if one was given.

    If several were given, val and test come before train.

    Args:
        groups: {number of a sample: number of its group}.
    """
    given = [i for i in groups if samples[i].split]
    given.sort(key=lambda i: samples[i].split != "train")  # the last one counts
    splits = {groups[i]: samples[i].split for i in given}
    found = list(samples)
    for i, group in groups.items():
        found[i] = samples[i]._replace(split=samples[i].split or splits.get(group, ""))
    return found


def split_up(samples, options):
    """{split: [Sample]}; prints what was done with near-duplicates. UserError if a split is empty.

    They are only kept together if that leaves every split at least half of its images: frames of a
    fixed camera, or objects on white, all look alike.
    """
    chosen, words = to_distribute(samples)
    apart = place(samples, chosen, np.arange(len(chosen)), options)
    for split, members in apart.items():
        if not members:
            found = f"none; of {len(samples)} images, {len(chosen)} {words} were divided"
            raise UserError(f"--out: expected at least one image in {split}, found {found}")
    kinds = {"near-duplicates": splitting.copies, "identical images": splitting.identical}
    for kind, find_pairs in kinds.items() if not options.no_grouping else ():
        numbers = [*chosen, *(i for i, sample in enumerate(samples) if sample.split)]
        alike = splitting.group([samples[i] for i in numbers], find_pairs)
        groups = dict(zip(numbers, alike.tolist(), strict=True))
        joined = with_given_splits(samples, groups)
        rest = [i for i in chosen if not joined[i].split]
        placed = place(joined, rest, np.array([groups[i] for i in rest], int), options)
        splits = splitting.without_copies(placed, find_pairs)
        sizes = np.bincount(alike)
        if all(2 * len(splits[split]) >= len(apart[split]) for split in SPLITS):
            left_out = len(samples) - sum(map(len, splits.values()))
            if left_out or (sizes > 1).any():
                kept = f"{sizes[sizes > 1].sum()} kept together, groups: {(sizes > 1).sum()}"
                print(f"{kind}: {kept}; left out of train: {left_out}")
            return splits
        found = f"{sizes.max(initial=0)} of {len(numbers)} are alike, too many to keep in one split"
        print(f"{kind}: {found}; train and test may show the same")
    return apart


def parse(argv):
    """The options; raises UserError for values that do not fit together."""
    parser = Parser("prepare_folder.py", __doc__)
    add, value = parser.add_argument, {"type": masks.parse_value, "nargs": "+", "metavar": "V"}
    add("--images", required=True, metavar="DIR", help="folder of the pictures")
    add("--masks", metavar="DIR", help="folder of the masks, named like the pictures")
    text = "files or folders with boxes, classes, splits and outlines"
    add("--table", "--annotations", nargs="+", metavar="FILE", help=text)
    text = "mask values of the foreground (default: all but the background)"
    add("--foreground", **value, help=text)
    add("--ignore", **value, help="mask values of unknown pixels (default: none)")
    add("--recursive", action="store_true", help="also read sub-folders")
    text = "allow near-duplicates in different splits"
    add("--no-grouping", action="store_true", help=text)
    splitting.add_flags(add)
    options = parser.parse_args(argv)
    splitting.check_flags(options, "images", "masks")
    options.table = [as_path(path, "--table") for path in options.table or ()]
    options.choice = masks.Choice(*(tuple(v or ()) for v in (options.foreground, options.ignore)))
    if both := set(options.choice.foreground) & set(options.choice.ignore):
        raise UserError(f"--ignore: expected no value of --foreground, found {min(both)}")
    return options


@command
def main(argv):
    """Read the pictures, divide them, write the splits and report."""
    options, log = parse(argv), folders.Log()
    splitting.check_output(options.out, options.force)
    images = folders.find_pictures(options.images, options)
    found = folders.find_masks(images, options)
    notes, read = folders.read_notes(images, options, log)
    mask_files = folders.match_masks(images, found, log)
    if options.choice != masks.Choice() and not mask_files:
        raise UserError("--foreground, --ignore: expected masks, found none")
    folders.print_others(options, {*images, *found}, read)
    with splitting.staged(options.out, options.force) as folder:
        samples, classes = read_samples(images, mask_files, notes, options, log)
        splits = split_up(samples, options)
        used = sum(map(len, splits.values()))
        log.problems["near-duplicate of val or test"] = len(samples) - used
        names = [*classes, *("class 0", "class 1")[len(classes) :]]
        file = "binary" if len(classes) <= 2 else "classes"
        splitting.save(folder, splits, {file: names}, {"source": "tools/prepare_folder.py"})
    log.print_remarks()
    if file == "classes":
        print(f'classes: {len(classes)}, for a task with Label("classes", {len(classes)})', end="")
        print(f", because binary.h5 takes two ({examples(classes, 8)})")
    splitting.print_summary(options.out, splits, names)
    print(f"not used: {log.counts()}; written to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
