"""Signals that stop a run, and --resume, which continues it bit for bit or says why not."""

import functools
import re
import signal
import time

import h5py
import pytest
import torch
from conftest import COUNTS, FILES
from running import LONGER, at_step, is_like, load, run, stopped, without_pictures

import engine
import engine.run
import engine.setup
import ResBlock
from engine.settings import constants
from parts import demo_data


@pytest.fixture(scope="module", autouse=True)
def quick():
    with without_pictures():
        yield


# --------------------------------------------------------------------------------------- signals


def test_a_signal_stops_after_the_step(reference, shared_data, tmp_path):
    out = tmp_path / "out"
    printed = stopped("MTL_main", shared_data, out, *LONGER, step=8, number=signal.SIGINT)
    assert printed.endswith("stopped by signal 2; continue with --resume\n")
    assert load(out / "main_last.pt")["done"] == 2  # of the third epoch: eight steps in all
    assert [path.name for path in out.iterdir()] == ["main_last.pt"]
    run("MTL_main", shared_data, out, *LONGER, "--resume")
    assert is_like(reference, out)


def signal_during(split, number):
    """`evaluate`, with a signal while it is at this split."""
    original, length = engine.run.evaluate, COUNTS[split]

    def patched(network, dataset, *arguments):
        if len(dataset) == length:
            signal.raise_signal(number)
        return original(network, dataset, *arguments)

    return patched


def test_a_signal_during_validation_stops_after_it(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.run, "evaluate", signal_during("val", signal.SIGTERM))
    printed = run("MTL_main", shared_data, tmp_path / "out", code=128 + signal.SIGTERM)
    state = load(tmp_path / "out" / "main_last.pt")
    assert len(state["history"]["seconds"]) == 1 and state["done"] == 0
    assert "stopped by signal 15" in printed


def test_a_signal_during_the_test_lets_the_run_end(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine.run, "evaluate", signal_during("test", signal.SIGTERM))
    run("MTL_main", shared_data, tmp_path / "out", "--epochs", "1")
    assert (tmp_path / "out" / "main_history.pt").exists()


def test_a_signal_before_training_ends_at_once(shared_data, tmp_path, monkeypatch, capfd):
    original = engine.setup.H5Dataset

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(engine.setup, "H5Dataset", interrupted)
    run("MTL_main", shared_data, tmp_path / "out", code=128 + signal.SIGINT)
    assert capfd.readouterr().err == "ended at once by signal 2\n"
    assert not (tmp_path / "out").exists()


def test_the_second_signal_ends_at_once(shared_data, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(engine.run.StopSignals, "ECHO_SECONDS", 0)

    def twice():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(engine.run.Run, "pause", at_step(5, twice))
    run("MTL_main", shared_data, tmp_path / "out", code=128 + signal.SIGINT)
    assert capfd.readouterr().err == "ended at once by signal 2\n"
    assert load(tmp_path / "out" / "main_last.pt")["done"] == 0  # the one it began with


# -------------------------------------------------------------------------------------- resuming


def test_resuming_with_other_settings_names_every_difference(reference, shared_data):
    before = (reference / "main_last.pt").read_bytes()
    flags = ["--resume", "--seed", "1", "--epochs", "4", "--weight-decay", "0.3"]
    decay = engine.load("MTL_main").WEIGHT_DECAY
    printed = run("MTL_main", shared_data, reference, *flags, code=2)
    assert printed == (
        f"MTL_main.py: --resume: {reference}/main_last.pt was made with EPOCHS = 5, not 4; "
        f"WEIGHT_DECAY = {decay}, not 0.3; SEED = 0, not 1\n"
    )
    assert (reference / "main_last.pt").read_bytes() == before


def test_what_a_loss_weighting_has_learned_is_kept(striped, tmp_path):
    """The gain of recording.py, which every step moves."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    run("tests/recording", striped, whole)
    stopped("tests/recording", striped, out, step=5)
    assert load(out / "recording_last.pt")["weighting"]["gain"] != 1
    run("tests/recording", striped, out, "--resume")
    assert is_like(whole, out, "recording")


def test_all_that_decides_what_is_learned_must_be_the_same(reference):
    """Every constant but the two folders and the learning rate, and every file."""
    free = {"H5_SAVE_PATH", "FILE_SAVE_PATH", "LEARNING_RATE"}
    files = {f"{split}/{name}.h5" for split in COUNTS for name in FILES}
    expected = constants(engine.load("MTL_main")).keys() - free | files | {"demo", "processes"}
    assert load(reference / "main_last.pt")["settings"].keys() == expected


def test_resuming_with_other_data_is_refused(reference, data_folder):
    with h5py.File(data_folder / "val" / "images.h5", "r+") as file:
        file["images"][1] = file["images"][0]
    printed = run("MTL_main", data_folder, reference, *LONGER, "--resume", code=2)
    checksum = rf"{COUNTS['val']} samples of checksum \w{{8}}"
    line = rf"\S+ --resume: \S+ was made with val/images.h5 = {checksum}, not {checksum}\n"
    assert re.fullmatch(line, printed)


def test_resuming_a_finished_run_touches_nothing(reference, data_folder, monkeypatch):
    """The same data elsewhere are not other data."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in reference.iterdir()}
    monkeypatch.delattr(engine.run, "evaluate")  # the test split is not looked at again
    printed = run("MTL_main", data_folder, reference, *LONGER, "--resume")
    assert printed == f"main is finished, nothing is left to do; see {reference}\n"
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in reference.iterdir()}
    assert after == before


