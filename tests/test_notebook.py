"""The notebook runs from top to bottom, with the matplotlib backend that Colab sets."""

import os

import nbformat
from nbclient import NotebookClient
from running import ROOT


def test_the_notebook_runs(tmp_path, monkeypatch):
    """In a folder of links to the repository, so that its runs go elsewhere."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "runs":
            os.symlink(path, tmp_path / path.name)
    monkeypatch.setenv("QUICKSTART_EPOCHS", "1")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(ROOT / "quickstart.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
    text = "".join(o.get("text", "") for o in outputs)
    assert "seg_iou" in text and '"class": ' in text and "usable" in text
    assert (tmp_path / "runs/quickstart/baseline_test.png").is_file()
