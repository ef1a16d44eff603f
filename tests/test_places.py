"""Where people run a script: notebooks, pipes, process groups, folders that hold a run."""

import errno
import functools
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from running import ROOT, Process, arguments, changed, history, load, run, without_pictures

import engine
import engine.run
from dataload import H5Dataset
from engine import script
from engine.processes import TORCHRUN
from engine.weights import weights_file
from parts.errors import SettingError, UserError
from parts.files import locked
from tools import run_all


@pytest.fixture(autouse=True)
def no_pictures():
    with without_pictures():
        yield


def test_calls_from_a_notebook_ignore_its_own_command_line(shared_data, tmp_path, monkeypatch):
    """Twice in a row, and the first call's flags are not the second's defaults."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:  # no flags: data/pets, which is not there
        engine.main(ROOT / "MTL_main.py")
    assert stop.value.code == 2
    for seed in ("1", None):
        flags = arguments(shared_data, tmp_path / str(seed), "--epochs", "1")
        engine.main("MTL_main.py", [*flags, "--seed", seed] if seed else flags)
        assert history(tmp_path / str(seed))["config"]["SEED"] == int(seed or 0)


# ---------------------------------------------------------------------- what a script must bring


def odd(tmp_path, *pairs, script="MTL_main"):
    """The path of a script with some text replaced."""
    (tmp_path / "MTL_odd.py").write_text(changed((ROOT / f"{script}.py").read_text(), *pairs))
    return tmp_path / "MTL_odd.py"


LACKS = {
    "a constant": ("SEED = 0", "seed = 0", "expected a constant SEED, found none"),
    "a network": ("class Network", "class Net", "expected a definition Network, found none"),
    "tasks": ("TASKS = {", "JOBS = {", "expected a definition TASKS, found none"),
    "any task": (
        "TASKS = {", "TASKS = {} and {", "TASKS: expected {name: Task} with a task, found none",
    ),
    "a Task": ('"bbox": BBOX,', '"bbox": 5,', "TASKS: expected a Task for 'bbox', found int"),
    "a weighting": ("def weighting", "def weigh", "expected a definition weighting, found none"),
    "an augmentation": (
        "def augmentation", "def augment", "expected a definition augmentation, found none",
    ),
    "a weight": (
        '"bbox": 0.3, ', "", "TASKS: expected a weight for 'bbox' from weighting(), found seg, bin",
    ),
    "a surplus weight": (
        '"bin": 0.2}', '"bin": 0.2, "age": 1.0}',
        "weighting(): expected weights of seg, bbox, bin, found age",
    ),
    "an output": (
        '"bbox": self.bbox', '"box": self.bbox',
        "TASKS: expected an output for 'bbox' from Network, found seg, box, bin",
    ),
    "a stride": (
        "self.stride =", "self.pace =",
        "Network: expected a whole number above 0 as attribute 'stride', of which image sides must",
    ),
    "a stride above 0": (
        "self.stride = ", "self.stride = 0 * ",
        "Network: expected a whole number above 0 as attribute 'stride', of which image sides must",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKS)
def test_what_a_script_lacks_is_said_in_one_line(shared_data, tmp_path, case):
    old, new, message = LACKS[case]
    printed = run(odd(tmp_path, (old, new)), shared_data, tmp_path / "out", code=2)
    assert printed.startswith(f"MTL_odd.py: {message}") and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_primary_metric_that_a_task_lacks_is_refused_before_training(shared_data, tmp_path):
    task = '"bin": Task(BIN.target, BIN.loss, BIN.metrics, "recall"),'
    path = odd(tmp_path, ('"bin": BIN,', task), ("import BBOX, ", "import Task, BBOX, "))
    assert run(path, shared_data, tmp_path / "out", code=2) == (
        "MTL_odd.py: TASKS: expected a primary metric of 'bin' among accuracy, recall_0, recall_1, "
        "found recall\n"
    )
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize(("part", "other"), [("encoder", "body"), ("decode", "answer")])
def test_a_network_without_a_part_trains_where_no_gradient_is_measured(
    shared_data, tmp_path, part, other
):
    pairs = [("self.encoder", "self.body")] if part == "encoder" else [("decode(", "answer(")]
    script = odd(tmp_path, *pairs)
    run(script, shared_data, tmp_path / "out", "--epochs", "1")
    assert history(tmp_path / "out", "odd")["test"]["seg_iou"] >= 0
    printed = run(script, shared_data, tmp_path / "other", "--diagnose", "1", code=2)
    assert printed == (
        "MTL_odd.py: --diagnose: expected a Network with encoder(image), which gives the features "
        f"that the tasks share, and decode(features), found no {part}\n"
    )


def test_an_error_in_the_users_network_keeps_its_traceback(shared_data, tmp_path):
    script = odd(tmp_path, ("seg = self.seg(features)", 'raise ValueError("my own mistake")'))
    with pytest.raises(ValueError, match="my own mistake"):
        run(script, shared_data, tmp_path / "out")


@pytest.mark.parametrize("first", ["bin", "bbox"])
def test_a_script_may_begin_with_any_task(shared_data, tmp_path, first):
    name = f"{first}_only"
    run(f"examples/{name}", shared_data, tmp_path, "--epochs", "1")
    assert history(tmp_path, name)["script"] == f"examples/{name}.py"
    assert (tmp_path / f"{name}_{first}_loss.png").is_file()
    assert (tmp_path / f"{name}_test.png").is_file()


def test_a_task_of_any_name_is_told(shared_data, tmp_path):
    script = odd(tmp_path, ('"bbox"', '"bbox_of_head"'), script="examples/bbox_only")
    printed = run(script, shared_data, tmp_path / "out", "--epochs", "1")
    assert re.search(r"epoch 1/1: bbox_of_head \d\.\d+/\d\.\d+, iou \d\.\d+;", printed)
    assert "bbox_of_head_iou_above_half" in history(tmp_path / "out", "odd")["test"]


# ------------------------------------------------------------------------ whose files these are


def test_a_finished_or_begun_run_is_not_overwritten(finished, shared_data, tmp_path, monkeypatch):
    """It is refused before the data are read."""
    monkeypatch.setattr(engine.setup, "open_data", None)
    for path in finished["MTL_main"].glob("main_*"):
        shutil.copy(path, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("main_*")}
    printed = run("MTL_main", shared_data, tmp_path, "--seed", "1", code=2)
    assert printed == (
        f"MTL_main.py: --file-save-path: expected no run of main in {tmp_path}, found "
        "main_last.pt; continue it with --resume, start over with --overwrite, or choose another "
        "folder\n"
    )
    (tmp_path / "main_last.pt").unlink()
    assert "found main_history.pt" in run("MTL_main", shared_data, tmp_path, code=2)
    printed = run("MTL_main", shared_data, tmp_path, "--resume", code=2)
    assert "main_last.pt, found a finished run without it; start over with --overwrite" in printed
    after = {path.name: path.read_bytes() for path in tmp_path.glob("main_*")}
    assert after == {name: content for name, content in before.items() if name != "main_last.pt"}
    monkeypatch.undo()
    run("MTL_baseline", shared_data, tmp_path, "--epochs", "1")  # another may share the folder
    run("MTL_main", shared_data, tmp_path, "--overwrite", "--seed", "1", "--epochs", "1")
    assert history(tmp_path)["config"]["SEED"] == 1


def test_two_runs_of_one_name_in_one_folder_are_refused(shared_data, tmp_path):
    out = tmp_path / "out"
    first = Process("MTL_main", shared_data, out, "--epochs", "5000")
    first.wait_until((out / "main_last.pt").exists)
    printed = run("MTL_main", shared_data, out, "--resume", code=2)
    assert "expected no other run of main in" in printed and "still going" in printed
    first.signal(signal.SIGKILL)
    assert first.wait()[0] == -signal.SIGKILL
    with locked(out, "main"):  # a killed run leaves no lock behind
        pass


def test_the_home_folder_and_an_empty_path(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("MTL_main", shared_data, "~/runs/x", "--epochs", "1")
    assert (tmp_path / "runs/x/main_history.pt").is_file()
    printed = run("MTL_main", shared_data, "", code=2)
    assert printed == "MTL_main.py: --file-save-path: expected a path, found \n"


def forbid(monkeypatch, folder):
    """Let nobody look into a folder, which root always may."""
    originals = {name: getattr(os, name) for name in ("stat", "mkdir", "access")}

    def call(name, path, *arguments, **options):
        if isinstance(path, str | Path) and folder in (Path(path), *Path(path).parents):
            if name == "access":
                return not arguments[0] & os.X_OK and folder == Path(path)
            if folder != Path(path):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return originals[name](path, *arguments, **options)

    for name in originals:
        monkeypatch.setattr(os, name, functools.partial(call, name))


FORBIDDEN = {
    "--h5-save-path x": "no data: expected train/, val/ and test/ in x, but x/train is not there",
    "--h5-save-path x/data": "no data: expected train/, val/ and test/ in x/data, but x/data/train",
    "--file-save-path x": "--file-save-path: expected a writable folder, found x",
    "--file-save-path x/out": "--file-save-path: cannot create the folder x/out (Permission",
    "--weights x/y.pt": "--weights: expected a file of weights, found no readable file x/y.pt",
}


@pytest.mark.parametrize("flags", FORBIDDEN)
def test_a_folder_without_permission_is_one_line(shared_data, tmp_path, monkeypatch, flags):
    folder = tmp_path / "forbidden"
    folder.mkdir()
    (folder / "y.pt").touch()
    forbid(monkeypatch, folder)
    flag, place = flags.split()
    place = f"{folder}{place[1:]}"
    printed = run("MTL_main", shared_data, tmp_path / "out", flag, place, code=2)
    message = FORBIDDEN[flags].replace(" x", f" {folder}")
    assert printed.startswith(f"MTL_main.py: {message}") and printed.count("\n") == 1


@pytest.mark.parametrize("flag", ["--h5-save-path", "--file-save-path", "--weights"])
def test_a_name_too_long_for_the_disk_is_one_line(shared_data, tmp_path, flag):
    printed = run("MTL_main", shared_data, tmp_path / "out", flag, "x" * 300, code=2)
    assert f"{'x' * 300}" in printed and printed.count("\n") == 1


def data_of_a_series(place):
    run_all.Job(ROOT / "MTL_main.py", None, 0, Path("out"), ["--h5-save-path", place], {})


def weights_of_a_backbone(place):
    engine.load("examples/pretrained.py", BACKBONE_WEIGHTS=place).backbone_weights()


@pytest.mark.parametrize(
    "open_file", [weights_file, script.find, data_of_a_series, weights_of_a_backbone]
)
def test_the_home_folder_of_nobody_is_no_such_file(open_file):
    with pytest.raises((UserError, SettingError), match=r"expected .*~nobody-here/x"):
        open_file("~nobody-here/x")


# -------------------------------------------------------------------- pipes, signals, environment


def into(pipe):
    os.dup2(os.open(pipe, os.O_WRONLY), 2)


def test_a_pipe_that_goes_away_with_ctrl_c_costs_nothing(shared_data, tmp_path):
    """As `python MTL_main.py 2>&1 | tee log`: the pipe's reader dies first."""
    out, pipe = tmp_path / "out", tmp_path / "pipe"
    os.mkfifo(pipe)
    prepare = functools.partial(into, pipe)
    process = Process("MTL_main", shared_data, out, "--epochs", "5000", prepare=prepare)
    with open(pipe) as lines:
        next(line for line in lines if line.startswith("epoch 2/"))
    time.sleep(0.2)  # it goes on, though nobody listens
    process.signal(signal.SIGINT)
    assert process.wait()[0] == 128 + signal.SIGINT
    assert len(load(out / "main_last.pt")["history"]["seconds"]) >= 2


