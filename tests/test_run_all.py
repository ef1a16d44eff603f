"""Series of runs, with stand-ins for the scripts that take no time; one with real scripts."""

import os
import shutil
import signal
import sys
import threading

import h5py
import pytest
import torch
from standins import calls, history_of, wait_for, with_config, write_scripts

from engine.weights import identity
from tools import run_all


@pytest.fixture(scope="session")
def history(shared_data):
    return history_of(shared_data)


@pytest.fixture
def scripts(history, tmp_path, monkeypatch):
    """A folder with stand-ins for four scripts, in place of the repository, and their histories."""
    folder = tmp_path / "scripts"
    write_scripts(folder, history)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_all, "ROOT", folder)
    monkeypatch.setattr("engine.script.ROOT", folder)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return folder


@pytest.fixture
def series(scripts, shared_data, tmp_path):
    """A function that runs the tool and returns its exit code."""

    def call(*arguments, flags=(), data=shared_data):
        out, place = ["--out", str(tmp_path / "out")], ["--h5-save-path", str(data)]
        return run_all.main([*map(str, arguments), *out, "--", *place, *flags])

    return call


def test_every_script_with_every_seed_once(scripts, series, tmp_path, capfd):
    chosen = ["--scripts", "baseline", "MTL_main.py", "--seeds", "0", "2"]
    assert series(*chosen) == 0
    names = ["baseline_seed0", "main_seed0", "baseline_seed2", "main_seed2"]
    assert calls(scripts) == [f"{name} any" for name in names]
    assert (tmp_path / "out/main_seed2/main_history.pt").exists()
    printed = capfd.readouterr().err
    assert "0 of 4 runs are finished; starting baseline_seed0\n" in printed
    assert "3 of 4 runs are finished, about 2 min left; starting main_seed2\n" in printed
    assert series(*chosen) == 0
    assert len(calls(scripts)) == 4
    assert capfd.readouterr().err == "run_all.py: 4 of 4 runs are finished\n"


def test_any_script_is_run_by_its_path(scripts, series, tmp_path, monkeypatch):
    """However it is called, and wherever the command is given."""
    place = tmp_path / "elsewhere" / "my net.v2.py"
    place.parent.mkdir()
    shutil.copy(scripts / "MTL_main.py", place)
    monkeypatch.chdir(place.parent)
    names = ["examples.alone", "examples/alone.py", place.name, place]
    assert series("--scripts", *names, "--seeds", "1") == 0
    assert calls(scripts) == ["alone_seed1 any", "my net.v2_seed1 any"]


def test_folds_are_in_the_flags_and_in_the_names(scripts, series, shared_data, tmp_path, capfd):
    data = tmp_path / "copy"
    for fold in (0, 1):
        os.symlink(shared_data, f"{shared_data}fold{fold}")
    try:
        chosen = ["--scripts", "main", "--seeds", "0", "1", "--folds", "0", "1"]
        assert series(*chosen, data=f"{shared_data}fold{{fold}}") == 0
    finally:
        for fold in (0, 1):
            os.unlink(f"{shared_data}fold{fold}")
    names = [f"main_fold{fold}_seed{seed}" for seed in (0, 1) for fold in (0, 1)]
    assert [call.split()[0] for call in calls(scripts)] == names
    capfd.readouterr()
    for arguments, place in (([*chosen], data), (chosen[:-3], f"{data}{{fold}}")):
        assert series(*arguments, data=place) == 2
        assert "--folds: expected together with {fold} after --" in one_line(capfd)


def test_two_at_a_time_on_one_thread_each(scripts, series):
    (scripts / "wait").touch()
    seen = []

    def see():  # the first two wait for each other
        try:
            wait_for(scripts, "main_seed0", "main_seed1")
            seen.extend(calls(scripts))
        finally:
            (scripts / "wait").unlink()

    thread = threading.Thread(target=see)
    thread.start()
    assert series("--scripts", "main", "--seeds", "0", "1", "2", "--jobs", "2") == 0
    thread.join()
    assert sorted(seen) == ["main_seed0 quiet 1", "main_seed1 quiet 1"]
    assert calls(scripts)[2:] == ["main_seed2 quiet 1"]


def test_a_failure_does_not_keep_others_from_running(scripts, series, capfd):
    assert series("--seeds", "0", "1") == 1
    names = [f"{name}_seed{seed}" for seed in "01" for name in ("baseline", "main", "OEQ")]
    assert [call.split()[0] for call in calls(scripts)] == names
    end = capfd.readouterr().err.splitlines()[-1]
    finished = "4 of 6 runs are finished, about 4 min left"
    assert end == f"run_all.py: {finished}; failed (exit code): OEQ_seed0 (7), OEQ_seed1 (7)"


