"""The notebook: what is committed has its outputs, and it runs to its end when shortened."""

import os
import re

import nbformat
import pytest
from nbclient import NotebookClient
from running import ROOT

SHORTER = {'"20", "60", "128"': '"1", "1", "32"'}  # epochs of the demo and of the fish, and a side
TINY = """
import torch
from parts import demo_data

torch.set_num_threads(1)
draw = demo_data.make_demo
demo_data.make_demo = lambda folder: draw(folder, 32, (8, 4, 4))
"""


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "quickstart.ipynb", as_version=4)


def printed(notebook):
    """All text in the outputs, and the number of pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs), pictures


def test_the_committed_notebook_shows_its_outputs(notebook):
    """On GitHub nobody runs it; it was run once, in order, and says nothing of the machine."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"stream", "display_data"}  # no error, and no value of a last line such as 0
    text, pictures = printed(notebook)
    assert pictures == 4
    assert not re.search(r"Traceback|[Ww]arning|/(?:root|home|tmp|work|Users)/", text)
    assert (ROOT / "quickstart.ipynb").stat().st_size < 10**6


def test_the_network_of_the_last_picture_has_learned(notebook):
    """The pictures are of a network that finds the pet, and the synthetic pets' masks."""
    text, _ = printed(notebook)
    assert re.search(r"^dog \[", text, re.MULTILINE)
    assert float(re.search(r"^seg_iou +(\S+)", text, re.MULTILINE)[1]) > 0.5
    assert float(re.search(r"^fish: seg_iou (\S+)", text, re.MULTILINE)[1]) > 0.8


def test_it_runs(notebook, tmp_path, monkeypatch):
    """In a folder of links to the repository, with the matplotlib backend that Colab sets."""
    committed, _ = printed(notebook)
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "runs":
            os.symlink(path, tmp_path / path.name)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    for short in SHORTER:
        assert sum(short in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(TINY))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=place).execute()
    text, pictures = printed(notebook)
    assert pictures == 4
    metrics = re.compile(r"^(\w+) +\d\.\d{3}$", re.MULTILINE)
    assert metrics.findall(text) == metrics.findall(committed)  # as it was committed
    assert re.search(r"^\S+: usable$", text, re.MULTILINE) and '"class": ' in text
    assert (tmp_path / "runs/quickstart/fine_tune_test.png").is_file()
