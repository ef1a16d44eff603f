"""Where people run a script: notebooks, pipes, process groups, copies, folders that hold a run."""

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest
import torch
from running import ROOT, Process, arguments, history, load, run

import engine
import engine.results
import engine.run
import engine.tasks
import engine.training
from dataload import H5Dataset
from engine import artefacts
from parts.sampling import epoch_batches, training_side

INLINE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


def command(data, out, *flags):
    return [sys.executable, str(ROOT / "MTL_main.py"), *arguments(data, out, *flags)]


# -------------------------------------------------------------------------- notebooks and copies


def test_a_notebooks_backend_in_the_environment_does_no_harm(shared_data, tmp_path):
    keywords = {"capture_output": True, "text": True, "env": os.environ | INLINE}
    done = subprocess.run(command(shared_data, tmp_path / "out"), **keywords, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "main_test.png").is_file()


def test_calls_from_a_notebook_ignore_its_own_command_line(shared_data, tmp_path, monkeypatch):
    """Twice in a row, and the first call's flags are not the second's defaults."""
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:  # no flags: data/pets, which is not there
        engine.main(ROOT / "MTL_main.py")
    assert stop.value.code == 2
    for seed in ("1", "2"):
        flags = arguments(shared_data, tmp_path / seed, "--seed", seed, "--epochs", "1")
        engine.main(str(ROOT / "MTL_main.py"), flags)
        assert history(tmp_path / seed)["config"]["SEED"] == int(seed)
    engine.main(ROOT / "MTL_main.py", arguments(shared_data, tmp_path / "third"))
    assert history(tmp_path / "third")["config"]["SEED"] == 0


def test_a_copied_file_is_a_new_experiment(shared_data, tmp_path):
    text = (ROOT / "MTL_main.py").read_text()
    copied = text.replace("WIDTHS = (32, 64, 128, 256)", "WIDTHS = (8, 8, 8, 8)")
    assert copied != text
    (tmp_path / "MTL_tiny.py").write_text(copied)
    out, paths = tmp_path / "out", ["--h5-save-path", str(shared_data), "--device", "cpu"]
    flags = [*paths, "--file-save-path", str(out), "--epochs", "1", "--batch-size", "4"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, "MTL_tiny.py", *flags]
    subprocess.run(line, cwd=tmp_path, env=environment, check=True, capture_output=True)
    record = history(out, "tiny")
    assert (record["name"], record["script"], record["config"]["WIDTHS"]) == (
        *("tiny", "MTL_tiny"),
        (8, 8, 8, 8),
    )
    assert {path.name.split("_")[0] for path in out.glob("*")} == {"tiny"}
    open_whole = "import torch; torch.load('out/tiny_model.pt', weights_only=False)"
    subprocess.run([sys.executable, "-c", open_whole], cwd=tmp_path, env=environment, check=True)


