"""Several runs on one data folder, and several processes in one run."""

import functools
import os
import re
import runpy
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from running import (
    ROOT,
    Pair,
    Process,
    history,
    is_like,
    load,
    name_of,
    run,
    same,
    without_pictures,
)

import engine
import engine.run
import engine.setup
import MTL_Utils
from dataload import DataError, H5Dataset
from engine.evaluation import evaluate, values
from engine.processes import Processes
from engine.script import parse
from engine.setup import build
from parts.errors import UserError
from parts.signals import StopSignals

EPOCHS = ["--epochs", "4"]  # of 3 steps each


# ---------------------------------------------------------------------------------- many readers


def test_runs_at_once_on_one_read_only_folder(data_folder, tmp_path):
    """While this process holds the files open; the results are those of running alone."""
    scripts, paths = ("MTL_main", "MTL_baseline"), sorted(data_folder.rglob("*"), reverse=True)
    with without_pictures():
        for script in scripts:
            run(script, data_folder, tmp_path / f"{script}_alone")
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = [path.stat().st_mtime_ns for path in paths]
    with ExitStack() as stack:
        for path in paths:
            if path.suffix == ".h5":
                stack.enter_context(h5py.File(path, "r"))
        runs = [Process(script, data_folder, tmp_path / script) for script in scripts]
        ends = [process.wait() for process in runs]
    assert all(code == 0 for code, _ in ends), ends
    assert [path.stat().st_mtime_ns for path in paths] == before
    for script in scripts:
        assert is_like(tmp_path / f"{script}_alone", tmp_path / script, name_of(script))


# -------------------------------------------------------------------------------- many processes


def dump_average(path):
    """Let this process keep its own averaged weights, before the test."""
    original = engine.run.Run._finish

    def finish(self):
        torch.save(self.trainer.average.state_dict(), path)
        original(self)

    engine.run.Run._finish = finish


@pytest.fixture(scope="module")
def pair(shared_data, tmp_path_factory):
    """The folder of an undisturbed run of two processes, after what any such run must show."""
    folder = tmp_path_factory.mktemp("pair")
    dumps = [folder / f"{rank}.pt" for rank in range(2)]
    prepares = [functools.partial(dump_average, path) for path in dumps]
    both = Pair("MTL_main", shared_data, folder / "out", *EPOCHS, prepares=prepares)
    codes, printed = both.wait()
    assert codes == [0, 0], printed
    assert "2 process(es)" in printed[0] and "Warning" not in printed[0]
    assert printed[1] == ""  # only the first one speaks
    assert same(*map(load, dumps))
    return folder / "out"


@pytest.mark.parametrize(("split", "length"), [("val", 5), ("test", 7)])
def test_metrics_count_every_sample_once(pair, shared_data, split, length):
    """Both splits are of odd length; one process alone finds the same metrics."""
    record = history(pair)
    best = {name: series[record["best_epoch"] - 1] for name, series in record["val"].items()}
    found = {"val": best, "test": record["test"]}[split]
    opened = engine.open_network(pair / "main_model.pt", "cpu")
    dataset = H5Dataset(split, shared_data)
    assert len(dataset) == length
    table = evaluate(opened.network, dataset, opened.tasks, 4, Processes())
    for name, value in values(opened.tasks, table).items():
        assert found[name] == pytest.approx(value, abs=0.01, nan_ok=True), name


def test_a_rank_without_a_number_of_processes_means_nothing(tmp_path, monkeypatch):
    for environment in ({"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": ""}):  # set, but to nothing
        alone = Processes(environment)
        assert alone.is_first and alone.size == 1
    monkeypatch.setenv("RANK", "1")
    assert "no data: expected train/" in run("MTL_main", tmp_path, tmp_path / "out", code=2)


def test_a_sample_left_out_is_noticed(shared_data):
    alone = Processes()
    alone.size = 2  # so it takes every second sample, and no one the others
    alone.sum = lambda tensor: tensor
    script = engine.load("MTL_main")
    with pytest.raises(RuntimeError, match="did not see each of the 5 samples once"):
        evaluate(script.Network(), H5Dataset("val", shared_data), script.TASKS, 4, alone)


