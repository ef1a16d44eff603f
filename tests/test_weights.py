"""Starting from trained weights: what is taken, what is refused, and that it never hurts."""

import json
import sys
import zlib
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from running import (
    ROOT,
    Pair,
    at_step,
    history,
    is_like,
    load,
    run,
    same,
    stopped,
    without_pictures,
)

import engine
import engine.run
from tools import predict

WRECK = ["--learning-rate", "3", "--ema-decay", "0", "--epochs", "2"]  # no epoch is any good


@pytest.fixture(scope="module", autouse=True)
def quick():
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def trained(shared_data, tmp_path_factory):
    """The folder of a run of MTL_main that has learned something."""
    out = tmp_path_factory.mktemp("trained") / "out"
    run("MTL_main", shared_data, out, "--epochs", "12")
    assert history(out)["weights_from"] is None and "start" not in history(out)
    return out


def start(trained, ending="model_lite.pt"):
    return ["--weights", str(trained / f"main_{ending}")]


@pytest.fixture(scope="module")
def wrecked(trained, shared_data, tmp_path_factory):
    """A run from those weights that made them worse: its folder, and what it printed."""
    out = tmp_path_factory.mktemp("wrecked") / "out"
    return out, run("MTL_main", shared_data, out, *start(trained), *WRECK)


# -------------------------------------------------------------------------------------- epoch 0


def test_the_starting_weights_win_where_training_makes_it_worse(trained, wrecked):
    out, printed = wrecked
    before, record = history(trained), history(out)
    best = {name: series[before["best_epoch"] - 1] for name, series in before["val"].items()}
    assert same(record["start"], best)  # the values of the run that they are from
    assert record["best_epoch"] == 0 and max(record["val"]["seg_iou"]) < record["start"]["seg_iou"]
    assert same(load(out / "main_model_lite.pt"), load(trained / "main_model_lite.pt"))
    assert same(record["test"], before["test"])
    assert all(len(values) == 2 for part in ("train", "val") for values in record[part].values())
    source = record["weights_from"]
    assert source["path"] == str(trained / "main_model_lite.pt") and len(source["checksum"]) == 8
    lines = printed.splitlines()
    shown = f"seg {best['seg_loss']:.3f}, iou {best['seg_iou']:.3f}; "
    (number,) = (i for i, line in enumerate(lines) if line.startswith("epoch 0, "))
    assert lines[number].startswith(f"epoch 0, the starting weights: {shown}")
    assert lines[number + 1].startswith("epoch 1/2:")
    assert "best so far" not in printed
    assert "test: 7 images, weights of epoch 0" in lines


def test_a_run_whose_best_epoch_is_0_opens_and_predicts(trained, wrecked, tmp_path, capsys):
    out, _ = wrecked
    Image.new("RGB", (40, 30), "white").save(tmp_path / "cat.png")
    pixels = torch.full((30, 40, 3), 255, dtype=torch.uint8).numpy()
    expected = engine.open_network(trained / "main_model_lite.pt", "cpu").predict(pixels)
    for ending in ("model.pt", "model_lite.pt", "last.pt"):
        opened = engine.open_network(out / f"main_{ending}", "cpu")
        assert opened.history["best_epoch"] == 0
        assert opened.predict(pixels)["probability"] == expected["probability"]
        line = [str(out / f"main_{ending}"), str(tmp_path / "cat.png"), f"--out={tmp_path}"]
        assert not predict.main(line)
        assert json.loads(capsys.readouterr().out)["class"] == expected["class"]


BEST = {  # IoU and loss of the starting weights and of each epoch: the best of them
    "a later epoch is better": ((0.5, 0.4, 0.6, 0.5), (1.0, 1.0, 1.0, 1.0), 2),
    "none is better": ((0.5, 0.4, 0.5, 0.3), (1.0, 0.5, 1.0, 0.1), 0),
    "the loss is, where the IoU is the same": ((0.5, 0.5, 0.4, 0.5), (1.0, 2.0, 0.1, 0.9), 3),
    "nothing was known of the start": ((torch.nan, 0.1, 0.2, 0.1), (torch.nan, 1, 1, 1), 2),
}


