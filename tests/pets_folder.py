"""The drawn folder of pets_source.py, and where the tool shall write."""

import shutil

import pytest
from pets_source import BOX, BOXED, BREEDS, UNBOXED, draw_image, draw_trimap, write_box
from PIL import Image


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    folder = root / "oxford-iiit-pet"
    for name in ("images", "annotations/trimaps", "annotations/xmls"):
        (folder / name).mkdir(parents=True)
    lists = {"trainval": [], "test": []}
    for breed, (stem, boxed) in enumerate(zip(BREEDS, BOXED, strict=True)):
        for number in range(boxed + UNBOXED):
            name = f"{stem}_{number}"
            draw_image(breed, number).save(folder / f"images/{name}.jpg", format="PNG")
            Image.fromarray(draw_trimap()).save(folder / f"annotations/trimaps/{name}.png")
            part = "trainval" if number < boxed else "test"
            lists[part].append(f"{name} {breed + 1} {1 if breed < 2 else 2} 1\n")
            if part == "trainval":
                write_box(folder / f"annotations/xmls/{name}.xml", BOX)
    for part, lines in lists.items():
        (folder / f"annotations/{part}.txt").write_text("".join(lines))
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(drawn, tmp_path / "root")


@pytest.fixture
def out(tmp_path):
    """Where the tool shall write; nothing else is in the parent, so leftovers are seen."""
    (tmp_path / "place").mkdir()
    return tmp_path / "place" / "data"