def test_a_script_that_leaves_no_history_has_failed(scripts, series, capfd):
    """Such as one that does not call engine.main."""
    text = (scripts / "MTL_main.py").read_text(encoding="utf-8")
    (scripts / "MTL_idle.py").write_text(text.replace("shutil.copy(", "print("), encoding="utf-8")
    assert series("--scripts", "idle", "--seeds", "0") == 1
    assert "idle_seed0 left no history\n" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_all_and_the_next_call_goes_on(scripts, series, name):
    number = getattr(signal, name)
    (scripts / "wait").touch()
    handler = signal.getsignal(number)

    def send():
        wait_for(scripts, "main_seed0", "main_seed1")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    chosen = ["--scripts", "main", "--seeds", "0", "1", "2", "--jobs", "2"]
    assert series(*chosen) == 128 + number
    thread.join()
    assert sorted(calls(scripts)) == ["main_seed0 quiet 1", "main_seed1 quiet 1"]
    assert signal.getsignal(number) is handler
    (scripts / "wait").unlink()
    assert series(*chosen) == 0
    again = ["main_seed0 again quiet 1", "main_seed1 again quiet 1", "main_seed2 quiet 1"]
    assert sorted(calls(scripts)[2:]) == again


def test_the_minutes_end_it(scripts, series, capfd):
    (scripts / "wait").touch()
    assert series("--scripts", "main", "--seeds", "0", "1", "--minutes", "0.02") == 3
    started = calls(scripts)
    assert started and all(call.startswith("main_seed0") for call in started)
    assert capfd.readouterr().err.endswith("run_all.py: 0 of 2 runs are finished\n")
    (scripts / "wait").unlink()
    assert series("--scripts", "main", "--seeds", "0", "1", "--minutes", "9") == 0


def test_a_closed_terminal_ends_no_series(scripts, series, monkeypatch):
    with open(os.devnull, "w") as closed:
        pass
    monkeypatch.setattr(sys, "stderr", closed)
    assert series("--scripts", "main", "--seeds", "0") == 0


def one_line(capfd):
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


def test_runs_of_other_settings_are_refused(scripts, series, history, tmp_path, capfd):
    chosen = ["--scripts", "main", "--seeds", "0"]
    assert series(*chosen) == 0
    capfd.readouterr()
    assert series(*chosen, flags=["--epochs", "7"]) == 2
    assert "main_history.pt: a run with EPOCHS = 250, not 7; choose" in one_line(capfd)
    assert series(*chosen, flags=["--diagnose", "5"]) == 2
    assert "main_history.pt: a run with diagnose = 0, not 5; choose" in one_line(capfd)
    path = tmp_path / "out/main_seed0/main_history.pt"
    torch.save({"network": 1}, path)
    assert series(*chosen) == 2
    assert f"{path}: expected a history, found another file" in one_line(capfd)
    path.write_bytes(b"x")
    assert series(*chosen) == 2
    assert f"{path}: expected a checkpoint, found a damaged file" in one_line(capfd)
    assert len(calls(scripts)) == 1


def test_the_data_count_and_not_their_place(scripts, series, data_folder, tmp_path, capfd):
    chosen = ["--scripts", "main", "--seeds", "0"]
    assert series(*chosen, data=data_folder) == 0
    moved = data_folder.rename(tmp_path / "moved")
    assert series(*chosen, data=moved) == 0
    capfd.readouterr()
    with h5py.File(moved / "val" / "masks.h5", "r+") as file:
        file["masks"][0] = 1
    assert series(*chosen, data=moved) == 2
    message = one_line(capfd)
    assert "main_history.pt: a run with data in val/masks = 5 samples of checksum " in message
    assert message.count("data in") == 1
    (moved / "val" / "bboxes.h5").unlink()
    assert series(*chosen, data=moved) == 2
    assert "data in val/bboxes = 5 samples of checksum " in (message := one_line(capfd))
    assert ", not None; data in val/masks = " in message
    assert len(calls(scripts)) == 1


def test_a_run_of_an_earlier_version_is_refused(scripts, series, history, tmp_path, capfd):
    path = tmp_path / "out/main_seed0/main_history.pt"
    path.parent.mkdir(parents=True)
    torch.save(history | {"data_fingerprint": {"test": "7 samples of checksum 0123abcd"}}, path)
    assert series("--scripts", "main", "--seeds", "0") == 2
    expected = "main_history.pt: expected a run of this version, found one of an earlier version"
    assert expected in one_line(capfd) and not calls(scripts)