@pytest.mark.parametrize("case", BEST)
def test_the_starting_weights_compete(shared_data, tmp_path, monkeypatch, case):
    *scores, expected = BEST[case]
    values, scores = engine.run.values, zip(*scores, strict=True)

    def scripted(tasks, table):
        return values(tasks, table) | dict(zip(("seg_iou", "seg_loss"), next(scores), strict=True))

    run("tests/recording", shared_data, tmp_path / "first", "--epochs", "1")
    first = tmp_path / "first" / "recording_model_lite.pt"
    monkeypatch.setattr(engine.run, "values", scripted)
    flags = ["--weights", str(first), "--epochs", "3"]
    run("tests/recording", shared_data, tmp_path / "out", *flags)
    record = history(tmp_path / "out", "recording")
    assert record["best_epoch"] == expected
    assert same(load(tmp_path / "out/recording_model_lite.pt"), load(first)) == (expected == 0)


@pytest.mark.parametrize("crash", [False, True])
def test_resuming_keeps_the_start(trained, wrecked, shared_data, tmp_path, monkeypatch, crash):
    """Also after a kill, here a crash, before any checkpoint knows of its validation."""
    out, flags = tmp_path / "out", [*start(trained), *WRECK]
    if crash:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(engine.run.Run, "pause", at_step(2, lambda: 1 / 0))
            run("MTL_main", shared_data, out, *flags)
    else:
        stopped("MTL_main", shared_data, out, *flags, step=2)
    state = load(out / "main_last.pt")
    assert (len(state["history"]["seconds"]), "start" in state["history"]) == (0, not crash)
    if not crash:  # the best weights so far are those that it started from
        opened = engine.open_network(out / "main_last.pt", "cpu")
        expected = load(trained / "main_model_lite.pt")
        assert opened.history["best_epoch"] == 0 and same(opened.network.state_dict(), expected)
    printed = run("MTL_main", shared_data, out, *WRECK, "--resume")
    assert ("epoch 0, the starting weights: " in printed) == crash
    assert is_like(wrecked[0], out)
    assert history(out)["weights_from"] == history(wrecked[0])["weights_from"]


def test_several_processes_start_alike(trained, wrecked, shared_data, tmp_path):
    out = tmp_path / "out"
    codes, printed = Pair("MTL_main", shared_data, out, *start(trained), *WRECK).wait()
    assert codes == [0, 0], printed
    assert printed[0].count("--weights: loaded") == printed[0].count("epoch 0, the start") == 1
    assert printed[1] == ""
    assert history(out)["start"] == pytest.approx(history(wrecked[0])["start"], abs=0.01)
    assert history(out)["best_epoch"] == 0


# --------------------------------------------------------------------------- what can be a start


@pytest.mark.parametrize("ending", ["model.pt", "last.pt"])
def test_weights_of_any_file_are_a_start(trained, wrecked, shared_data, tmp_path, ending):
    printed = run("MTL_main", shared_data, tmp_path, *start(trained, ending), *WRECK)
    count = len(load(trained / "main_model_lite.pt"))
    path = trained / f"main_{ending}"
    assert printed.startswith(f"--weights: loaded {count} of {count} tensors from {path}\n")
    assert same(history(tmp_path)["start"], history(wrecked[0])["start"])


