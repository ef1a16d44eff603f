"""Run scripts x folds x seeds, each in a folder of its own, one after the other or in parallel.

    python tools/run_all.py --seeds 0 1 2 --out runs/128 -- --h5-save-path data/pets128 --epochs 120
    python tools/run_all.py --seeds 0 --scripts main examples.bbox_only --folds 0 1 2 --jobs 2 \\
        --out runs/folds -- --h5-save-path data/pets128_fold{fold}

Flags after -- go to every script, with {fold} replaced by the number of the fold. A run writes to
OUT/NAME_seedK or OUT/NAME_foldF_seedK. Repeating the command skips finished runs and resumes
stopped ones, so a long series can be run in parts: after --minutes 40 the tool asks the running
scripts to save their state, and ends. Ctrl-C and SIGTERM do the same at once, a second one without
waiting for the scripts. A run that fails is reported and does not stop the others. With --jobs 2
two runs go in parallel, each quietly and on one thread.

Exit code: 0 all runs are finished, 1 some failed, 2 a mistake in the flags or a folder that holds
other runs, 3 the minutes are over, 128 + signal number after a signal.
"""

import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engine import artefacts, script, settings
from engine.run import data_folder
from engine.script import ROOT
from parts.commandline import Parser
from parts.errors import UserError
from parts.signals import StopSignals
from tools.shared.common import EXPERIMENTS, command, complain, make_folder

OURS = ("--seed", "--file-save-path", "--resume", "--overwrite")  # set for every run by this tool
OWN_GROUP = {"process_group": 0} if os.name == "posix" else {}  # shields the scripts from Ctrl-C


class Job:
    """One run: its folder, its command, and the seconds it took if finished; raises UserError."""

    def __init__(self, path, fold, seed, out, flags):
        self.script = script.load(path)
        name, module = self.script.name, self.script.module_name
        self.folder = out / f"{name}{'' if fold is None else f'_fold{fold}'}_seed{seed}"
        flags = [flag.replace("{fold}", str(fold)) for flag in flags]
        flags += ["--seed", str(seed), "--file-save-path", str(self.folder)]
        start = ["-m", module] if "." in module else [str(path)]
        self.command = [sys.executable, *start, *flags, "--resume"]
        try:
            values, options = settings.parse(self.script, flags)
            script.check_script(self.script, values._fields)
            if not options.demo:
                with data_folder(values.H5_SAVE_PATH, demo=False):
                    pass  # it exists
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
                found, value = (Path(folder).expanduser().resolve() for folder in (found, value))
            if name != "FILE_SAVE_PATH" and found != value:
                raise UserError(
                    f"{path}: a run with {name} = {found}, not {value}; choose another --out or "
                    "remove that folder"
                )
        return sum(history["seconds"])


def choose_scripts(wanted):
    """Paths of scripts named main, MTL_main.py or examples.NAME; UserError if one is missing."""
    found = {}
    for name in wanted or [name for name in EXPERIMENTS if (ROOT / f"MTL_{name}.py").is_file()]:
        stem = name.removesuffix(".py").replace(".", "/")
        paths = [p for p in (ROOT / f"MTL_{stem}.py", ROOT / f"{stem}.py") if p.is_file()]
        if not paths:
            raise UserError(f"--scripts: expected scripts as main or examples.NAME, found {name}")
        found[paths[0].stem.removeprefix("MTL_")] = paths[0]
    return list(found.values())


class Series:
    """Jobs that run, a few at a time, until they are done, the time is up or a signal arrives."""

    def __init__(self, jobs, at_once, minutes):
        self.jobs, self.at_once = jobs, at_once
        self.waiting = [job for job in jobs if job.seconds is None]
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.running, self.failed, self.signals, self.is_ending = {}, {}, StopSignals(), False

    def execute(self):
        """Run the unfinished jobs; returns the exit code."""
        with self.signals:
            self.signals.graceful = True
            while self.running or (self.waiting and not self.is_ending):
                self._turn()
        codes = ", ".join(f"{job.folder.name} ({code})" for job, code in self.failed.items())
        self._say(f"failed (exit code): {codes}" if codes else "")
        if self.signals.received:
            return 128 + self.signals.received
        unfinished = any(job.seconds is None for job in self.jobs)
        return (1 if self.failed else 3) if unfinished else 0

    def _turn(self):
        """Stop, start and settle runs where it is time, and wait a little."""
        received = self.signals.received
        if not self.is_ending and (received or time.monotonic() > self.deadline):
            self.is_ending = True
            for process in self.running.values() if OWN_GROUP or not received else ():
                process.terminate()  # Windows sends Ctrl-C to the scripts itself
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
        environment |= {"OMP_NUM_THREADS": "1"} if self.at_once > 1 else {}
        line = [*job.command, "--quiet"] if self.at_once > 1 else job.command
        self.running[job] = subprocess.Popen(line, env=environment, **OWN_GROUP)

    def _say(self, text):
        """Print the progress of the series, and `text`, as one line on stderr."""
        known = [job.seconds for job in self.jobs if job.seconds is not None]
        done, total = len(known), len(self.jobs)
        minutes = sum(known) / max(done, 1) * (total - done) / self.at_once / 60
        left = f", about {minutes:.0f} min left" if 0 < done < total else ""
        line = f"run_all.py: {done} of {total} runs are finished{left}"
        complain(f"{line}; {text}" if text else line)


def parse(argv):
    """The options, with `flags`, those after --; raises UserError for values that do not fit."""
    argv = sys.argv[1:] if argv is None else list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    usage = "run_all.py --seeds K [K ...] --out FOLDER [options] [-- FLAGS OF THE SCRIPTS]"
    parser = Parser("run_all.py", __doc__, usage=usage)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", required=True, metavar="K", help="for example 0 1 2")
    add("--out", required=True, metavar="FOLDER", help="for the folders of the runs")
    add("--scripts", nargs="+", metavar="NAME", help=f"(those of {', '.join(EXPERIMENTS)})")
    add("--folds", type=int, nargs="+", metavar="F", help="in place of {fold} after --")
    add("--jobs", type=int, default=1, metavar="N", help="runs in parallel (1)")
    add("--minutes", type=float, metavar="N", help="stop after N minutes, to be continued later")
    options = parser.parse_args(argv[:cut])
    options.flags = argv[cut + 1 :]
    for name, value in (("jobs", options.jobs), ("minutes", options.minutes)):
        if value is not None and not value > 0:
            parser.error(f"--{name}: expected a number above 0, found {value}")
    for flag in (flag.split("=")[0] for flag in options.flags):
        if flag in OURS:
            raise UserError(f"{flag}: this tool sets it for every run, see --help")
    if any("{fold}" in flag for flag in options.flags) != bool(options.folds):
        raise UserError("--folds: expected together with {fold} after --, found one of the two")
    return options


@command
def main(argv):
    """Check everything, then run the series; returns the exit code, raises UserError."""
    options = parse(argv)
    out, paths = make_folder(options.out, "--out"), choose_scripts(options.scripts)
    every = product(dict.fromkeys(options.seeds), dict.fromkeys(options.folds or [None]), paths)
    jobs = [Job(path, fold, seed, out, options.flags) for seed, fold, path in every]
    return Series(jobs, options.jobs, options.minutes).execute()


if __name__ == "__main__":
    sys.exit(main())