def test_more_processes_than_samples(shared_data):
    """One without a sample knows the same metrics, and adds nothing to them."""
    idle = Processes()
    idle.rank, idle.size = 5, 6
    idle.sum = lambda tensor: tensor + 1  # what the others found
    script = engine.load("MTL_main")
    network, dataset = script.Network(), H5Dataset("val", shared_data)
    table = evaluate(network, dataset, script.TASKS, 4, idle)
    alone = evaluate(network, dataset, script.TASKS, 4, Processes())
    assert table.keys() == alone.keys()
    assert all(pairs.eq(1).all() for each in table.values() for pairs in each.values())


def signal_at(step, number):
    """Send this process a signal after so many steps."""
    original, steps = engine.run.Run.pause, []

    def pause(self):
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), number)
        return original(self)

    engine.run.Run.pause = pause


def checkpoint_always():
    engine.run.CHECKPOINT_SECONDS = 0


def kill_at(step):
    checkpoint_always()
    signal_at(step, signal.SIGKILL)


def test_what_stops_one_process_stops_all_and_the_run_resumes(pair, shared_data, tmp_path):
    out = tmp_path / "out"

    def both(*flags, prepares=(None, None)):
        return Pair("MTL_main", shared_data, out, *EPOCHS, *flags, prepares=prepares).wait()

    fault = functools.partial(signal_at, 5, signal.SIGTERM)
    codes, printed = both(prepares=(None, fault))
    assert codes == [128 + signal.SIGTERM] * 2
    assert printed[0].endswith("stopped by signal 15; continue with --resume\n") and not printed[1]
    assert load(out / "main_last.pt")["done"] == 2  # at the same step
    fault = functools.partial(kill_at, 3)
    codes, printed = both("--resume", prepares=(checkpoint_always, fault))
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None), printed
    assert load(out / "main_last.pt")["done"] == 1  # of the third epoch, the step before
    codes, printed = both("--resume")
    assert codes == [0, 0] and "starting a new run" not in printed[0]
    assert is_like(pair, out)
    codes, printed = both("--resume")
    assert codes == [0, 0]
    assert printed == [f"main is finished, nothing is left to do; see {out}\n", ""]


def test_resuming_with_another_number_of_processes_is_refused(pair, shared_data):
    printed = run("MTL_main", shared_data, pair, *EPOCHS, "--resume", code=2)
    assert printed.endswith("main_last.pt was made with processes = 2, not 1\n")


def lose_a_file():
    def missing(*arguments):
        raise DataError("train/masks.h5: no such file")

    engine.setup.H5Dataset = missing


def late_damage():
    """Let an image on disk be damaged, of which the headers tell nothing."""

    def damaged(*arguments):
        raise DataError("train/images.h5: not a readable HDF5 file")

    H5Dataset.fingerprint = damaged


def bad_loss(step):
    original, calls = MTL_Utils.BIN.loss, []

    def loss(output, target):
        calls.append(1)
        return original(output, target) * (torch.nan if len(calls) == step else 1)

    MTL_Utils.BIN = replace(MTL_Utils.BIN, loss=loss)


def full_disk():
    def full(*arguments):
        raise OSError(28, "No space left on device")

    Path.write_bytes = full


def damaged_image():
    """Let the search for doubtful data, which the first process does alone, find damage."""

    def likely_mistakes(datasets):
        raise DataError("images.h5: damaged")

    engine.run.likely_mistakes = likely_mistakes