def test_the_network_in_weights_is_a_start(shared_data, tmp_path):
    """In half precision, and with its history in the same file."""
    sizes = ["--widths", "16", "32", "64", "128", "256", "--epochs", "1", "--learning-rate", "1e-9"]
    flags = ["--weights", "weights/OEQ_model_lite.pt", *sizes]
    printed = run("MTL_OEQ", shared_data, tmp_path, *flags)
    assert "; not loaded" not in printed.splitlines()[0]
    before = load(ROOT / "weights/OEQ_model_lite.pt")["state"]
    after = load(tmp_path / "OEQ_model_lite.pt")
    assert before.keys() == after.keys()
    learned = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[n].float(), after[n], atol=1e-6) for n in learned)


def test_the_parts_that_are_not_loaded_are_named(shared_data, tmp_path):
    run("MTL_baseline", shared_data, tmp_path, "--epochs", "1")
    path = tmp_path / "baseline_model_lite.pt"
    flags = ["--weights", str(path), "--epochs", "1"]
    printed = run("MTL_main", shared_data, tmp_path, *flags).splitlines()[0]
    network = engine.load("MTL_main", WIDTHS=(8, 8, 16, 16), UNITS=1).Network()
    parts = [".".join(name.split(".")[:2]) for name in network.state_dict()]
    heads = sorted({part for part in parts if not part.startswith(("encoder", "seg"))})
    named = ", ".join(f"{part} ({parts.count(part)})" for part in heads)
    assert printed == (
        f"--weights: loaded {len(load(path))} of {len(parts)} tensors from {path}; "
        f"not loaded: {named}"
    )
    assert {part.split(".")[0] for part in heads} == {"bbox", "bin"}


def test_many_parts_that_are_not_loaded_are_counted(trained, shared_data, tmp_path):
    name, tensor = next(iter(load(trained / "main_model_lite.pt").items()))
    torch.save({name: tensor}, tmp_path / "x.pt")
    flags = ["--weights", str(tmp_path / "x.pt"), "--epochs", "1"]
    printed = run("MTL_main", shared_data, tmp_path / "out", *flags).splitlines()[0]
    assert printed.split("not loaded: ")[1].count(", ") == 6 and printed.endswith(", 2 more")


def fake_safetensors(monkeypatch, load_file):
    package = SimpleNamespace(torch=SimpleNamespace(load_file=load_file))
    monkeypatch.setitem(sys.modules, "safetensors", package)
    monkeypatch.setitem(sys.modules, "safetensors.torch", package.torch)


