"""Run scripts x folds x seeds, each in a folder of its own, one after the other or in parallel.

    python tools/run_all.py --seeds 0 1 2 --out runs/128 -- --h5-save-path data/pets128 --epochs 120
    python tools/run_all.py --seeds 0 --scripts main examples.bbox_only --folds 0 1 2 --jobs 2 \\
        --out runs/folds -- --h5-save-path data/pets128_fold{fold}

What stands behind -- goes to every script, with the number of the fold in place of {fold}. A run
leaves its files in OUT/NAME_seedK, or OUT/NAME_foldF_seedK. The same command again skips the runs
that are finished and resumes those that were stopped, so a long series can be done in parts:
--minutes 40 asks the running scripts to save their state after 40 minutes and ends. Ctrl-C and
SIGTERM do the same at once. A run that fails is reported and does not keep the others from running.
With --jobs 2 two runs go at a time, quietly and on one thread each.

Exit code: 0 all runs are finished, 1 some failed, 2 a mistake in the flags or a folder that holds
other runs, 3 the minutes are over, 128 + signal number after a signal.
"""

import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import artefacts, script, settings
from engine.batches import STOPPING
from engine.run import data_folder
from engine.settings import Parser, UserError
from tools.common import EXPERIMENTS, ROOT, complain, make_folder, run_tool

OURS = ("--seed", "--file-save-path", "--resume", "--overwrite")  # set for every run by this tool
TIME_IS_UP = 3
OWN_GROUP = {"process_group": 0} if os.name == "posix" else {}  # no Ctrl-C but through this tool


class Job:
    """One run: the folder of its files, its command line, and how long it took.

    Raises:
        SystemExit: code 2 with one line on stderr, for a flag the script does not have.
        UserError: no data, a value that makes no sense, or a folder with a run of other settings.
    """

    def __init__(self, path, fold, seed, out, flags):
        self.script = script.load(path)
        name, module = self.script.name, self.script.module_name
        place = "" if fold is None else f"_fold{fold}"
        self.folder = out / f"{name}{place}_seed{seed}"
        flags = [flag.replace("{fold}", str(fold)) for flag in flags]
        flags += ["--seed", str(seed), "--file-save-path", str(self.folder)]
        start = ["-m", module] if "." in module else [str(path)]
        self.command = [sys.executable, *start, *flags, "--resume"]
        try:
            values, options = settings.parse(self.script, flags)
            script.check_script(self.script, values._fields)
            if not options.demo:
                with data_folder(values.H5_SAVE_PATH, demo=False):
                    pass  # is there
        except UserError as error:
            raise UserError(f"{self.script.title}: {error}") from error
        self.config = settings.as_dict(values) | {"demo": options.demo}
        self.seconds = self.finished()

    def finished(self):
        """Seconds that the finished run took, None if it is not finished; raises UserError."""
        path = self.folder / f"{self.script.name}_history.pt"
        if not path.exists():
            return None
        history = artefacts.load(path)
        for name, value in self.config.items():
            found = history["config"].get(name)
            if name == "H5_SAVE_PATH":
                found, value = (Path(place).expanduser().resolve() for place in (found, value))
            if name != "FILE_SAVE_PATH" and found != value:
                raise UserError(
                    f"{path}: a run with {name} = {found}, not {value}; choose another --out or "
                    "remove that folder"
                )
        return sum(history["seconds"])


def choose_scripts(wanted):
    """Paths of scripts called main, MTL_main.py or examples.NAME; all experiments without `wanted`.

    Raises:
        UserError: there is no such script.
    """
    found = {}
    for name in wanted or [name for name in EXPERIMENTS if (ROOT / f"MTL_{name}.py").is_file()]:
        place = name.removesuffix(".py").replace(".", "/")
        paths = [ROOT / f"MTL_{place}.py", ROOT / f"{place}.py"]
        if not any(path.is_file() for path in paths):
            raise UserError(f"--scripts: expected scripts as main or examples.NAME, found {name}")
        path = next(path for path in paths if path.is_file())
        found[path.stem.removeprefix("MTL_")] = path
    return list(found.values())


