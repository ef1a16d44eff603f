"""Series of runs, with stand-ins for the scripts that take no time; one with a real script."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import MTL_main
from engine.settings import constants
from tools import run_all

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = '''"""A script that copies a history instead of making one."""

{constants}

if __name__ == "__main__":
    import shutil, signal, sys, time
    from pathlib import Path

    def flag(name):
        return sys.argv[len(sys.argv) - 1 - sys.argv[::-1].index(name) + 1]

    out, here = Path(flag("--file-save-path")), Path(__file__).parent
    name, seed = Path(__file__).stem.removeprefix("MTL_"), flag("--seed")

    def stop(number, frame):
        (out / f"{{name}}_last.pt").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    out.mkdir(parents=True, exist_ok=True)
    with open(here / "calls", "a") as calls:
        resumed = " resumed" if "--resume" in sys.argv else ""
        calls.write(f"{{name}} {{seed}}{{resumed}}\\n")
    if name == "OEQ":
        sys.exit(7)
    if (here / "wait").exists():
        (here / "ready").touch()
        time.sleep(60)
    shutil.copy(here / f"seed{{seed}}.pt", out / f"{{name}}_history.pt")
'''


@pytest.fixture
def scripts(shared_data, tmp_path, monkeypatch):
    """A folder with stand-ins for three scripts, in place of the repository."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    settings = constants(MTL_main)
    text = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    for name in ("main", "baseline", "OEQ"):
        (folder / f"MTL_{name}.py").write_text(STAND_IN.format(constants=text))
    for seed in range(3):
        config = settings | {"SEED": seed, "demo": False, "H5_SAVE_PATH": str(shared_data)}
        torch.save({"config": config, "seconds": [90.0, 30.0]}, folder / f"seed{seed}.pt")
    monkeypatch.setattr(run_all, "ROOT", folder)
    return folder


@pytest.fixture
def series(scripts, shared_data, tmp_path):
    """A function that runs the tool and returns its exit code."""

    def call(*arguments, flags=()):
        out, data = ["--out", str(tmp_path / "out")], ["--h5-save-path", str(shared_data)]
        return run_all.main([*map(str, arguments), *out, "--", *data, *flags])

    return call


def calls(scripts):
    path = scripts / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_every_script_with_every_seed_once(scripts, series, tmp_path, capfd):
    chosen = ["--scripts", "baseline", "MTL_main.py", "--seeds", "0", "2"]
    assert series(*chosen) == 0
    assert calls(scripts) == ["baseline 0", "main 0", "baseline 2", "main 2"]
    assert (tmp_path / "out/main_seed2/main_history.pt").exists()
    printed = capfd.readouterr().err
    assert "0 of 4 done; baseline seed 0 starts" in printed
    assert "3 of 4 done, about 2 min left; main seed 2 starts" in printed
    assert series(*chosen) == 0
    assert len(calls(scripts)) == 4
    assert "all 4 runs are finished" in capfd.readouterr().err


def test_a_failure_does_not_keep_others_from_running(scripts, series, capfd):
    assert series("--seeds", "0", "1") == 1
    assert calls(scripts) == [
        f"{name} {seed}" for seed in "01" for name in ("baseline", "main", "OEQ")
    ]
    printed = capfd.readouterr().err
    assert (
        "4 of 6 runs are finished, about 4 min left; failed (exit code): OEQ seed 0 (7)" in printed
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_the_next_call_resumes(scripts, series, number):
    (scripts / "wait").touch()
    handler = signal.getsignal(number)

    def send():
        while not (scripts / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert series("--scripts", "main", "--seeds", "0", "1") == 128 + number
    thread.join()
    assert calls(scripts) == ["main 0"]
    assert signal.getsignal(number) is handler
    (scripts / "wait").unlink()
    assert series("--scripts", "main", "--seeds", "0", "1") == 0
    assert calls(scripts) == ["main 0", "main 0 resumed", "main 1"]


def test_the_minutes_end_it(scripts, series, capfd):
    (scripts / "wait").touch()
    assert series("--scripts", "main", "--seeds", "0", "1", "--minutes", "0.02") == 3
    assert not [call for call in calls(scripts) if call != "main 0"]
    assert "0 of 2 runs are finished; the same command again goes on" in capfd.readouterr().err
    (scripts / "wait").unlink()
    assert series("--scripts", "main", "--seeds", "0", "1", "--minutes", "9") == 0


def one_line(capfd):
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


def test_runs_of_other_settings_or_data_are_refused(scripts, series, shared_data, tmp_path, capfd):
    chosen = ["--scripts", "main", "--seeds", "0"]
    assert series(*chosen) == 0
    capfd.readouterr()
    assert series(*chosen, flags=["--epochs", "7"]) == 2
    message = one_line(capfd)
    assert f"main_history.pt: a run with EPOCHS = {MTL_main.EPOCHS}, not 7; choose" in message
    other = shutil.copytree(shared_data, tmp_path / "other")
    assert series(*chosen, flags=["--h5-save-path", str(other)]) == 2
    message = one_line(capfd)
    assert f"main_history.pt: a run with H5_SAVE_PATH = {shared_data}, not {other}" in message
    assert len(calls(scripts)) == 1


def test_mistakes_end_in_one_line_before_anything_runs(scripts, series, tmp_path, capfd):
    main = ["--scripts", "main", "--seeds", "0"]
    assert series("--scripts", "mian", "--seeds", "0") == 2
    assert "--scripts: expected some of OEQ, baseline, main, found mian" in one_line(capfd)
    for flag in ("--seed=3", "--resume", "--file-save-path"):
        assert series(*main, flags=[flag]) == 2
        assert f"{flag.split('=')[0]}: this tool sets it for every run" in one_line(capfd)
    assert series(*main, flags=["--h5-save-path", "nowhere"]) == 2
    assert "no data: expected train/" in one_line(capfd)
    for arguments, flags in (
        ([*main, "--minutes", "0"], []),
        (["--seeds", "x"], []),
        (main, ["--epoch", "3"]),
    ):
        with pytest.raises(SystemExit) as stopped:
            series(*arguments, flags=flags)
        assert stopped.value.code == 2
        one_line(capfd)
    assert calls(scripts) == []


def test_a_real_script(shared_data, tmp_path):
    tiny = ["--epochs", "1", "--batch-size", "4", "--widths", "8", "8", "8", "8", "--size", "1"]
    tool = [sys.executable, str(ROOT / "tools/run_all.py"), "--scripts", "main", "--seeds", "5"]
    flags = ["--out", "out", "--", "--h5-save-path", str(shared_data), "--device", "cpu", *tiny]
    done = subprocess.run(
        [*tool, *flags], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("run_all.py: all 1 runs are finished\n")
    path = tmp_path / "out/main_seed5/main_history.pt"
    assert torch.load(path, weights_only=True)["config"]["SEED"] == 5
