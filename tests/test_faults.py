"""Kills, signals, resuming and bad numbers: what a run has done is never lost nor mixed up."""

import functools
import itertools
import os
import pathlib
import random
import re
import resource
import signal
import threading
import time
from dataclasses import replace

import h5py
import pytest
import torch
from conftest import COUNTS
from running import Process, history, is_like, load, run, without_pictures

import engine.results
import engine.run
import engine.setup
import MTL_Utils
import ResBlock
from parts import demo_data
from parts.errors import UserError
from parts.sampling import epoch_batches

EPOCHS = ["--epochs", "5"]  # of 3 steps each


@pytest.fixture(scope="module", autouse=True)
def quick():
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def reference(shared_data, tmp_path_factory):
    """The folder of a run of 5 epochs that nothing disturbed."""
    out = tmp_path_factory.mktemp("reference") / "out"
    run("MTL_main", shared_data, out, *EPOCHS)
    return out


def at_step(number, action):
    """Do something after the `number`-th training step from now on, before it is looked at."""
    original, steps = engine.run.Run.pause, []

    def pause(self):
        steps.append(1)
        if len(steps) == number:
            action()
        return original(self)

    return pause


# ------------------------------------------------------------------------------- kill at any time


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after(steps, seconds):
    """A kill some time after so many steps, in a run that saves a checkpoint at every step."""
    engine.run.CHECKPOINT_SECONDS = 0
    engine.run.Run.pause = at_step(steps, lambda: threading.Timer(seconds, kill).start())