def test_safetensors_are_read_where_the_package_is(trained, shared_data, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")
    flags = ["--weights", str(path), *WRECK]
    state = load(trained / "main_model_lite.pt")
    fake_safetensors(monkeypatch, lambda place: state if place == path else None)
    printed = run("MTL_main", shared_data, tmp_path / "out", *flags)
    count = len(state)
    assert printed.startswith(f"--weights: loaded {count} of {count} tensors from {path}\n")
    assert history(tmp_path / "out")["best_epoch"] == 0


# ---------------------------------------------------------------------------------- what is refused


def damaged(place):
    raise ValueError("header\ntoo large")


REFUSED = {  # what is in a file: its name, the message
    "nothing that fits": (
        {"x": torch.zeros(2)},
        "--weights: expected weights that fit this network, found none in PATH",
    ),
    "no weights": ([1], "PATH: expected weights, found something else"),
    "no tensors": ({"a": {"b": 1}}, "PATH: expected weights, found something else"),
    "damage": (b"no weights", "PATH: expected a checkpoint, found a damaged file (.*)"),
}


def refusal(data, out, path):
    """The line that refuses a file of weights, which is named PATH in it."""
    printed = run("MTL_main", data, out, "--weights", str(path), code=2)
    assert printed.count("\n") == 1 and printed.startswith("MTL_main.py: ")
    assert not (out / "main_last.pt").exists()
    return printed.removeprefix("MTL_main.py: ").strip().replace(str(path), "PATH")


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_hold_no_weights_are_refused(shared_data, tmp_path, case):
    content, message = REFUSED[case]
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    found = refusal(shared_data, tmp_path / "out", path)
    assert found == message or (found.startswith(message.removesuffix("(.*)")) and "(" in message)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused(trained, shared_data, tmp_path, value):
    state = load(trained / "main_model_lite.pt")
    name = [*state][-1]
    state[name].view(-1)[0] = value
    torch.save(state, tmp_path / "x.pt")
    found = refusal(shared_data, tmp_path / "out", tmp_path / "x.pt")
    assert found == f"--weights: expected finite weights, found {name} in PATH"


def test_safetensors_that_cannot_be_read_are_called_by_their_name(
    shared_data, tmp_path, monkeypatch
):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "safetensors", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    assert refusal(shared_data, tmp_path / "out", path) == (
        "PATH: expected a .pt file, found one of the package safetensors; pip install safetensors "
        "to read it"
    )
    fake_safetensors(monkeypatch, damaged)
    message = "PATH: expected weights, found a damaged file (header too large)"
    assert refusal(shared_data, tmp_path / "out", path) == message


def test_a_missing_file_is_always_an_error(wrecked, shared_data, tmp_path):
    """For a new run, one that continues, one that is finished, and one that would start over."""
    gone = tmp_path / "gone.pt"
    line = f"MTL_main.py: --weights: expected a file of weights, found no readable file {gone}\n"
    before = {path.name: path.read_bytes() for path in wrecked[0].iterdir()}
    for out, flags in (
        (tmp_path / "new", []),
        (tmp_path / "new", ["--resume"]),
        (wrecked[0], ["--resume"]),
        (wrecked[0], ["--overwrite"]),
    ):
        flags = [*WRECK, *flags, "--weights", str(gone)]
        assert run("MTL_main", shared_data, out, *flags, code=2).endswith(line)
    assert not [*(tmp_path / "new").iterdir()]
    assert {path.name: path.read_bytes() for path in wrecked[0].iterdir()} == before


def test_weights_that_a_script_names_may_lie_elsewhere(trained, shared_data, tmp_path):
    """As those of --weights: their content counts, and not their place."""
    mine, copied = trained / "main_model_lite.pt", tmp_path / "copy.pt"
    copied.write_bytes(mine.read_bytes())
    command = ("examples/fine_tune", shared_data, tmp_path / "out", "--epochs", "1")
    run(*command, "--weights", str(mine))
    printed = run(*command, "--weights", str(copied), "--resume")
    assert printed.startswith("fine_tune is finished")
    copied.write_bytes((trained / "main_model.pt").read_bytes())
    for other in (str(copied), ""):
        printed = run(*command, "--weights", other, "--resume", code=2)
        assert "--weights: expected the weights that the run in" in printed


def test_a_run_that_exists_takes_no_other_weights(trained, wrecked, shared_data, tmp_path):
    """The same file, also at another place, is no other; another one at the same place is."""
    mine, copied, other = (trained / "main_model_lite.pt", tmp_path / "copy.pt", tmp_path / "x.pt")
    copied.write_bytes(mine.read_bytes())
    for path in (mine, copied):
        flags = [*WRECK, "--resume", "--weights", str(path)]
        assert run("MTL_main", shared_data, wrecked[0], *flags).startswith("main is finished")
    copied.write_bytes(b"another")
    other.write_bytes(b"one more")
    checksums = [f"{zlib.crc32(path.read_bytes()):08x}" for path in (mine, copied, other)]
    for out, flags, path, source in (
        (wrecked[0], WRECK, copied, f"{mine} of checksum {checksums[0]}"),
        (trained, ["--epochs", "12"], other, "none"),
    ):
        found = f"{path} of checksum {checksums[1 if path == copied else 2]}"
        flags = [*flags, "--resume", "--weights", str(path)]
        assert run("MTL_main", shared_data, out, *flags, code=2) == (
            f"MTL_main.py: --weights: expected the weights that the run in {out} started from "
            f"({source}), found {found}; only a new run takes others\n"
        )
