"""What a run writes after its numbers, none of which can cost them: the whole network, pictures."""

import pytest
import torch
from running import ROOT, changed, history, load, run, same, without_pictures

import engine
import engine.pictures
import engine.run
from dataload import H5Dataset
from engine.evaluation import evaluate, values
from engine.processes import Processes
from parts import files
from parts.errors import UserError

ENDINGS = ("history.csv", "history.pt", "last.pt", "model.pt", "model_lite.pt")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with without_pictures():
        yield


def variant(folder, *changes):
    """MTL_baseline in a folder, with some texts replaced, as the experiment "odd"."""
    path = folder / "MTL_odd.py"
    path.write_text(changed((ROOT / "MTL_baseline.py").read_text(), *changes))
    return path


def warned(printed):
    return [line for line in printed.splitlines() if "warning" in line.lower()]


def left(out):
    return {path.name.removeprefix("odd_") for path in out.glob("[!.]*")}


OUTPUT = '"seg": seg,'


def test_a_network_that_opens_as_another_is_a_warning(shared_data, tmp_path):
    """Its forward reads a tensor of the script that training has changed."""
    state = ("class Network", "STATE = torch.zeros(1)\n\n\nclass Network")
    changed = "STATE.add_(self.training), "
    reads = (OUTPUT, f'"seg": ({changed}seg + STATE)[1],')
    script = variant(
        tmp_path, state, reads, ("from torch import nn", "import torch\nfrom torch import nn")
    )
    printed, out = run(script, shared_data, tmp_path / "out"), tmp_path / "out"
    assert warned(printed) == [
        f"warning: {out}/odd_model.pt: the opened network gives other outputs than the trained "
        "one; what it needs must be in its own attributes"
    ]
    assert left(out) == {*ENDINGS, "seg_loss.png", "test.png"}


def test_a_network_that_cannot_be_pickled_costs_one_warning(shared_data, tmp_path, monkeypatch):
    """And nothing is tested again for it."""
    script = variant(
        tmp_path,
        ("self.stride =", "self.double = lambda seg: 2 * seg\n        self.stride ="),
        (OUTPUT, '"seg": self.double(seg),'),
    )
    out = tmp_path / "out"
    (line,) = warned(run(script, shared_data, out))
    assert line.startswith(f"warning: {out}/odd_model.pt: cannot be made (")
    assert "lambda" in line
    assert left(out) == {*ENDINGS, "seg_loss.png", "test.png"} - {"model.pt"}
    assert history(out, "odd")["test"]["seg_iou"] >= 0
    monkeypatch.delattr(engine.run, "evaluate")
    printed = run(script, shared_data, out, "--resume")
    assert printed == f"odd is finished, nothing is left to do; see {out}\n"


def fails(path, *arguments):
    raise ValueError("no\nfont")


def test_what_cannot_be_written_costs_that_file_alone(shared_data, tmp_path, monkeypatch):
    """A picture, for a reason of its own, and the whole network, since the disk is full."""
    script, out, save = variant(tmp_path), tmp_path / "out", files.save

    def full(content, path, **options):
        if path.name == "odd_model.pt":
            raise UserError(f"{path}: cannot be written (No space left on device)")
        save(content, path, **options)

    monkeypatch.setattr(files, "save", full)
    monkeypatch.setattr(engine.pictures, "save_loss_picture", fails)
    assert warned(run(script, shared_data, out, "--quiet")) == [
        f"warning: {out}/odd_model.pt: cannot be written (No space left on device)",
        f"warning: {out}/odd_seg_loss.png: cannot be made (ValueError: no font)",
    ]
    assert left(out) == {*ENDINGS, "test.png"} - {"model.pt"}


def test_the_end_of_a_run_names_the_files_that_there_are(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.pictures, "save_test_picture", fails)
    script, out = variant(tmp_path), tmp_path / "out"
    named = run(script, shared_data, out).split("files written:\n")[1].split()
    assert {name.removeprefix(f"{out}/odd_") for name in named} == left(out)
    assert len(named) == 6


def test_the_files_of_a_run_have_the_weights_that_were_tested(shared_data, tmp_path):
    out = tmp_path / "out"
    run("MTL_baseline", shared_data, out)
    states = [
        load(out / "baseline_model_lite.pt"),
        load(out / "baseline_last.pt")["best"],
        torch.load(out / "baseline_model.pt", weights_only=False).state_dict(),
    ]
    assert same(states[0], states[1]) and same(states[0], dict(states[2]))
    opened, test = (
        engine.open_network(out / "baseline_model.pt", "cpu"),
        H5Dataset("test", shared_data),
    )
    table = evaluate(opened.network, test, opened.tasks, 4, Processes())
    record = history(out, "baseline")
    assert values(opened.tasks, table) == pytest.approx(record["test"], abs=1e-6)
    rows = record["test_rows"]["seg_iou"]
    assert rows.shape == (7, 2) and torch.equal(rows, table["seg"]["iou"])