def test_weights_are_honoured_or_refused(scripts, series, history, tmp_path, capfd):
    chosen, files = ["--scripts", "main", "--seeds", "0"], [tmp_path / name for name in "abc"]
    for number, path in enumerate(files):
        path.write_bytes(bytes([min(number, 1)]))  # the last two hold the same
    flags, known = [["--weights", str(path)] for path in files], [*map(identity, files)]
    texts = ["{path} of checksum {checksum}".format(**each) for each in known]
    path = tmp_path / "out/main_seed0/main_history.pt"

    def refused(before, now, flags):
        capfd.readouterr()
        assert series(*chosen, flags=flags) == 2
        assert f"{path}: a run with --weights = {before}, not {now}; choose" in one_line(capfd)

    torch.save(history | {"weights_from": known[1]}, scripts / "main_seed0.pt")
    assert series(*chosen, flags=flags[1]) == 0
    assert calls(scripts) == [f"main_seed0 {files[1]} any"]
    assert series(*chosen, flags=flags[1]) == series(*chosen, flags=flags[2]) == 0
    refused(texts[1], texts[0], flags[0])
    refused(texts[1], "none", [])
    files[1].write_bytes(b"trained again")
    refused(texts[1], "{path} of checksum {checksum}".format(**identity(files[1])), flags[1])
    files[1].unlink()
    assert series(*chosen, flags=flags[1]) == 2
    assert "MTL_main.py: --weights: expected a file of weights, found no" in one_line(capfd)
    torch.save(history, path)
    refused("none", texts[0], flags[0])
    assert len(calls(scripts)) == 1


def test_a_script_may_name_its_weights(scripts, series, history, tmp_path, capfd):
    """In a constant; what the file holds counts, and not its place."""
    files = [tmp_path / name for name in "ab"]
    for path in files:
        path.write_bytes(b"the same")
    text = (scripts / "MTL_main.py").read_text(encoding="utf-8")
    (scripts / "MTL_tuned.py").write_text(f"WEIGHTS = {str(files[0])!r}\n{text}", encoding="utf-8")
    path = tmp_path / "out/tuned_seed0/tuned_history.pt"
    path.parent.mkdir(parents=True)
    there = with_config(history, WEIGHTS=str(files[1])) | {"weights_from": identity(files[1])}
    torch.save(there, path)
    chosen = ["--scripts", "tuned", "--seeds", "0"]
    assert series(*chosen) == 0
    files[0].write_bytes(b"another")
    capfd.readouterr()
    assert series(*chosen) == 2
    assert f"a run with --weights = {files[1]} of checksum " in one_line(capfd)
    assert calls(scripts) == []


def test_mistakes_end_in_one_line_before_anything_runs(scripts, series, tmp_path, capfd):
    main = ["--scripts", "main", "--seeds", "0"]
    assert series("--scripts", "mian", "--seeds", "0") == 2
    expected = "--scripts: expected main, examples.NAME or the path of a script, found mian"
    assert expected in one_line(capfd)
    (tmp_path / "main.py").touch()
    assert series("--scripts", "main", tmp_path / "main.py", "--seeds", "0") == 2
    assert "--scripts: expected scripts of different names, since" in one_line(capfd)
    for flag in ("--seed=3", "--resume", "--file-save-path", "--overwrite"):
        assert series(*main, flags=[flag]) == 2
        assert f"{flag.split('=')[0]}: this tool sets it for every run" in one_line(capfd)
    assert series(*main, data="nowhere") == 2
    assert "MTL_main.py: no data: expected train/" in one_line(capfd)
    for arguments, flags in (
        ([*main, "--minutes", "0"], []),
        ([*main, "--jobs", "0"], []),
        (["--seeds", "x"], []),
        (main, ["--epoch", "3"]),
    ):
        assert series(*arguments, flags=flags) == 2
        one_line(capfd)
    (scripts / "MTL_short.py").write_text('SEED, H5_SAVE_PATH, FILE_SAVE_PATH = 0, "a", "b"\n')
    assert series("--scripts", "short", "--seeds", "0") == 2
    assert "MTL_short.py: expected a constant EPOCHS, found none" in one_line(capfd)
    assert calls(scripts) == []


def test_a_real_script(shared_data, tmp_path, capfd):
    tiny = ["--epochs", "1", "--batch-size", "4", "--widths", "8", "8", "8", "8", "--units", "1"]
    out = tmp_path / "out"
    flags = ["--h5-save-path", str(shared_data), "--device", "cpu", *tiny]
    series = ["--scripts", "main", "--seeds", "5", "--out", str(out), "--", *flags]
    assert run_all.main(series) == 0
    assert capfd.readouterr().err.endswith("run_all.py: 1 of 1 runs are finished\n")
    path = out / "main_seed5/main_history.pt"
    assert torch.load(path, weights_only=True)["config"]["SEED"] == 5
    before = path.stat().st_mtime_ns
    assert run_all.main(series) == 0  # the settings of its history are those that are asked for
    assert path.stat().st_mtime_ns == before