PROBLEMS = {
    "data missing for one": ((None, lose_a_file), r"train/masks.h5: no such file"),
    "damage for one": ((None, late_damage), r"train/images.h5: not a readable HDF5 file"),
    "a bad loss in one": (
        (None, functools.partial(bad_loss, 2)),
        r"the loss of bin is not finite in epoch 1, step 2, samples \[\d+, \d+, \d+, \d+\]; .*",
    ),
    "a full disk": (
        (full_disk, None),
        r".*main_last.pt: cannot be written \(No space left on device\)",
    ),
    "damage that only the first one comes upon": ((damaged_image, None), "images.h5: damaged"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_of_one_process_ends_all_with_one_line(shared_data, tmp_path, case):
    prepares, message = PROBLEMS[case]
    both = Pair("MTL_main", shared_data, tmp_path / "out", prepares=prepares)
    codes, printed = both.wait()
    assert codes == [2, 2], printed
    assert re.fullmatch(f"MTL_main.py: {message}", printed[0].splitlines()[-1])
    assert "Traceback" not in printed[0] and printed[1] == ""


def test_a_batch_that_cannot_be_shared_is_refused(shared_data, tmp_path):
    codes, printed = Pair("MTL_main", shared_data, tmp_path / "out", "--batch-size", "5").wait()
    assert codes == [2, 2]
    assert printed == [
        "MTL_main.py: --batch-size: expected a multiple of the 2 processes, found 5\n", ""
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_batch_that_is_cut_to_few_images_is_said(shared_data):
    five, parsed = Processes({}), parse(ROOT / "MTL_main.py", ["--batch-size", "32"])
    five.size = 5
    with pytest.raises(UserError, match=r"of the 5 processes, found 32, cut to 12 images$"):
        build(*parsed, H5Dataset("train", shared_data), five)


def torchrun(dies):
    """`torchrun --nproc_per_node=2` on the command line of this process, which it then ends.

    Its workers are forked, since an import of torch takes seconds; all the rest is its own.

    Args:
        dies: whether the second worker is killed at its fifth step.
    """
    from torch.distributed import run as program

    launch = program.elastic_launch
    program.elastic_launch = lambda config, entrypoint: launch(config, worker)
    os.environ["SECOND"] = "dies" if dies else "lives"
    os.setsid()  # a process group of its own, as a terminal makes one
    program.main(["--standalone", "--nproc_per_node=2", "--start_method=fork", *sys.argv])
    sys.exit()


def worker(unbuffered, *argv):
    sys.argv = list(argv)
    if os.environ["RANK"] == "1" and os.environ["SECOND"] == "dies":
        kill_at(5)
    checkpoint_always()
    runpy.run_path(argv[0], run_name="__main__")


def test_torchrun_ends_when_a_worker_dies_and_all_stop_at_ctrl_c(shared_data, tmp_path):
    out, flags = tmp_path / "out", ["--epochs", "500", "--resume"]
    prepares = [functools.partial(torchrun, dies) for dies in (True, False)]
    first = Process("MTL_main", shared_data, out, *flags, prepare=prepares[0])
    assert first.wait()[0] not in (0, None)
    state = load(out / "main_last.pt")
    assert state["settings"]["processes"] == 2 and state["done"] == 1  # of the second epoch
    process = Process("MTL_main", shared_data, out, *flags, prepare=prepares[1])
    process.wait_until(lambda: "epoch 3/" in process.printed())
    os.killpg(process.process.pid, signal.SIGINT)  # so torchrun repeats it to its workers
    code, printed = process.wait()
    assert code not in (0, None)
    assert printed.count("stopped by signal 2; continue with --resume\n") == 1
    assert "ended at once" not in printed
    assert len(load(out / "main_last.pt")["history"]["seconds"]) >= 3


# --------------------------------------------------------------------------------------- signals


def test_an_echo_of_a_signal_is_not_a_second_one():
    """torchrun passes on the Ctrl-C that its workers have already got from the terminal."""
    with StopSignals() as signals:
        signals.graceful = True
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        signals.since -= signals.ECHO_SECONDS
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 128 + signal.SIGTERM


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_under_nohup_a_hangup_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_cuda_alone_is_the_gpu_of_this_process():
    """set_device takes a device with a number only."""
    for environment, found in (({}, "cuda:0"), ({"LOCAL_RANK": "3"}, "cuda:3")):
        with pytest.raises(UserError, match=rf"found {found} \("):
            Processes(environment).use("cuda")
