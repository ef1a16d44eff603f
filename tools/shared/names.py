"""Which picture a name means: of a mask's file, of a table's row, of an annotation.

People write `photos/x.jpg`, `x`, `X.JPG`, `x.jpg.png` or `x_mask.png` for the picture x.jpg, and
some systems take accents apart. A name is compared as it is, then without its folders and ending,
then without regard to case, then without words such as `_mask`; the first that means one picture
and no other counts.
"""

import re
import unicodedata
from collections import defaultdict
from functools import cache
from typing import NamedTuple

from tools.shared.pictures import endings

MASK_WORDS = (
    *("mask", "masks", "seg", "segm", "segmentation", "gt", "groundtruth", "ground_truth"),
    *("label", "labels", "lbl", "annotation", "anno", "trimap", "matte", "alpha", "silhouette"),
    *("outline", "binary", "fg"),
)
SURE_WORDS = ("mask", "masks", "seg", "segmentation", "groundtruth", "ground_truth", "trimap")
PICTURE_WORDS = ("image", "img", "photo", "picture", "rgb", "sat", "original")


class Rank(NamedTuple):
    """How far a name is from a picture's; smaller is closer."""

    loosened: int  # 0 as written, 1 without regard to case, 2 without words
    folders: int  # minus the number of folders in common
    endings: int  # that were left out


class Names:
    """The names under which pictures may be found.

    Args:
        paths: {picture: its path below the folder, as text}.
    """

    def __init__(self, paths):
        self.pictures = defaultdict(set)  # by what a name may say
        for picture, text in paths.items():
            for rank, key in keys(text):
                self.pictures[rank.loosened, key].add(picture)

    def find(self, name):
        """(picture, rank) that a name means; (None, pictures it could mean, perhaps none)."""
        could = set()
        for rank, key in keys(name):
            found = self.pictures.get((rank.loosened, key), set())
            if len(found) == 1:
                return next(iter(found)), rank
            could |= found
        return None, could

    def match(self, names):
        """({picture: name}, {name: why it is not used}) for names of which each has one picture.

        Of several names that mean one picture, the closest counts; two equally close ones do not.
        """
        claims, problems = defaultdict(list), {}
        for name in names:
            picture, found = self.find(name)
            if picture is not None:
                claims[picture].append((found, name))
            elif found:
                problems[name] = f"it fits {len(found)} pictures"
            else:
                problems[name] = "no picture has that name"
        chosen = {}
        for picture, claim in claims.items():
            claim.sort()
            closest = [name for rank, name in claim if rank == claim[0][0]]
            if len(closest) == 1:
                chosen[picture] = closest[0]
            for _, name in claim:
                rivals = [other for other in closest if other != name]
                if rivals:
                    problems[name] = f"the picture is that of {rivals[0]} too"
        return chosen, problems


def keys(text):
    """Yield (Rank, what may be compared) of a name, the closest first."""
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
    """A name without the ending of a kind of file that is known, of which there may be two."""
    start, dot, ending = name.rpartition(".")
    return start if start and f"{dot}{ending}".lower() in known_endings() else name


@cache
def known_endings():
    """The endings that are no part of a name: of pictures, and of what else is named after them."""
    return endings() | {".xml", ".json", ".txt", ".heic", ".npy"}


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


def masks_among(texts, is_said=False):
    """Those of the paths, as text, that are named like masks of others: x_mask.png beside x.jpg.

    With `is_said` it is known that some are, so that less sure words and x.png beside x.jpg count.
    """
    stems, masks = defaultdict(set), set()
    for text in texts:
        stems[without_words(text.casefold(), ())].add(text)
    for stem, same in stems.items():
        bare = without_words(stem, MASK_WORDS if is_said else SURE_WORDS)
        photos = {text for text in same if text.casefold().endswith((".jpg", ".jpeg"))}
        if bare != stem and bare in stems:
            masks |= same
        elif is_said and photos:
            masks |= same - photos
    return masks