def test_an_example_opens_in_a_fresh_process(shared_data, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, "-m", "examples.bbox_only", *arguments(shared_data, out)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    assert history(out, "bbox_only")["script"] == "examples.bbox_only"
    open_whole = f"import torch; torch.load(r'{out}/bbox_only_model.pt', weights_only=False)"
    subprocess.run([sys.executable, "-c", open_whole], cwd=ROOT, check=True)


# ---------------------------------------------------------------------- what a script must bring


def odd(tmp_path, old, new):
    """The path, without its ending, of MTL_main with some text replaced."""
    text = (ROOT / "MTL_main.py").read_text()
    assert old in text
    (tmp_path / "MTL_odd.py").write_text(text.replace(old, new))
    return tmp_path / "MTL_odd"


LACKS = {
    "a constant": ("SEED = 0", "seed = 0", "expected a constant SEED, found none"),
    "an augmentation's": ("DEGREES = 15.0", "d = 15.0", "DEGREES: expected this constant, which"),
    "a network": ("class Network", "class Net", "expected a definition Network, found none"),
    "tasks": ("TASKS = {", "TASKS = {} and {", r"TASKS: expected {name: Task} with a task, found"),
    "a weight": (
        *('"bbox": 0.3, ', ""),
        "TASKS: expected a weight for 'bbox' from weighting(), found seg, bin",
    ),
    "a surplus weight": (
        *('"bin": 0.2}', '"bin": 0.2, "age": 1.0}'),
        "weighting(): expected weights of seg, bbox, bin, found age",
    ),
    "an output": (
        *('"bbox": self.bbox', '"box": self.bbox'),
        "TASKS: expected a output for 'bbox' from Network, found seg, box, bin",
    ),
    "a target": (
        *('    "bin": BIN,', '    "age": BIN,'),
        "TASKS: expected a weight for 'age' from weighting(), found seg, bbox, bin",
    ),
    "a stride": (
        *("self.stride =", "self.pace ="),
        "Network: expected an attribute 'stride', the number of which the sides of an image must",
    ),
}


@pytest.mark.parametrize("case", LACKS)
def test_what_a_script_lacks_is_said_in_one_line(shared_data, tmp_path, case):
    *change, message = LACKS[case]
    printed = run(odd(tmp_path, *change), shared_data, tmp_path / "out", code=2)
    assert printed.startswith(f"MTL_odd.py: {message}") and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_error_in_the_users_network_keeps_its_traceback(shared_data, tmp_path):
    script = odd(tmp_path, "seg = self.seg(features)", 'raise ValueError("my own mistake")')
    with pytest.raises(ValueError, match="my own mistake"):
        run(script, shared_data, tmp_path / "out")


@pytest.mark.parametrize("first", ["bin", "bbox"])
def test_a_script_may_begin_with_any_task(shared_data, tmp_path, first):
    name = f"examples/{first}_only"
    run(name, shared_data, tmp_path)
    assert (tmp_path / f"{first}_only_{first}_loss.png").is_file()
    assert (tmp_path / f"{first}_only_test.png").is_file()


def test_a_task_of_any_name_is_told(shared_data, tmp_path):
    text = (ROOT / "examples/bbox_only.py").read_text()
    text = text.replace('"bbox"', '"bbox_of_head"')
    (tmp_path / "MTL_named.py").write_text(text)
    dataset = H5Dataset.__getitem__

    def renamed(self, index):
        image, targets = dataset(self, index)
        return image, targets | {"bbox_of_head": targets["bbox"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(H5Dataset, "__getitem__", renamed)
        printed = run(tmp_path / "MTL_named", shared_data, tmp_path / "out")
    assert re.search(r"epoch 3/3: .*; bbox_of_head iou \d\.\d+", printed)
    assert "bbox_of_head_iou_above_half" in history(tmp_path / "out", "named")["test"]


# ------------------------------------------------------------------------ whose files these are


def test_a_finished_or_begun_run_is_not_overwritten(finished, shared_data, tmp_path, monkeypatch):
    """It is refused before the data are read."""
    monkeypatch.setattr(engine.run, "open_data", None)
    for path in finished["MTL_main"].glob("main_*"):
        shutil.copy(path, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("main_*")}
    printed = run("MTL_main", shared_data, tmp_path, "--seed", "1", code=2)
    assert printed == (
        f"MTL_main.py: --file-save-path: expected no run of main in {tmp_path}, found "
        "main_last.pt; continue it with --resume, start anew with --overwrite, or choose another "
        "folder\n"
    )
    (tmp_path / "main_last.pt").unlink()
    assert "found main_history.pt" in run("MTL_main", shared_data, tmp_path, code=2)
    printed = run("MTL_main", shared_data, tmp_path, "--resume", code=2)
    assert "main_last.pt, found a finished run without it; start anew with --overwrite" in printed
    after = {path.name: path.read_bytes() for path in tmp_path.glob("main_*")}
    assert after == {name: content for name, content in before.items() if name != "main_last.pt"}
    monkeypatch.undo()
    run("MTL_baseline", shared_data, tmp_path)  # another script may share the folder
    run("MTL_main", shared_data, tmp_path, "--overwrite", "--seed", "1")
    assert history(tmp_path)["config"]["SEED"] == 1


def test_two_runs_of_one_name_in_one_folder_are_refused(shared_data, tmp_path):
    out = tmp_path / "out"
    first = Process("MTL_main", shared_data, out, "--epochs", "5000")
    first.wait_until((out / "main_last.pt").exists)
    printed = run("MTL_main", shared_data, out, "--resume", code=2)
    assert "expected no other run of main in" in printed and "still going" in printed
    first.signal(signal.SIGKILL)
    assert first.wait()[0] == -signal.SIGKILL
    with artefacts.locked(out, "main"):  # a killed run leaves no lock behind
        pass


def test_the_home_folder_and_an_empty_path(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("MTL_main", shared_data, "~/runs/x", "--epochs", "1")
    assert (tmp_path / "runs/x/main_history.pt").is_file()
    printed = run("MTL_main", shared_data, "", code=2)
    assert printed == "MTL_main.py: --file-save-path: expected a path, found \n"


# -------------------------------------------------------------------- pipes, signals, environment


def test_a_pipe_that_goes_away_with_ctrl_c_costs_nothing(shared_data, tmp_path):
    """As `python MTL_main.py 2>&1 | tee log`: the pipe's reader dies first."""
    out = tmp_path / "out"
    keywords = {"stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(shared_data, out, "--epochs", "5000"), **keywords) as process:
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                break
        process.stderr.close()
        time.sleep(0.2)  # it goes on, though nobody listens
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
    assert len(load(out / "main_last.pt")["history"]["seconds"]) >= 2


def test_a_closed_stderr_does_no_harm(shared_data, tmp_path):
    line = " ".join(f"'{word}'" for word in command(shared_data, tmp_path / "out"))
    assert subprocess.run(f"{line} 2>&-", shell=True, check=False).returncode == 0
    assert (tmp_path / "out" / "main_history.pt").is_file()


def read_from_disk(method):
    """Let H5Dataset read from disk, by workers that are started so."""
    H5Dataset.__init__.__defaults__ = (0,)
    torch.multiprocessing.set_start_method(method, force=True)
    os.setsid()  # a process group of its own, as a terminal or a scheduler makes one


@pytest.mark.parametrize(
    ("number", "method"),
    [(signal.SIGTERM, "fork"), (signal.SIGINT, "forkserver"), (signal.SIGHUP, "fork")],
)
def test_a_signal_to_the_whole_group_spares_the_workers(shared_data, tmp_path, number, method):
    out = tmp_path / "out"
    prepare = functools.partial(read_from_disk, method)
    process = Process("MTL_main", shared_data, out, "--epochs", "5000", prepare=prepare)
    process.wait_until(lambda: "epoch 1/" in process.printed())
    os.killpg(process.process.pid, number)
    code, printed = process.wait()
    assert code == 128 + number, printed
    assert printed.endswith(f"stopped by signal {number}; continue with --resume\n")
    assert load(out / "main_last.pt")["done"] >= 0


def test_what_torchrun_left_in_the_environment_is_named(shared_data, tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    printed = run("MTL_main", shared_data, tmp_path / "out", code=2)
    assert printed == (
        "MTL_main.py: WORLD_SIZE=2 in the environment: expected RANK, MASTER_ADDR, MASTER_PORT "
        "beside it, found no MASTER_ADDR, MASTER_PORT; start with torchrun, or unset WORLD_SIZE\n"
    )


def test_a_device_without_numbers_is_refused(shared_data, tmp_path):
    printed = run("MTL_main", shared_data, tmp_path / "out", "--device", "meta", code=2)
    assert printed.startswith("MTL_main.py: --device: expected a usable device, found meta (")
    assert printed.count("\n") == 1


def test_a_compiler_that_is_missing_is_said_in_one_line(shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "no_such_compiler"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    import torch._inductor.config as config

    with config.patch({"cpp.cxx": (None, str(tmp_path / "no_such_compiler"))}):
        printed = run("MTL_baseline", shared_data, tmp_path / "out", "--compile", code=2)
    torch._dynamo.reset()
    assert printed.splitlines()[-1].startswith("MTL_baseline.py: --compile: torch.compile failed (")


# ------------------------------------------------------------------------------- best epoch, sides


def best_epoch(metric, loss, higher=True):
    """The best of epochs with these values of the first task's metric and loss."""
    task = replace(engine.tasks.SEG, higher_is_better=higher)
    chosen = engine.run.Run.__new__(engine.run.Run)
    chosen.tasks, chosen.best = {"seg": task}, None
    chosen.trainer = engine.training.Trainer.__new__(engine.training.Trainer)
    chosen.trainer.average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1))
    chosen.history = {"val": {"seg_iou": [], "seg_loss": []}, "best_epoch": 0}
    for epoch, (value, loss_value) in enumerate(zip(metric, loss, strict=True), 1):
        chosen.history["val"]["seg_iou"].append(value)
        chosen.history["val"]["seg_loss"].append(loss_value)
        chosen._keep_best(epoch)
    return chosen.history["best_epoch"]


def test_the_best_epoch_by_hand():
    nan = float("nan")
    assert best_epoch([0.1, 0.3, 0.2], [1, 3, 2]) == 2
    assert best_epoch([0.1, 0.3, 0.2], [1, 3, 2], higher=False) == 1
    assert best_epoch([0.5, 0.5, 0.5], [3, 1, 2]) == 2
    assert best_epoch([nan, nan, nan], [3, 2, 1]) == 3
    assert best_epoch([nan, 0.1, nan], [1, 3, 0]) == 2
    assert best_epoch([nan, nan], [nan, 1]) == 2


def test_sides_by_hand():
    shares = (0.5, 0.75, 1.0)
    square = [training_side(shares, e, 6, (128, 128), 32) for e in range(1, 7)]
    assert square == [(64, 64)] * 2 + [(96, 96)] * 2 + [(128, 128)] * 2
    wide = [training_side(shares, e, 6, (96, 160), 32) for e in range(1, 7)]
    assert wide == [(64, 96)] * 4 + [(96, 160)] * 2
    assert training_side(shares, 1, 1, (128, 128), 32) == (128, 128)
    assert training_side(shares, 2, 2, (128, 128), 32) == (128, 128)
    assert training_side((0.1,), 1, 2, (64, 64), 32) == (32, 32)


def test_rare_targets_are_in_every_batch():
    """4 of 40 are known; they fill half of each batch of 8, and the number of steps stays."""
    known = torch.zeros(40, dtype=torch.bool)
    known[::10] = True
    useful = torch.ones(40, dtype=torch.bool)
    batches = epoch_batches(known, useful, 8, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == [8] * 5
    assert [sum(i % 10 == 0 for i in batch) for batch in batches] == [4] * 5
    others = [i for batch in batches for i in batch if i % 10]
    assert len(others) == len(set(others)) == 20
    assert {i for batch in batches for i in batch if i % 10 == 0} == {0, 10, 20, 30}
    assert epoch_batches(known, useful, 8, 0, 1) == batches
    assert epoch_batches(known, useful, 8, 0, 2) != batches
    known[:20] = True  # more than half: as if all were known
    assert epoch_batches(known, useful, 8, 0, 1) == epoch_batches(useful, useful, 8, 0, 1)


def test_a_sample_of_which_nothing_is_known_is_never_drawn():
    """10 of 40 are of use: 5 batches of 8 draw each of them four times."""
    known = torch.zeros(40, dtype=torch.bool)
    known[::4] = True
    batches = epoch_batches(known, known, 8, seed=0, epoch=1)
    assert [len(batch) for batch in batches] == [8] * 5
    assert Counter(chain.from_iterable(batches)) == dict.fromkeys(range(0, 40, 4), 4)


def test_rare_targets_are_half_of_what_is_drawn():
    """Of 40 samples, 2 have a first target and 10 more another one: 4 and 4 fill each batch."""
    known, useful = torch.zeros(2, 40, dtype=torch.bool)
    known[:2], useful[:12] = True, True
    batches = epoch_batches(known, useful, 8, seed=0, epoch=1)
    assert [sum(i < 2 for i in batch) for batch in batches] == [4] * 5
    assert Counter(chain.from_iterable(batches)) == {0: 10, 1: 10} | dict.fromkeys(range(2, 12), 2)


# ------------------------------------------------------------------------ results before pictures


def test_a_picture_that_cannot_be_drawn_costs_itself_alone(shared_data, tmp_path, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("no such font")

    monkeypatch.setattr(engine.results, "_draw_losses", refuse)
    printed = run("MTL_main", shared_data, tmp_path / "out")
    assert "main_seg_loss.png: cannot be drawn (RuntimeError: no such font)" in printed
    assert history(tmp_path / "out")["test"]["seg_iou"] >= 0
    assert (tmp_path / "out" / "main_test.png").is_file()


def test_a_users_matplotlibrc_and_class_names_with_dollars(shared_data, tmp_path, monkeypatch):
    import matplotlib

    from engine import pictures

    with matplotlib.rc_context({"text.usetex": True, "font.family": "No Such Font"}):
        record = {"best_epoch": 1, "train": {"seg_loss": [1.0]}}
        record["val"] = {"seg_loss": [1.0], "seg_iou": [0.5]}
        pictures.save_loss_picture(tmp_path / "x.png", record, "seg", engine.tasks.SEG)
        image = torch.zeros(3, 32, 32, dtype=torch.uint8)
        targets, names = {"bin": torch.tensor(1.0)}, ("a$", "b$_{")
        tasks = {"bin": engine.tasks.BIN}
        pictures.save_test_picture(tmp_path / "y.png", image, targets, {}, {}, tasks, names)
    assert matplotlib.image.imread(tmp_path / "x.png").std() > 0.05


# ------------------------------------------------------- a lower learning rate, and other weights


def test_a_lower_learning_rate_is_accepted_on_resume(shared_data, tmp_path, monkeypatch):
    out, original = tmp_path / "out", engine.tasks.SEG
    calls = []

    def loss(output, target):
        calls.append(torch.is_grad_enabled())
        return original.loss(output, target) * (torch.nan if sum(calls) == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(engine.tasks, "SEG", replace(original, loss=loss))
        patch.setattr(engine.run, "CHECKPOINT_SECONDS", 0)
        printed = run("MTL_main", shared_data, out, code=2)
    assert "go on with --resume and a lower --learning-rate" in printed
    run("MTL_main", shared_data, out, "--resume", "--learning-rate", "1e-3")
    record = history(out)
    assert record["learning_rate_changes"] == [[2, 1e-2, 1e-3]]
    assert record["config"]["LEARNING_RATE"] == 1e-3


@pytest.mark.parametrize("ending", ["model_lite.pt", "model.pt", "last.pt"])
def test_weights_of_any_file_are_a_start(finished, shared_data, tmp_path, ending):
    path = finished["MTL_main"] / f"main_{ending}"
    flags = ["--weights", str(path), "--epochs", "1", "--learning-rate", "1e-9"]
    printed = run("MTL_main", shared_data, tmp_path, *flags)
    found = re.search(r"--weights: took (\d+) of (\d+) tensors from (.*)\n", printed)
    assert found[1] == found[2] and found[3] == str(path)
    record = history(tmp_path)
    assert record["weights_from"] == str(path)
    before = load(finished["MTL_main"] / "main_model_lite.pt")
    after = load(tmp_path / "main_model_lite.pt")
    trained = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in trained)


def test_weights_of_another_script_are_taken_where_they_fit(finished, shared_data, tmp_path):
    path = finished["MTL_baseline"] / "baseline_model_lite.pt"
    printed = run("MTL_main", shared_data, tmp_path, "--weights", str(path), "--epochs", "1")
    count, of = map(int, re.search(r"took (\d+) of (\d+) tensors", printed).groups())
    assert count == len(load(path)) < of


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--weights: expected a file of weights, found no such file"),
        ({"x": torch.zeros(2)}, "--weights: expected weights that fit this network, found none in"),
        ([1], "expected weights, found something else"),
    ],
)
def test_weights_that_cannot_be_taken_are_refused(shared_data, tmp_path, content, message):
    path = tmp_path / "x.pt"
    if content is not None:
        torch.save(content, path)
    printed = run("MTL_main", shared_data, tmp_path / "out", "--weights", str(path), code=2)
    assert message in printed and printed.count("\n") == 1
    assert not (tmp_path / "out" / "main_last.pt").exists()
