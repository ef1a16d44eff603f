"""Kills, signals, resuming and bad numbers: what a run has done is never lost nor mixed up."""

import functools
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import h5py
import pytest
import torch
from conftest import COUNTS
from hypothesis import given, settings
from hypothesis import strategies as st
from running import ROOT, TINY, Process, history, is_like, load, run

import engine.results
import engine.run
import engine.tasks
import engine.training
import ResBlock
from MTL_Utils import bbox_loss
from parts import demo_data
from parts.errors import UserError
from parts.sampling import epoch_batches

EPOCHS = ["--epochs", "16"]  # of 3 steps each


@pytest.fixture(scope="module")
def reference(shared_data, tmp_path_factory):
    """The folder of a run of 16 epochs that nothing disturbed, checkpointed every 20 s."""
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


def test_ten_kills_do_not_change_the_end(reference, shared_data, tmp_path):
    """Four while a checkpoint is saved, six at random moments; each followed by --resume."""
    draw, out = random.Random(0), tmp_path / "out"
    faults = [functools.partial(kill_while_saving, stage, draw.randint(1, 3)) for stage in STAGES]
    moments = [(draw.randint(1, 2), draw.uniform(0, 0.03)) for _ in range(6)]
    faults += [functools.partial(kill_after, *moment) for moment in moments]
    draw.shuffle(faults)
    for fault in faults:
        process = Process("MTL_main", shared_data, out, *EPOCHS, "--resume", prepare=fault)
        code, printed = process.wait()
        assert code == -signal.SIGKILL, printed
        assert "Traceback" not in printed
        if (out / "main_last.pt").exists():
            load(out / "main_last.pt")
    code, printed = Process("MTL_main", shared_data, out, *EPOCHS, "--resume").wait()
    assert code == 0 and "starting anew" not in printed
    assert is_like(reference, out)


def test_a_kill_while_the_results_are_written_is_mended(reference, shared_data, tmp_path):
    fault = kill_while_results_are_written
    process = Process("MTL_main", shared_data, tmp_path / "out", *EPOCHS, prepare=fault)
    assert process.wait()[0] == -signal.SIGKILL
    assert not (tmp_path / "out" / "main_history.pt").exists()
    run("MTL_main", shared_data, tmp_path / "out", *EPOCHS, "--resume")
    assert is_like(reference, tmp_path / "out")


def kill_while_results_are_written():
    engine.results.save_csv = lambda history, path: kill()


# --------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step(reference, shared_data, tmp_path, monkeypatch, number):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop = at_step(8, lambda: signal.raise_signal(number))
        patch.setattr(engine.run.Run, "pause", stop)
        printed = run("MTL_main", shared_data, out, *EPOCHS, code=128 + number)
    assert printed.endswith(f"stopped by signal {number}; continue with --resume\n")
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
    original = engine.run.H5Dataset

    def interrupted(split, folder):
        signal.raise_signal(signal.SIGINT)
        return original(split, folder)

    monkeypatch.setattr(engine.run, "H5Dataset", interrupted)
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


def test_ctrl_c_in_a_shell(shared_data, tmp_path):
    """The program as a user starts it, from another folder."""
    flags = ["--h5-save-path", str(shared_data), "--file-save-path", "out", "--device", "cpu"]
    command = [sys.executable, str(ROOT / "MTL_main.py"), *flags, *TINY, "--epochs", "2000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
            last = line
    assert process.returncode == 128 + signal.SIGINT
    assert last == "stopped by signal 2; continue with --resume\n"
    assert len(load(tmp_path / "out" / "main_last.pt")["history"]["seconds"]) >= 2


# -------------------------------------------------------------------------------------- resuming


def test_resuming_with_other_settings_names_every_difference(finished, shared_data):
    out = finished["MTL_main"]
    before = (out / "main_last.pt").read_bytes()
    flags = ["--resume", "--seed", "1", "--epochs", "4"]
    printed = run("MTL_main", shared_data, out, *flags, code=2)
    assert printed == (
        f"MTL_main.py: --resume: {out}/main_last.pt was made with EPOCHS = 3, not 4; "
        "SEED = 0, not 1\n"
    )
    assert (out / "main_last.pt").read_bytes() == before


def test_resuming_with_other_data_is_refused(finished, shared_data, data_folder):
    with h5py.File(data_folder / "val" / "images.h5", "r+") as file:
        file["images"][0] = 0
    printed = run("MTL_main", data_folder, finished["MTL_main"], "--resume", code=2)
    assert "was made with data in val = 5 samples of checksum" in printed
    assert printed.count("\n") == 1 and "data in train" not in printed


def test_the_same_data_elsewhere_is_not_other_data(finished, data_folder):
    printed = run("MTL_main", data_folder, finished["MTL_main"], "--resume")
    assert printed.startswith("main is finished, nothing is left to do")


def test_resuming_a_finished_run_touches_nothing(finished, shared_data, monkeypatch):
    out = finished["MTL_main"]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
    monkeypatch.delattr(engine.run, "evaluate")  # the test split is not looked at again
    printed = run("MTL_main", shared_data, out, "--resume")
    assert printed == f"main is finished, nothing is left to do; see {out}\n"
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir()}
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


def test_resuming_with_an_edited_network_is_refused(finished, shared_data, monkeypatch):
    decoder = ResBlock.Decoder
    monkeypatch.setattr(ResBlock, "Decoder", lambda widths, units: decoder(widths, units + 1))
    printed = run("MTL_main", shared_data, finished["MTL_main"], "--resume", code=2)
    assert printed.endswith("main_last.pt was made with another network\n")


def test_a_new_run_replaces_the_old_checkpoint_at_once(finished, shared_data, tmp_path):
    """So a kill soon after cannot make --resume go on with the older run."""
    for path in finished["MTL_main"].iterdir():
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
    flags = ["--demo", "--epochs", "3"]
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
    monkeypatch.delattr(engine.run.Trainer, "epoch")
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
    calls, old = [], getattr(engine.tasks, task.upper())
    original = old.loss

    def loss(output, target):
        if not torch.is_grad_enabled():
            return original(output, target)
        calls.append(1)
        bad = (value, gradient) if len(calls) == step else (1.0, 1.0)
        return Bad.apply(original(output, target), *bad)

    monkeypatch.setattr(engine.tasks, task.upper(), replace(old, loss=loss))


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


edge = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0]))
box = st.tuples(edge, edge, edge, edge)


def tensor(boxes, ordered):
    """(N, 4); if ordered, xmin <= xmax and ymin <= ymax."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    if ordered:
        boxes = torch.cat([boxes.view(-1, 2, 2).amin(1), boxes.view(-1, 2, 2).amax(1)], dim=1)
    return boxes


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(box, box), min_size=1, max_size=6), st.booleans(), st.randoms())
def test_no_box_gives_a_nan_gradient(pairs, ordered, draw):
    """Empty, inverted, equal, touching and unknown boxes among them."""
    boxes = tensor([a for a, _ in pairs], ordered).requires_grad_()
    target = tensor([b for _, b in pairs], ordered)
    target[[draw.random() < 0.2 for _ in pairs]] = torch.nan
    loss = bbox_loss(boxes, target)
    loss.sum().backward()
    assert loss.isfinite().all() and boxes.grad.isfinite().all()