def close_stderr():
    os.close(2)
    sys.stderr = None  # as Python has it after 2>&-


def test_a_closed_stderr_does_no_harm(shared_data, tmp_path):
    out = tmp_path / "out"
    assert Process("MTL_main", shared_data, out, prepare=close_stderr).wait()[0] == 0
    assert (out / "main_history.pt").is_file()


def read_from_disk(method):
    """Let H5Dataset read from disk, by workers that are started so."""
    H5Dataset.__init__.__defaults__ = (*H5Dataset.__init__.__defaults__[:-1], 0)
    multiprocessing.set_forkserver_preload(["dataload"])  # the workers need not import torch
    torch.multiprocessing.set_start_method(method, force=True)
    os.setsid()  # a process group of its own, as a terminal or a scheduler makes one


@pytest.mark.parametrize(
    ("number", "method"), [(signal.SIGTERM, "fork"), (signal.SIGINT, "forkserver")]
)
def test_a_signal_to_the_whole_group_spares_the_workers(shared_data, tmp_path, number, method):
    out = tmp_path / "out"
    prepare = functools.partial(read_from_disk, method)
    process = Process("examples/area", shared_data, out, "--epochs", "5000", prepare=prepare)
    process.wait_until(lambda: "epoch 1/" in process.printed())
    os.killpg(process.process.pid, number)
    code, printed = process.wait()
    assert code == 128 + number, printed
    assert printed.endswith(f"stopped by signal {number}; continue with --resume\n")
    assert load(out / "area_last.pt")["done"] >= 0


