"""Several runs on one data folder, and several processes in one run."""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch
from running import ROOT, SCRIPTS, TINY, Process, history, is_like, load, run, same

import engine.run
import engine.tasks
import MTL_main
from dataload import DataError, H5Dataset
from engine.evaluation import evaluate, values
from engine.processes import Processes, StopSignals

EPOCHS = ["--epochs", "4"]  # of 3 steps each


# ---------------------------------------------------------------------------------- many readers


def test_all_scripts_at_once_on_one_read_only_folder(finished, data_folder, tmp_path):
    """While this process holds the files open; the results are those of running alone."""
    paths = sorted(data_folder.rglob("*"), reverse=True)
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with ExitStack() as stack:
        for path in paths:
            if path.suffix == ".h5":
                stack.enter_context(h5py.File(path, "r"))
        runs = {script: Process(script, data_folder, tmp_path / script) for script in SCRIPTS}
        ends = {script: process.wait() for script, process in runs.items()}
    assert all(code == 0 for code, _ in ends.values()), ends
    for script in SCRIPTS:
        name = script.removeprefix("MTL_")
        assert is_like(finished[script], tmp_path / script, name)


# -------------------------------------------------------------------------------- many processes


class Pair:
    """A run of two processes, as torchrun starts them.

    Args:
        prepares: what to call first in each, or None.
    """

    def __init__(self, data, out, *flags, prepares=(None, None)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        self.processes = []
        for rank, prepare in enumerate(prepares):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            keywords = {"prepare": prepare, "environment": address | place}
            self.processes.append(Process("MTL_main", data, out, *EPOCHS, *flags, **keywords))

    def wait(self):
        """Both exit codes, and what both printed on stderr."""
        ends = [process.wait() for process in self.processes]
        return [code for code, _ in ends], [printed for _, printed in ends]


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
    codes, printed = Pair(shared_data, folder / "out", prepares=prepares).wait()
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
    network = torch.load(pair / "main_model.pt", weights_only=False)
    dataset = H5Dataset(split, shared_data)
    assert len(dataset) == length
    table = evaluate(network, dataset, MTL_main.TASKS, 4, Processes())
    for name, value in values(MTL_main.TASKS, table).items():
        assert found[name] == pytest.approx(value, abs=0.01, nan_ok=True), name


def test_a_rank_without_a_number_of_processes_means_nothing():
    alone = Processes({"RANK": "1"})
    assert alone.is_first and alone.size == 1


def test_a_mistake_is_told_though_a_rank_is_left_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert "no data: expected train/" in run("MTL_main", tmp_path, tmp_path / "out", code=2)


def test_a_sample_left_out_is_noticed(shared_data):
    alone = Processes()
    alone.size = 2  # so it takes every second sample, and no one the others
    alone.sum = lambda tensor: tensor
    network = MTL_main.Network()
    with pytest.raises(RuntimeError, match="did not see each of the 5 samples once"):
        evaluate(network, H5Dataset("val", shared_data), MTL_main.TASKS, 4, alone)


def test_more_processes_than_samples(shared_data):
    """One without a sample knows the same metrics, and adds nothing to them."""
    idle = Processes()
    idle.rank, idle.size = 5, 6
    idle.sum = lambda tensor: tensor + 1  # what the others found
    network, dataset = MTL_main.Network(), H5Dataset("val", shared_data)
    table = evaluate(network, dataset, MTL_main.TASKS, 4, idle)
    alone = evaluate(network, dataset, MTL_main.TASKS, 4, Processes())
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


def test_a_signal_to_one_process_stops_all_at_the_same_step(pair, shared_data, tmp_path):
    prepares = (None, functools.partial(signal_at, 5, signal.SIGTERM))
    codes, printed = Pair(shared_data, tmp_path / "out", prepares=prepares).wait()
    assert codes == [128 + signal.SIGTERM] * 2
    assert printed[0].endswith("stopped by signal 15; continue with --resume\n") and not printed[1]
    assert load(tmp_path / "out" / "main_last.pt")["done"] == 2
    codes, printed = Pair(shared_data, tmp_path / "out", "--resume").wait()
    assert codes == [0, 0], printed
    assert is_like(pair, tmp_path / "out")


def checkpoint_always():
    engine.run.CHECKPOINT_SECONDS = 0


def kill_at(step):
    checkpoint_always()
    signal_at(step, signal.SIGKILL)


def test_a_killed_process_ends_all_and_the_run_resumes(pair, shared_data, tmp_path):
    prepares = (checkpoint_always, functools.partial(kill_at, 5))
    codes, printed = Pair(shared_data, tmp_path / "out", prepares=prepares).wait()
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None), printed
    codes, printed = Pair(shared_data, tmp_path / "out", "--resume").wait()
    assert codes == [0, 0] and "starting anew" not in printed[0]
    assert is_like(pair, tmp_path / "out")


