"""Which picture a name stands for: the name of a mask's file, in a table's row, in an annotation.

People write `photos/x.jpg`, `x`, `X.JPG`, `x.jpg.png` or `x_mask.png` for the picture x.jpg, and
some systems decompose accents. A name is compared as it is, then without its folders and ending,
then ignoring case, then without words such as `_mask`; the first match with exactly one picture is
used.
"""

import re
import unicodedata
from collections import defaultdict
from typing import NamedTuple

from tools.shared.pictures import endings

MASK_WORDS = (
    *("mask", "masks", "seg", "segm", "segmentation", "gt", "groundtruth", "ground_truth"),
    *("label", "labels", "lbl", "annotation", "anno", "trimap", "matte", "alpha", "silhouette"),
    *("outline", "binary", "fg"),
)
SURE_WORDS = ("mask", "masks", "seg", "segmentation", "groundtruth", "ground_truth", "trimap")
OTHER_ENDINGS = (".xml", ".json", ".txt", ".heic", ".npy")  # of files named after pictures
PICTURE_WORDS = ("image", "img", "photo", "picture", "rgb", "sat", "original")


class Rank(NamedTuple):
    """How far a name is from a picture's; smaller is closer."""

    loosened: int  # 0 as written, 1 ignoring case, 2 without words
    folders: int  # minus the number of folders in common
    endings: int  # number of endings left out


class Names:
    """The names under which pictures may be found.

    Args:
        paths: {picture: its path below the folder, as text}.
    """

    def __init__(self, paths):
        self.pictures = defaultdict(set)  # by key
        for picture, text in paths.items():
            for rank, key in keys(text):
                self.pictures[rank.loosened, key].add(picture)

    def find(self, name):
        """(picture, rank) that a name stands for, or (None, the pictures it could stand for)."""
        could = set()
        for rank, key in keys(name):
            found = self.pictures.get((rank.loosened, key), set())
            if len(found) == 1:
                return next(iter(found)), rank
            could |= found
        return None, could

    def match(self, names):
        """({picture: name}, {name: why it is not used}) for names of one picture each.

        Of several names for one picture, the closest is used; of two equally close ones, neither.
        """
        claims, problems = defaultdict(list), {}
        for name in names:
            picture, found = self.find(name)
            if picture is not None:
                claims[picture].append((found, name))
            else:
                fits = f"it fits {len(found)} pictures"
                problems[name] = fits if found else "no picture has that name"
        chosen = {}
        for picture, claim in claims.items():
            claim.sort()
            closest = [name for rank, name in claim if rank == claim[0][0]]
            if len(closest) == 1:
                chosen[picture] = closest[0]
            for _, name in claim:
                if rivals := [other for other in closest if other != name]:
                    problems[name] = f"its picture also fits {rivals[0]}"
        return chosen, problems


def keys(text):
    """Yield (Rank, key to compare) of a name, the closest first."""
    text = unicodedata.normalize("NFC", text).replace("\\", "/").strip().strip("/")
    folded = text.casefold()
    for loosened, loose in enumerate((text, folded, without_words(folded))):
        folders = loose.split("/")
        for start in range(len(folders)):
            key = "/".join(folders[start:])
            for count in range(3):
                yield Rank(loosened, start + 1 - len(folders), count), key
                if (shorter := without_ending(key)) == key:
                    break
                key = shorter


def without_ending(name):
    """A name without its last ending, if it is a known one."""
    start, dot, ending = name.rpartition(".")
    ending = f"{dot}{ending}".lower()
    return start if start and (ending in OTHER_ENDINGS or ending in endings()) else name


def without_words(name, words=(*MASK_WORDS, *PICTURE_WORDS)):
    """A name without its endings and the words in front or behind, as in img_7 or 7_mask.png.

    A number loses its leading zeros, as it does in a spreadsheet.
    """
    folder, slash, name = name.rpartition("/")
    while (shorter := without_ending(name)) != name:
        name = shorter
    either = "|".join(words) or "$."  # which never matches
    while (shorter := re.sub(rf"^({either})[ _.-]+|[ _.-]+({either})$", "", name)) != name:
        name = shorter
    return folder + slash + (str(int(name)) if name.isdecimal() else name)


def masks_among(texts, are_included=False):
    """Those of the paths, as text, that are named like masks of others: x_mask.png beside x.jpg.

    With `are_included`, some are known to be, so less certain words and x.png beside x.jpg count.
    """
    stems, masks = defaultdict(set), set()
    for text in texts:
        stems[without_words(text.casefold(), ())].add(text)
    for stem, same in stems.items():
        bare = without_words(stem, MASK_WORDS if are_included else SURE_WORDS)
        photos = {text for text in same if text.casefold().endswith((".jpg", ".jpeg"))}
        if bare != stem and bare in stems:
            masks |= same
        elif are_included and photos:
            masks |= same - photos
    return masks
