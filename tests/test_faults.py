"""Kills, full disks and bad numbers: what a run has done is never lost nor mixed up."""

import functools
import itertools
import os
import pathlib
import random
import resource
import signal
import threading
from dataclasses import replace

import pytest
import torch
from running import LONGER, Process, at_step, history, is_like, load, run, without_pictures

import engine.results
import engine.run
import engine.setup
import engine.training
import MTL_Utils
from parts.errors import UserError
from parts.sampling import epoch_batches


@pytest.fixture(scope="module", autouse=True)
def quick():
    with without_pictures():
        yield


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
        process = Process("MTL_main", shared_data, out, *LONGER, "--resume", prepare=fault)
        code, printed = process.wait()
        assert code == -signal.SIGKILL, printed
        assert "Traceback" not in printed
        if (out / "main_last.pt").exists():
            load(out / "main_last.pt")
    assert "starting a new run" not in run("MTL_main", shared_data, out, *LONGER, "--resume")
    assert is_like(reference, out)


def kill_before(name):
    """A kill when the file of this name is complete, but has another name yet."""
    rename = os.replace

    def patched(source, target):
        if pathlib.Path(target).name == name:
            kill()
        rename(source, target)

    os.replace = patched


def content_and_time(path):
    return path.read_bytes(), path.stat().st_mtime_ns


def test_kills_while_the_results_are_written_are_mended(reference, shared_data, tmp_path):
    """The numbers come first, and those that are there stay as they are."""
    out, numbers = tmp_path / "out", ("model_lite.pt", "history.csv", "history.pt")
    others, written = ("model.pt", "seg_loss.png", "test.png"), []
    for name in ("history.csv", "model.pt", "test.png", "last.pt"):
        fault = functools.partial(kill_before, f"main_{name}")
        flags = [*LONGER, *(["--resume"] if out.exists() else [])]
        process = Process("MTL_main", shared_data, out, *flags, prepare=fault)
        code, printed = process.wait()
        assert code == -signal.SIGKILL, printed
        done = [*numbers, *others].index(name) if name != "last.pt" else 6
        left = {f"main_{ending}" for ending in [*numbers, *others][:done]}
        assert {path.name for path in out.glob("[!.]*")} == {*left, "main_last.pt"}
        if done >= len(numbers):
            now = [content_and_time(out / f"main_{ending}") for ending in numbers]
            assert now == (written := written or now)
    run("MTL_main", shared_data, out, *LONGER, "--resume")
    assert written == [content_and_time(out / f"main_{ending}") for ending in numbers]
    assert is_like(reference, out)
    assert not [*out.glob(".*")]  # nor has a kill left anything for good


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
            printed = run("MTL_main", shared_data, out, *LONGER, code=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    expected = f"MTL_main.py: {out}/main_last.pt: cannot be written (File too large)\n"
    assert printed.endswith(expected) and "Traceback" not in printed
    assert load(out / "main_last.pt")["done"] == 1  # the step before, of the second epoch
    run("MTL_main", shared_data, out, *LONGER, "--resume")
    assert is_like(reference, out)


def test_a_full_disk_at_the_end_keeps_the_checkpoint(reference, shared_data, tmp_path, monkeypatch):
    def full(history, path):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(engine.results, "save_csv", full)
        printed = run("MTL_main", shared_data, tmp_path / "out", *LONGER, code=2)
    assert printed.endswith("_history.csv: cannot be written (No space left on device)\n")
    run("MTL_main", shared_data, tmp_path / "out", *LONGER, "--resume")
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


BAD = {  # loss, gradient, what is said, after how many steps it is looked for
    "a NaN loss": (torch.nan, torch.nan, "the loss of bbox", 20),
    "an infinite loss": (torch.inf, 1.0, "the loss of bbox", 1),
    "a NaN gradient": (1.0, torch.nan, "the gradient", 20),
    "an infinite gradient": (1.0, torch.inf, "the gradient", 1),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_number_stops_the_run(shared_data, tmp_path, monkeypatch, case):
    value, gradient, what, every = BAD[case]
    monkeypatch.setattr(engine.training, "CHECK_EVERY", every)
    make_bad(monkeypatch, "bbox", 5, value, gradient)  # the second step of the second epoch
    printed = run("MTL_main", shared_data, tmp_path / "out", code=2)
    known = torch.ones(12, dtype=torch.bool)
    batch = epoch_batches(known, known, 4, 0, 2)[1]
    assert printed.splitlines()[-1] == (
        f"MTL_main.py: {what} is not finite in epoch 2, step 2, samples {batch}; "
        "the last checkpoint is intact: continue with --resume and a lower --learning-rate, or "
        "look at these samples"
    )


def test_no_checkpoint_is_written_after_a_bad_step(reference, shared_data, tmp_path, monkeypatch):
    """Not even by a signal in the very step, or when one is due."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        make_bad(patch, "seg", 8, torch.nan, torch.nan)
        patch.setattr(engine.run, "CHECKPOINT_SECONDS", 0)
        stop = at_step(8, lambda: signal.raise_signal(signal.SIGTERM))
        patch.setattr(engine.run.Run, "pause", stop)
        printed = run("MTL_main", shared_data, out, *LONGER, code=2)
    assert "the loss of seg is not finite in epoch 3, step 2" in printed
    assert load(out / "main_last.pt")["done"] == 1
    run("MTL_main", shared_data, out, *LONGER, "--resume")  # whose loss is as it should be
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