class Series:
    """Jobs, some at a time, until they are done, the time is up or a signal comes."""

    def __init__(self, jobs, at_once, minutes):
        self.jobs, self.at_once = jobs, at_once
        self.waiting = [job for job in jobs if job.seconds is None]
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.running, self.failed, self.signal, self.is_ending = {}, {}, 0, False

    def execute(self):
        """Run what is not finished; returns the exit code."""
        numbers = [n for n in STOPPING if signal.getsignal(n) is not signal.SIG_IGN]  # as by nohup
        old = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            while self.running or (self.waiting and not self.is_ending):
                self._turn()
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        codes = ", ".join(f"{job.folder.name} ({code})" for job, code in self.failed.items())
        self._say(f"failed (exit code): {codes}" if codes else "")
        if self.signal:
            return 128 + self.signal
        unfinished = any(job.seconds is None for job in self.jobs)
        return (1 if self.failed else TIME_IS_UP) if unfinished else 0

    def _receive(self, number, frame):
        self.signal = self.signal or number

    def _turn(self):
        """End, start and settle runs where it is time, and wait a little."""
        if not self.is_ending and (self.signal or time.monotonic() > self.deadline):
            self.is_ending = True
            for process in self.running.values() if OWN_GROUP or not self.signal else ():
                process.terminate()  # Windows sends a Ctrl-C to the scripts itself
        while self.waiting and len(self.running) < self.at_once and not self.is_ending:
            self._start(self.waiting.pop(0))
        time.sleep(0.05)
        for job in [job for job, process in self.running.items() if process.poll() is not None]:
            code = self.running.pop(job).returncode
            job.seconds = job.finished()
            if code and not self.is_ending:
                self.failed[job] = code
                self._say(f"{job.folder.name} failed with exit code {code}")

    def _start(self, job):
        self._say(f"starting {job.folder.name}")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # for -m examples.NAME
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        command = [*job.command, "--quiet"] if self.at_once > 1 else job.command
        if self.at_once > 1:
            environment["OMP_NUM_THREADS"] = "1"
        self.running[job] = subprocess.Popen(command, env=environment, **OWN_GROUP)

    def _say(self, text):
        """One line on stderr, if anyone still reads it: how far the series is, and `text`."""
        known = [job.seconds for job in self.jobs if job.seconds is not None]
        done, total = len(known), len(self.jobs)
        minutes = sum(known) / max(done, 1) * (total - done) / self.at_once / 60
        left = f", about {minutes:.0f} min left" if 0 < done < total else ""
        parts = [f"{done} of {total} runs are finished{left}", *filter(None, [text])]
        complain(f"run_all.py: {'; '.join(parts)}")


def run_all(argv):
    """Check everything, then run; returns the exit code, raises UserError."""
    options = parse(argv)
    for flag in options.flags:
        if flag.split("=")[0] in OURS:
            raise UserError(f"{flag.split('=')[0]}: this tool sets it for every run, see --help")
    if any("{fold}" in flag for flag in options.flags) != bool(options.folds):
        raise UserError("--folds: expected together with {fold} behind --, found one of the two")
    out, paths = make_folder(options.out, "--out"), choose_scripts(options.scripts)
    every = product(dict.fromkeys(options.seeds), dict.fromkeys(options.folds or [None]), paths)
    jobs = [Job(path, fold, seed, out, options.flags) for seed, fold, path in every]
    return Series(jobs, options.jobs, options.minutes).execute()


def parse(argv):
    """The options, with what stands behind -- as `flags`; a wrong one ends with code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    usage = "run_all.py --seeds K [K ...] --out FOLDER [options] [-- FLAGS OF THE SCRIPTS]"
    parser = Parser("run_all.py", __doc__, usage=usage)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", required=True, metavar="K", help="0 1 2, for instance")
    add("--out", required=True, metavar="FOLDER", help="takes a folder for each run")
    add("--scripts", nargs="+", metavar="NAME", help=f"(those of {', '.join(EXPERIMENTS)})")
    add("--folds", type=int, nargs="+", metavar="F", help="in the place of {fold} behind --")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    add("--minutes", type=float, metavar="N", help="stop after N minutes, to go on later")
    options = parser.parse_args(argv[:cut])
    for name, value in (("jobs", options.jobs), ("minutes", options.minutes)):
        if value is not None and not value > 0:
            parser.error(f"--{name}: expected a number above 0, found {value}")
    options.flags = argv[cut + 1 :]
    return options


def main(argv=None):
    """Run the tool; returns the exit code that the module docstring tells."""
    return run_tool("run_all.py", run_all, argv)


if __name__ == "__main__":
    sys.exit(main())
