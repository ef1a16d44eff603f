"""Stand-ins for scripts that take no time, and what a run of them records; for test_run_all."""

import time
from pathlib import Path

import torch

from engine.script import parse
from engine.setup import open_data

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = """

if __name__ == "__main__":  # copies a history instead of making one
    import os, shutil, signal, sys, time
    from pathlib import Path

    def flag(name):
        return sys.argv[len(sys.argv) - 1 - sys.argv[::-1].index(name) + 1]

    out, here = Path(flag("--file-save-path")), Path("SCRIPTS")
    name, seed = Path(__file__).stem.removeprefix("MTL_"), flag("--seed")

    def stop(number, frame):
        (out / f"{name}_last.pt").touch()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    out.mkdir(parents=True, exist_ok=True)
    with open(here / "calls", "a") as calls:
        again = " again" if (out / f"{name}_last.pt").exists() else ""
        quiet = " quiet" if "--quiet" in sys.argv else ""
        weights = f" {flag('--weights')}" if "--weights" in sys.argv else ""
        threads = os.environ.get("OMP_NUM_THREADS", "any")
        assert "--resume" in sys.argv and Path(flag("--h5-save-path")).is_dir()
        import beside  # as it would import engine

        calls.write(f"{out.name}{again}{quiet}{weights} {threads}\\n")
    if name == "OEQ":
        sys.exit(7)
    (here / f"ready_{out.name}").touch()
    for _ in range(600):  # 30 s, if no one is there any more
        if (here / "wait").exists():
            time.sleep(0.05)
    shutil.copy(here / f"{out.name}.pt", out / f"{name}_history.pt")
    sys.exit()

"""


def history_of(data_folder):
    """What a finished run of MTL_main records, as far as the tool looks at it."""
    script, settings, _ = parse(ROOT / "MTL_main.py", ["--h5-save-path", str(data_folder)])
    data = open_data(data_folder, script.module.TASKS)
    return {
        "config": vars(settings) | {"demo": False},
        "data_fingerprint": {split: each.fingerprint() for split, each in data.items()},
        "weights_from": None,
        "seconds": [90.0, 30.0],
    }


def with_config(history, **changes):
    return history | {"config": history["config"] | changes}


def write_scripts(folder, history):
    """Write stand-ins for four scripts, and the histories that they copy."""
    (folder / "examples").mkdir(parents=True)
    source = (ROOT / "MTL_main.py").read_text(encoding="utf-8")
    head, imports, rest = source.partition("from torch import nn\n")
    text = head + STAND_IN.replace("SCRIPTS", str(folder)) + imports + rest
    for name in ("MTL_main", "MTL_baseline", "MTL_OEQ", "examples/alone"):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / "beside.py").touch()
    for seed in range(3):
        for name in ("main", "baseline", "alone", "my net.v2", "main_fold0", "main_fold1"):
            torch.save(with_config(history, SEED=seed), folder / f"{name}_seed{seed}.pt")


def calls(scripts):
    """What the stand-ins have written about their calls."""
    path = scripts / "calls"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(scripts, *names):
    """Until the runs of these names are waiting; a test must not hang for ever."""
    end = time.monotonic() + 30
    while not all((scripts / f"ready_{name}").exists() for name in names):
        assert time.monotonic() < end
        time.sleep(0.02)
