"""Run the scripts over several seeds, one after the other, each in a folder of its own.

    python tools/run_all.py --seeds 0 1 2 --out runs/128 -- --h5-save-path data/pets128 --epochs 120

What stands behind -- goes to every script. A run leaves its files in OUT/NAME_seedK. The same
command again skips the runs that are finished and resumes the one that was stopped, so a long
series can be done in parts: --minutes 40 asks the running script to save its state after 40
minutes and ends. Ctrl-C and SIGTERM do the same at once. A run that fails is reported and does not
keep the others from running.

Exit code: 0 all runs are finished, 1 some failed, 2 a mistake in the flags or a folder that holds
other runs, 3 the minutes are over, 128 + signal number after a signal.
"""

import argparse
import importlib.util
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.cli import Parser, UserError

from engine import artefacts, cli
from engine.run import data_folder
from tools.common import EXPERIMENTS, ROOT, make_folder, run_tool

OURS = ("--seed", "--file-save-path", "--resume")  # set for every run by this tool
TIME_IS_UP = 3


@dataclass(frozen=True, eq=False)
class Job:
    """One script with one seed.

    Attributes:
        name: the script's, without MTL_.
        folder: where its files go.
        flags: for the script.
        config: the settings it will run with, as its history tells them.
    """

    name: str
    seed: int
    folder: Path
    flags: list
    config: dict

    def command(self):
        """The command line; it resumes where there is a checkpoint."""
        resume = ["--resume"] if (self.folder / f"{self.name}_last.pt").exists() else []
        return [sys.executable, str(ROOT / f"MTL_{self.name}.py"), *self.flags, *resume]

    def seconds(self):
        """How long the finished run took; None if it is not finished.

        Raises:
            UserError: the folder holds a finished run with other settings, or a damaged history.
        """
        path = self.folder / f"{self.name}_history.pt"
        if not path.exists():
            return None
        history = artefacts.load(path)
        for name, value in self.config.items():
            found = history["config"].get(name)
            if name == "H5_SAVE_PATH":
                found, value = Path(found).resolve(), Path(value).resolve()
            if name != "FILE_SAVE_PATH" and found != value:
                raise UserError(
                    f"{path}: a run with {name} = {found}, not {value}; choose another --out or "
                    "remove that folder"
                )
        return sum(history["seconds"])


def make_job(name, seed, out, flags):
    """A Job whose flags the script accepts.

    Raises:
        SystemExit: code 2 with one line on stderr, for a flag the script does not have.
        UserError: a value that makes no sense, or no data.
    """
    folder = out / f"{name}_seed{seed}"
    flags = [*flags, "--seed", str(seed), "--file-save-path", str(folder)]
    place = importlib.util.spec_from_file_location(f"MTL_{name}", ROOT / f"MTL_{name}.py")
    module = importlib.util.module_from_spec(place)  # a copy of its own: parse() changes it
    place.loader.exec_module(module)
    options = cli.parse(module, flags)
    if not options.demo:
        with data_folder(module, demo=False):
            pass  # is there
    return Job(name, seed, folder, flags, cli.constants(module) | {"demo": options.demo})