@pytest.mark.parametrize("given", [{"RANK": "0"}, {"RANK": "1"}, {"RANK": ""}, {}])
def test_what_torchrun_left_in_the_environment_is_named(shared_data, tmp_path, monkeypatch, given):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WORLD_SIZE": "2", **given}.items():
        monkeypatch.setenv(name, value)
    missing = ", ".join(name for name in TORCHRUN if not given.get(name))
    printed = run("MTL_main", shared_data, tmp_path / "out", code=2)
    assert printed == (
        "MTL_main.py: WORLD_SIZE=2 in the environment: expected RANK, MASTER_ADDR, MASTER_PORT "
        f"beside it, found no {missing}; start with torchrun, or unset WORLD_SIZE\n"
    )


def test_only_the_first_process_says_that_a_flag_is_wrong(shared_data, tmp_path, monkeypatch):
    """A process without others says it, whatever its rank."""
    message = "MTL_main.py: --epochs: expected a whole number above 0, found 0\n"
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for environment, line in (
        ({"RANK": "1"}, message),
        ({"RANK": "1", "WORLD_SIZE": ""}, message),
        ({"RANK": "1", "WORLD_SIZE": "1"}, message),
        ({"RANK": "0", "WORLD_SIZE": "2"}, message),
        ({"RANK": "1", "WORLD_SIZE": "2"}, ""),
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert run("MTL_main", shared_data, tmp_path / "out", "--epochs", "0", code=2) == line


@pytest.mark.parametrize("device", ["meta", "hpu"])  # the second is a package of its own
def test_a_device_without_numbers_is_refused(shared_data, tmp_path, device):
    printed = run("MTL_main", shared_data, tmp_path / "out", "--device", device, code=2)
    assert printed.startswith(f"MTL_main.py: --device: expected a usable device, found {device} (")
    assert printed.count("\n") == 1


def test_a_compiler_that_is_missing_is_said_in_one_line(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no_such_compiler"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    import torch._inductor.config as config

    missing = {"cpp.cxx": (None, str(tmp_path / "no_such_compiler")), "compile_threads": 1}
    with config.patch(missing):  # the smallest network, which compiles fastest
        printed = run("tests/recording", shared_data, tmp_path / "out", "--compile", code=2)
    torch._dynamo.reset()
    assert printed.splitlines()[-1].startswith("recording.py: --compile: torch.compile failed (")