def kill_while_saving(stage, number):
    """A kill at a stage of the `number`-th save from now on."""
    engine.run.CHECKPOINT_SECONDS = 0
    owner, name, when = STAGES[stage]
    original, calls = getattr(owner, name), []

    def patched(*arguments):
        calls.append(1)
        if len(calls) == number and when == "half":
            path, content = arguments
            with open(path, "wb") as file:
                file.write(bytes(content)[: len(content) // 2])
            kill()
        if len(calls) == number and when == "before":
            kill()
        original(*arguments)
        if len(calls) == number:
            kill()

    setattr(owner, name, patched)


STAGES = {
    "half written": (pathlib.Path, "write_bytes", "half"),
    "written": (pathlib.Path, "write_bytes", "after"),
    "before the rename": (os, "replace", "before"),
    "after the rename": (os, "replace", "after"),
}


def test_kills_do_not_change_the_end(reference, shared_data, tmp_path):
    """Four while a checkpoint is saved, three at random moments; each followed by --resume."""
    draw, out = random.Random(0), tmp_path / "out"
    faults = [functools.partial(kill_while_saving, stage, draw.randint(1, 3)) for stage in STAGES]
    moments = [(draw.randint(1, 2), draw.uniform(0, 0.03)) for _ in range(3)]
    faults += [functools.partial(kill_after, *moment) for moment in moments]
    draw.shuffle(faults)
    for fault in faults:
        process = Process("MTL_main", shared_data, out, *EPOCHS, "--resume", prepare=fault)
        code, printed = process.wait()
        assert code == -signal.SIGKILL, printed
        assert "Traceback" not in printed
        if (out / "main_last.pt").exists():
            load(out / "main_last.pt")
    assert "starting anew" not in run("MTL_main", shared_data, out, *EPOCHS, "--resume")
    assert is_like(reference, out)


def kill_before(name):
    """A kill when the file of this name is complete, but has another name yet."""
    rename = os.replace

    def patched(source, target):
        if pathlib.Path(target).name == name:
            kill()
        rename(source, target)

    os.replace = patched


def test_kills_while_the_results_are_written_are_mended(reference, shared_data, tmp_path):
    """The numbers come first, and those that are there stay as they are."""
    out, numbers = tmp_path / "out", ("model_lite.pt", "history.csv", "history.pt")
    others, written = ("model.pt", "seg_loss.png", "test.png"), {}
    for name in ("history.csv", "model.pt", "test.png", "last.pt"):
        fault = functools.partial(kill_before, f"main_{name}")
        flags = [*EPOCHS, *(["--resume"] if out.exists() else [])]
        process = Process("MTL_main", shared_data, out, *flags, prepare=fault)
        code, printed = process.wait()
        assert code == -signal.SIGKILL, printed
        done = [*numbers, *others].index(name) if name != "last.pt" else 6
        left = {f"main_{ending}" for ending in [*numbers, *others][:done]}
        assert {path.name for path in out.glob("[!.]*")} == {*left, "main_last.pt"}
        if done >= len(numbers):
            now = {ending: (out / f"main_{ending}").read_bytes() for ending in numbers}
            assert now == (written := written or now)
    run("MTL_main", shared_data, out, *EPOCHS, "--resume")
    assert written == {ending: (out / f"main_{ending}").read_bytes() for ending in numbers}
    assert is_like(reference, out)
    assert not [*out.glob(".*")]  # nor has a kill left anything for good


# --------------------------------------------------------------------------------------- signals


def test_a_signal_stops_after_the_step(reference, shared_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop = at_step(8, lambda: signal.raise_signal(signal.SIGINT))
        patch.setattr(engine.run.Run, "pause", stop)
        printed = run("MTL_main", shared_data, out, *EPOCHS, code=128 + signal.SIGINT)
    assert printed.endswith("stopped by signal 2; continue with --resume\n")
    assert load(out / "main_last.pt")["done"] == 2  # of the third epoch: eight steps in all
    assert [path.name for path in out.iterdir()] == ["main_last.pt"]
    run("MTL_main", shared_data, out, *EPOCHS, "--resume")
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
    flags = ["--resume", "--seed", "1", "--epochs", "4"]
    printed = run("MTL_main", shared_data, reference, *flags, code=2)
    assert printed == (
        f"MTL_main.py: --resume: {reference}/main_last.pt was made with EPOCHS = 5, not 4; "
        "SEED = 0, not 1\n"
    )
    assert (reference / "main_last.pt").read_bytes() == before


def test_resuming_with_other_data_is_refused(reference, data_folder):
    with h5py.File(data_folder / "val" / "images.h5", "r+") as file:
        file["images"][0] = 0
    printed = run("MTL_main", data_folder, reference, *EPOCHS, "--resume", code=2)
    checksum = r"5 samples of checksum \w{8}"
    line = rf"\S+ --resume: \S+ was made with val/images.h5 = {checksum}, not {checksum}\n"
    assert re.fullmatch(line, printed)


def test_resuming_a_finished_run_touches_nothing(reference, data_folder, monkeypatch):
    """The same data elsewhere are not other data."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in reference.iterdir()}
    monkeypatch.delattr(engine.run, "evaluate")  # the test split is not looked at again
    printed = run("MTL_main", data_folder, reference, *EPOCHS, "--resume")
    assert printed == f"main is finished, nothing is left to do; see {reference}\n"
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in reference.iterdir()}
    assert after == before


def test_a_lost_history_is_written_again(reference, shared_data, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "main_last.pt").write_bytes((reference / "main_last.pt").read_bytes())
    run("MTL_main", shared_data, out, *EPOCHS, "--resume")
    assert is_like(reference, out)


def test_resuming_without_a_checkpoint_starts_anew(shared_data, tmp_path):
    printed = run("MTL_main", shared_data, tmp_path / "out", "--resume", "--epochs", "1")
    assert printed.startswith(f"--resume: no checkpoint {tmp_path}/out/main_last.pt; starting anew")
    assert len(history(tmp_path / "out")["train"]["seg_loss"]) == 1


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


def test_resuming_with_an_edited_network_is_refused(reference, shared_data, monkeypatch):
    decoder = ResBlock.Decoder
    monkeypatch.setattr(ResBlock, "Decoder", lambda widths, units: decoder(widths, units + 1))
    printed = run("MTL_main", shared_data, reference, *EPOCHS, "--resume", code=2)
    assert printed.endswith("main_last.pt was made with another network\n")


def test_a_new_run_replaces_the_old_checkpoint_at_once(reference, shared_data, tmp_path):
    """So a kill soon after cannot make --resume go on with the older run."""
    for path in reference.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fault = functools.partial(kill_after, 1, 0)
    flags = ["--seed", "5", "--overwrite"]
    process = Process("MTL_main", shared_data, tmp_path, *flags, prepare=fault)
    assert process.wait()[0] == -signal.SIGKILL
    state = load(tmp_path / "main_last.pt")
    assert state["settings"]["SEED"] == 5 and state["history"]["seconds"] == []


def test_the_demo_resumes(tmp_path, monkeypatch):
    """Its data are drawn again, and are the same."""
    tiny = functools.partial(demo_data.make_demo, side=32, counts=(8, 4, 4))
    monkeypatch.setattr(demo_data, "make_demo", tiny)
    flags = ["--demo", "--epochs", "2"]
    run("MTL_main", tmp_path, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch:
        stop = at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(engine.run.Run, "pause", stop)
        run("MTL_main", tmp_path, tmp_path / "out", *flags, code=128 + signal.SIGTERM)
    run("MTL_main", tmp_path, tmp_path / "out", *flags, "--resume")
    assert is_like(tmp_path / "whole", tmp_path / "out")


# ------------------------------------------------------------------------------------- full disk


def test_a_full_disk_names_the_file_and_keeps_the_checkpoint(
    reference, shared_data, tmp_path, monkeypatch
):
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    with monkeypatch.context() as patch:
        patch.setattr(engine.run, "CHECKPOINT_SECONDS", 0)
        patch.setattr(engine.run.Run, "pause", at_step(5, fill))
        try:
            printed = run("MTL_main", shared_data, out, *EPOCHS, code=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    expected = f"MTL_main.py: {out}/main_last.pt: cannot be written (File too large)\n"
    assert printed.endswith(expected) and "Traceback" not in printed
    assert load(out / "main_last.pt")["done"] == 1  # the step before, of the second epoch
    run("MTL_main", shared_data, out, *EPOCHS, "--resume")
    assert is_like(reference, out)


def test_a_full_disk_at_the_end_keeps_the_checkpoint(reference, shared_data, tmp_path, monkeypatch):
    def full(history, path):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(engine.results, "save_csv", full)
        printed = run("MTL_main", shared_data, tmp_path / "out", *EPOCHS, code=2)
    assert printed.endswith("_history.csv: cannot be written (No space left on device)\n")
    run("MTL_main", shared_data, tmp_path / "out", *EPOCHS, "--resume")
    assert is_like(reference, tmp_path / "out")


def test_a_full_disk_is_noticed_before_training(shared_data, tmp_path, monkeypatch):
    monkeypatch.delattr(engine.setup.Trainer, "epoch")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        printed = run("MTL_main", shared_data, tmp_path / "out", code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert printed.endswith("main_last.pt: cannot be written (File too large)\n")
    assert list((tmp_path / "out").iterdir()) == []


# ----------------------------------------------------------------------------------- bad numbers


class Bad(torch.autograd.Function):
    """The identity of a loss, but its value or its gradient may be made bad."""

    @staticmethod
    def forward(context, loss, value, gradient):
        context.gradient = gradient
        return loss * value

    @staticmethod
    def backward(context, gradient):
        return gradient * context.gradient, None, None


def make_bad(monkeypatch, task, step, value, gradient):
    """Let a task's loss be bad at one step of training."""
    calls, old = [], getattr(MTL_Utils, task.upper())

    def loss(output, target):
        if not torch.is_grad_enabled():
            return old.loss(output, target)
        calls.append(1)
        bad = (value, gradient) if len(calls) == step else (1.0, 1.0)
        return Bad.apply(old.loss(output, target), *bad)

    monkeypatch.setattr(MTL_Utils, task.upper(), replace(old, loss=loss))


BAD = {
    "a NaN loss": (torch.nan, torch.nan, "the loss of bbox"),
    "an infinite loss": (torch.inf, 1.0, "the loss of bbox"),
    "a NaN gradient": (1.0, torch.nan, "the gradient"),
    "an infinite gradient": (1.0, torch.inf, "the gradient"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_number_stops_the_run(shared_data, tmp_path, monkeypatch, case):
    value, gradient, what = BAD[case]
    make_bad(monkeypatch, "bbox", 5, value, gradient)  # the second step of the second epoch
    printed = run("MTL_main", shared_data, tmp_path / "out", code=2)
    known = torch.ones(12, dtype=torch.bool)
    batch = epoch_batches(known, known, 4, 0, 2)[1]
    assert printed.splitlines()[-1] == (
        f"MTL_main.py: {what} is not finite in epoch 2, step 2, samples {batch}; "
        "the last checkpoint is good: go on with --resume and a lower --learning-rate, or look at "
        "these samples"
    )


def test_no_checkpoint_is_written_after_a_bad_step(reference, shared_data, tmp_path, monkeypatch):
    """Not even by a signal in the very step, or when one is due."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        make_bad(patch, "seg", 8, torch.nan, torch.nan)
        patch.setattr(engine.run, "CHECKPOINT_SECONDS", 0)
        stop = at_step(8, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(engine.run.Run, "pause", stop)
        printed = run("MTL_main", shared_data, out, *EPOCHS, code=2)
    assert "the loss of seg is not finite in epoch 3, step 2" in printed
    assert load(out / "main_last.pt")["done"] == 1
    run("MTL_main", shared_data, out, *EPOCHS, "--resume")  # whose loss is as it should be
    assert is_like(reference, out)


def test_a_lower_learning_rate_is_accepted_on_resume(shared_data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        make_bad(patch, "seg", 5, torch.nan, torch.nan)
        patch.setattr(engine.run, "CHECKPOINT_SECONDS", 0)
        run("MTL_main", shared_data, out, code=2)
    run("MTL_main", shared_data, out, "--resume", "--learning-rate", "1e-3")
    record = history(out)
    assert record["learning_rate_changes"] == [[2, 1e-2, 1e-3]]
    assert record["config"]["LEARNING_RATE"] == 1e-3


def test_no_box_gives_a_nan_gradient():
    """Empty, inverted, equal, touching, apart and unknown boxes, each beside each."""
    boxes = torch.tensor([*itertools.product([0.0, 0.5, 1.0], repeat=4)])  # (81, 4)
    targets = torch.cat([boxes, torch.full((1, 4), torch.nan)])
    outputs = boxes.repeat_interleave(len(targets), 0).requires_grad_()
    loss = MTL_Utils.bbox_loss(outputs, targets.repeat(len(boxes), 1))
    loss.sum().backward()
    assert loss.isfinite().all() and outputs.grad.isfinite().all()
