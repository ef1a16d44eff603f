"""Run scripts x folds x seeds, each in its own folder, one after the other or in parallel.

    python tools/run_all.py --seeds 0 1 2 --out runs/128 -- --h5-save-path data/pets128 --epochs 120
    python tools/run_all.py --seeds 0 --scripts main examples/bbox_only.py --folds 0 1 2 --jobs 2 \\
        --out runs/folds -- --h5-save-path data/pets128_fold{fold}

Flags after -- go to every script, with {fold} replaced by the number of the fold. A run writes to
OUT/NAME_seedK or OUT/NAME_foldF_seedK. Repeating the command skips finished runs and resumes
stopped ones, so a long series can be run in parts: after --minutes 40 the tool makes the running
scripts save their state, and ends. Ctrl-C and SIGTERM do the same at once, a second one without
waiting for the scripts. A failed run is reported and does not stop the others. With --jobs 2 two
runs go in parallel, each quietly and on one thread. If OUT holds a finished run with different
settings, data or --weights, the tool stops; where the data lie does not matter.

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
from engine import script
from engine.script import ROOT
from engine.setup import data_folder, open_data
from engine.weights import describe_source, identity, same_source, weights_file
from parts import files
from parts.commandline import Parser
from parts.errors import UserError
from parts.signals import StopSignals
from tools.shared.common import EXPERIMENTS, command, make_folder, to_stderr
from tools.shared.histories import refuse_earlier

RESERVED = ("--seed", "--file-save-path", "--resume", "--overwrite")  # set by this tool
PLACES = {"H5_SAVE_PATH", "FILE_SAVE_PATH", "WEIGHTS"}  # their contents count, not their paths
OWN_GROUP = {"process_group": 0} if os.name == "posix" else {}  # shields the scripts from Ctrl-C


class Job:
    """One run: its folder, its command, and the seconds it took if finished; raises UserError.

    Args:
        fingerprints: of the data that the jobs of a series have read; filled by them.
    """

    def __init__(self, path, fold, seed, out, flags, fingerprints):
        name, self.fingerprints = script.Script(path, None).name, fingerprints
        self.folder = out / f"{name}{'' if fold is None else f'_fold{fold}'}_seed{seed}"
        self.history = self.folder / f"{name}_history.pt"
        flags = [flag.replace("{fold}", str(fold)) for flag in flags]
        flags += ["--seed", str(seed), "--file-save-path", str(self.folder)]
        self.command = [sys.executable, str(path), *flags, "--resume"]
        try:
            self.script, settings, options = script.parse(path, flags)
            script.check_script(self.script, settings)
            self.weights = identity(weights_file(options.weights)) if options.weights else None
            self.data = None
            if not options.demo:
                with data_folder(settings.H5_SAVE_PATH) as self.data:
                    pass  # it exists
        except UserError as error:
            raise UserError(f"{path.name}: {error}") from error
        self.config = vars(settings) | {"demo": options.demo, "diagnose": options.diagnose}
        self.seconds = None  # that the run took, once it is finished
        if history := self.read_history():
            self.seconds = sum(history["seconds"])
            self.check_finished(history)

    def read_history(self):
        """The history of a finished run, else None.

        UserError if it is damaged or of an earlier version.
        """
        if not self.history.exists():
            return None
        history = files.load(self.history)
        needed = {"config", "seconds", "data_fingerprint", "weights_from"}
        if not isinstance(history, dict) or not needed <= history.keys():
            raise UserError(f"{self.history}: expected a history, found another file")
        refuse_earlier(self.history, history)
        return history

    def check_finished(self, history):
        """UserError for the history of a run with different settings, data or weights.

        The path of the data does not matter.
        """
        found = {"diagnose": 0} | history["config"]
        names = (name for name in self.config if name not in PLACES)
        pairs = [(name, found.get(name), self.config[name]) for name in names]
        source, other = self.weights, history["weights_from"]
        if not same_source(source, other):
            pairs.append(("--weights", describe_source(other), describe_source(source)))
        if self.data and all(before == now for _, before, now in pairs):
            for split, now in self.fingerprint().items():
                old = history["data_fingerprint"].get(split, {})
                for file in sorted(old | now):
                    pairs.append((f"data in {split}/{file}", old.get(file), now.get(file)))
        differ = [f"{name} = {old}, not {new}" for name, old, new in pairs if old != new]
        if differ:
            hint = "choose another --out or remove that folder"
            raise UserError(f"{self.history}: a run with {'; '.join(differ)}; {hint}")

    def fingerprint(self):
        """{split: {file: text}} of the data, read once per series; raises DataError."""
        tasks = self.script.module.TASKS
        key = self.data.resolve(), *sorted(str(task.target) for task in tasks.values())
        if key not in self.fingerprints:
            data = open_data(self.data, tasks)
            self.fingerprints[key] = {split: each.fingerprint() for split, each in data.items()}
        return self.fingerprints[key]


def choose_scripts(wanted):
    """Resolved paths of scripts, given as main, examples.NAME or a path; raises UserError."""
    found = {}
    for name in wanted or [name for name in EXPERIMENTS if (ROOT / f"MTL_{name}.py").is_file()]:
        short = ROOT / f"MTL_{name.removesuffix('.py')}.py"
        try:
            path = short.resolve() if short.is_file() else script.find(name)
        except UserError as error:
            expected = "expected main, examples.NAME or the path of a script"
            raise UserError(f"--scripts: {expected}, found {name}") from error
        other = found.setdefault(script.Script(path, None).name, path)
        if other != path:
            expected = "scripts of different names, since their runs share --out"
            raise UserError(f"--scripts: expected {expected}, found {other} and {path}")
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
        """Stop, start and finish runs that are due, and wait a little."""
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
            if history := job.read_history():
                job.seconds = sum(history["seconds"])
            if (code or not history) and not self.is_ending:
                self.failed[job] = code
                why = f"failed with exit code {code}" if code else "left no history"
                self._say(f"{job.folder.name} {why}")

    def _start(self, job):
        self._say(f"starting {job.folder.name}")
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]  # wherever it lies
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
        to_stderr(f"{line}; {text}" if text else line)


def parse(argv):
    """The options, with `flags`, those after --; raises UserError for values that do not fit."""
    argv = sys.argv[1:] if argv is None else list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    usage = "run_all.py --seeds K [K ...] --out FOLDER [options] [-- FLAGS OF THE SCRIPTS]"
    parser = Parser("run_all.py", __doc__, usage=usage)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", required=True, metavar="K", help="random seeds")
    add("--out", required=True, metavar="FOLDER", help="folder for the runs' folders")
    add("--scripts", nargs="+", metavar="NAME", help=f"default: {' '.join(EXPERIMENTS)}")
    text = "fold numbers; each replaces {fold} after --"
    add("--folds", type=int, nargs="+", metavar="F", help=text)
    add("--jobs", type=int, default=1, metavar="N", help="runs in parallel (default: 1)")
    add("--minutes", type=float, metavar="N", help="stop after N minutes; repeat to go on")
    options = parser.parse_args(argv[:cut])
    options.flags = argv[cut + 1 :]
    for name, value in (("jobs", options.jobs), ("minutes", options.minutes)):
        if value is not None and not value > 0:
            parser.error(f"--{name}: expected a number above 0, found {value}")
    for flag in (flag.split("=")[0] for flag in options.flags):
        if flag in RESERVED:
            raise UserError(f"{flag}: this tool sets it for every run; see --help")
    if any("{fold}" in flag for flag in options.flags) != bool(options.folds):
        raise UserError("--folds: expected together with {fold} after --, found one of the two")
    return options


@command
def main(argv):
    """Check everything, then run the series; returns the exit code, raises UserError."""
    options = parse(argv)
    out, paths = make_folder(options.out, "--out"), choose_scripts(options.scripts)
    every = product(dict.fromkeys(options.seeds), dict.fromkeys(options.folds or [None]), paths)
    shared = out, options.flags, {}
    jobs = [Job(path, fold, seed, *shared) for seed, fold, path in every]
    return Series(jobs, options.jobs, options.minutes).execute()


if __name__ == "__main__":
    sys.exit(main())