class Series:
    """Jobs one after the other, until they are done, the time is up or a signal comes."""

    def __init__(self, jobs, minutes):
        self.jobs = jobs
        self.deadline = time.monotonic() + 60 * minutes if minutes else None
        self.seconds = {job: job.seconds() for job in jobs}  # None: not finished
        self.failed, self.signal, self.process = {}, 0, None

    def execute(self):
        """Run what is not finished; returns the exit code."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old = {number: signal.signal(number, self._stop) for number in numbers}
        try:
            for job in self.jobs:
                if self.seconds[job] is None and not self._must_end():
                    self._run(job)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
        return self._report()

    def _stop(self, number, frame):
        self.signal = self.signal or number
        if self.process:
            self.process.terminate()

    def _must_end(self):
        return self.signal or self._left() == 0

    def _left(self):
        """Seconds until the deadline, None without one."""
        return self.deadline and max(0, self.deadline - time.monotonic())

    def _run(self, job):
        done = sum(seconds is not None for seconds in self.seconds.values())
        command = job.command()
        verb = "resumes" if "--resume" in command else "starts"
        say(f"{done} of {len(self.jobs)} done{self._estimate()}; {job.name} seed {job.seed} {verb}")
        # a process group of its own, so that Ctrl-C reaches the script only through _stop
        self.process = subprocess.Popen(command, process_group=0)
        if self.signal:  # it came before there was a process
            self.process.terminate()
        try:
            code = self.process.wait(self._left())
        except subprocess.TimeoutExpired:
            self.process.terminate()
            code = self.process.wait()
        self.process = None
        self.seconds[job] = job.seconds() if code == 0 else None
        stopped = self._must_end() and code in (-signal.SIGTERM, 128 + signal.SIGTERM)
        if code and not stopped:
            self.failed[job] = code
            say(f"{job.name} seed {job.seed} failed with exit code {code}")

    def _estimate(self):
        """', about M min left' from the runs of the same script, or else of all."""
        known = {}
        for job, seconds in self.seconds.items():
            if seconds is not None:
                known.setdefault(job.name, []).append(seconds)
        if not known:
            return ""
        overall = statistics.mean(s for each in known.values() for s in each)
        open_jobs = [job for job, seconds in self.seconds.items() if seconds is None]
        left = sum(statistics.mean(known.get(job.name, [overall])) for job in open_jobs)
        return f", about {left / 60:.0f} min left"

    def _report(self):
        done = sum(seconds is not None for seconds in self.seconds.values())
        total = len(self.jobs)
        if done == total:
            say(f"all {total} runs are finished")
            return 0
        names = ", ".join(f"{job.name} seed {job.seed} ({c})" for job, c in self.failed.items())
        failed = f"; failed (exit code): {names}" if names else ""
        finished = f"{done} of {total} runs are finished{self._estimate()}{failed}"
        say(f"{finished}; the same command again goes on")
        if self.signal:
            return 128 + self.signal
        return 1 if self.failed else TIME_IS_UP


def say(text):
    """One line on stderr."""
    print(f"run_all.py: {text}", file=sys.stderr, flush=True)


def choose_scripts(wanted):
    """Names of scripts without MTL_, checked; all experiments there are without `wanted`.

    Raises:
        UserError: there is no such script.
    """
    there = [path.stem.removeprefix("MTL_") for path in sorted(ROOT.glob("MTL_*.py"))]
    if not wanted:
        return [name for name in EXPERIMENTS if name in there]
    names = [Path(script).name.removeprefix("MTL_").removesuffix(".py") for script in wanted]
    for name in names:
        if name not in there or name == "Utils":
            there = ", ".join(other for other in there if other != "Utils")
            raise UserError(f"--scripts: expected some of {there}, found {name}")
    return list(dict.fromkeys(names))


def run_all(argv):
    """Check everything, then run; returns the exit code, raises UserError."""
    options = parse(argv)
    for flag in options.flags:
        if flag.split("=")[0] in OURS:
            raise UserError(f"{flag.split('=')[0]}: this tool sets it for every run, see --help")
    out = make_folder(options.out, "--out")
    names, seeds = choose_scripts(options.scripts), dict.fromkeys(options.seeds)
    jobs = [make_job(name, seed, out, options.flags) for seed in seeds for name in names]
    return Series(jobs, options.minutes).execute()


def parse(argv):
    """The options, with what stands behind -- as `flags`; a wrong one ends with code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("run_all.py", None, __doc__, formatter_class=formatter, allow_abbrev=False)
    parser.usage = "run_all.py --seeds K [K ...] --out FOLDER [options] [-- FLAGS OF THE SCRIPTS]"
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", required=True, metavar="K", help="0 1 2, for instance")
    add("--out", required=True, metavar="FOLDER", help="takes a folder for each run")
    names = ", ".join(EXPERIMENTS)
    add("--scripts", nargs="+", metavar="NAME", help=f"without it those there are of {names}")
    add("--minutes", type=float, metavar="N", help="stop after N minutes, to go on later")
    options = parser.parse_args(argv[:cut])
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes: expected a number above 0, found {options.minutes}")
    options.flags = argv[cut + 1 :]
    return options


def main(argv=None):
    """Run the tool; returns the exit code that the module docstring tells."""
    return run_tool("run_all.py", run_all, argv)


if __name__ == "__main__":
    sys.exit(main())