def test_a_finished_run_of_two_processes_is_left_alone(pair, shared_data):
    codes, printed = Pair(shared_data, pair, "--resume").wait()
    assert codes == [0, 0]
    assert printed == [f"main is finished, nothing is left to do; see {pair}\n", ""]


def test_resuming_with_another_number_of_processes_is_refused(pair, shared_data):
    printed = run("MTL_main", shared_data, pair, *EPOCHS, "--resume", code=2)
    assert printed.endswith("main_last.pt was made with processes = 2, not 1\n")


def lose_a_file():
    def missing(split, folder):
        raise DataError("train/masks.h5: no such file")

    engine.run.H5Dataset = missing


def bad_loss(step):
    original, calls = engine.tasks.BIN.loss, []

    def loss(output, target):
        calls.append(1)
        return original(output, target) * (torch.nan if len(calls) == step else 1)

    engine.tasks.BIN = replace(engine.tasks.BIN, loss=loss)


def full_disk():
    def full(*arguments):
        raise OSError(28, "No space left on device")

    Path.write_bytes = full


def damaged_image():
    """Let the search for doubtful data, which the first process does alone, find damage."""

    def warnings(datasets):
        raise DataError("images.h5: damaged")

    engine.run.warnings = warnings


PROBLEMS = {
    "data missing for one": ((None, lose_a_file), r"train/masks.h5: no such file"),
    "a bad loss in one": (
        (None, functools.partial(bad_loss, 2)),
        r"the loss of bin is not finite in epoch 1, step 2, samples \[\d+, \d+, \d+, \d+\]; .*",
    ),
    "a full disk": (
        (full_disk, None),
        r".*main_last.pt: cannot be written \(No space left on device\)",
    ),
    "damage that only the first one comes upon": (
        (damaged_image, None),
        "images.h5: damaged",
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_of_one_process_ends_all_with_one_line(shared_data, tmp_path, case):
    prepares, message = PROBLEMS[case]
    codes, printed = Pair(shared_data, tmp_path / "out", prepares=prepares).wait()
    assert codes == [2, 2], printed
    assert re.fullmatch(f"MTL_main.py: {message}", printed[0].splitlines()[-1])
    assert "Traceback" not in printed[0] and printed[1] == ""


def test_a_batch_that_cannot_be_shared_is_refused(shared_data, tmp_path):
    codes, printed = Pair(shared_data, tmp_path / "out", "--batch-size", "5").wait()
    assert codes == [2, 2]
    assert printed == [
        "MTL_main.py: --batch-size: expected a multiple of the 2 processes, found 5\n", ""
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()


def worker(rank):
    """The process id of the worker of this rank that torchrun has started for this test."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and f"\0RANK={rank}\0" in environment(entry):
            return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


def environment(entry):
    try:
        text = "\0" + (entry / "environ").read_text(errors="replace")
    except OSError:
        return ""
    return text if f"\0TRUST_TEST={os.getpid()}\0" in text else ""


def test_torchrun_ends_when_a_worker_dies_and_leaves_a_checkpoint(pair, shared_data, tmp_path):
    flags = ["--h5-save-path", str(shared_data), "--file-save-path", "out", "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "MTL_main.py"), *flags, *TINY]
    keywords = {"cwd": tmp_path, "env": os.environ | {"TRUST_TEST": str(os.getpid())}}
    pipes = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--epochs", "500"], **pipes, **keywords) as process:
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                os.kill(worker(1), signal.SIGKILL)
    assert process.returncode != 0
    assert load(tmp_path / "out" / "main_last.pt")["settings"]["processes"] == 2


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


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(engine.run.UserError, match="--device: expected a usable device, found cud"):
        Processes().use("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_cuda_alone_is_the_gpu_of_this_process():
    """set_device takes a device with a number only."""
    for environment, found in (({}, "cuda:0"), ({"LOCAL_RANK": "3"}, "cuda:3")):
        with pytest.raises(engine.run.UserError, match=rf"found {found} \("):
            Processes(environment).use("cuda")