def test_a_lost_history_is_written_again(reference, shared_data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "main_last.pt").write_bytes((reference / "main_last.pt").read_bytes())
    run("MTL_main", shared_data, out, *LONGER, "--resume")
    assert is_like(reference, out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "main_last.pt: expected a checkpoint, found a damaged file"),
        ([1, 2], "main_last.pt: expected a checkpoint, found another file"),
        ({"name": "main"}, "main_last.pt: expected a checkpoint, found another file"),
    ],
)
def test_resuming_from_no_checkpoint_is_refused(shared_data, tmp_path, content, message):
    path = tmp_path / "main_last.pt"
    torch.save(content, path) if content else path.write_bytes(b"not a checkpoint")
    before = path.read_bytes()
    printed = run("MTL_main", shared_data, tmp_path, "--resume", code=2)
    assert message in printed and printed.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [[1, 2], {"name": "main"}])
def test_another_file_in_the_place_of_the_history_is_replaced(
    reference, shared_data, tmp_path, content
):
    """A run that goes on writes its own."""
    stopped("MTL_main", shared_data, tmp_path, *LONGER, step=14)
    torch.save(content, tmp_path / "main_history.pt")
    run("MTL_main", shared_data, tmp_path, *LONGER, "--resume")
    assert is_like(reference, tmp_path)


def test_a_checkpoint_of_version_1_0_is_refused(reference, shared_data, tmp_path):
    """It has one text for all data files of a split, and the same in its settings."""
    state = load(reference / "main_last.pt")
    texts = {split: f"{n} samples of checksum 0123abcd" for split, n in COUNTS.items()}
    state["about"]["data_fingerprint"] = texts
    state["settings"] = {k: v for k, v in state["settings"].items() if "/" not in k}
    state["settings"] |= {f"data in {split}": text for split, text in texts.items()}
    torch.save(state, tmp_path / "main_last.pt")
    before = (tmp_path / "main_last.pt").read_bytes()
    printed = run("MTL_main", shared_data, tmp_path, *LONGER, "--resume", code=2)
    assert printed == (
        f"MTL_main.py: --resume: {tmp_path}/main_last.pt was made with version 1.0 of this code; "
        "start over with --overwrite\n"
    )
    assert (tmp_path / "main_last.pt").read_bytes() == before


def test_resuming_with_an_edited_network_is_refused(reference, shared_data, monkeypatch):
    decoder = ResBlock.Decoder
    monkeypatch.setattr(ResBlock, "Decoder", lambda widths, units: decoder(widths, units + 1))
    printed = run("MTL_main", shared_data, reference, *LONGER, "--resume", code=2)
    assert printed.endswith("main_last.pt was made with another network\n")


def test_the_demo_resumes(tmp_path, monkeypatch):
    """Its data are drawn again, and are the same."""
    tiny = functools.partial(demo_data.make_demo, side=32, counts=(8, 4, 4))
    monkeypatch.setattr(demo_data, "make_demo", tiny)
    flags = ["--demo", "--epochs", "2"]
    run("MTL_main", None, tmp_path / "whole", *flags)
    stopped("MTL_main", None, tmp_path / "out", *flags, step=3)
    run("MTL_main", None, tmp_path / "out", *flags, "--resume")
    assert is_like(tmp_path / "whole", tmp_path / "out")
