"""Where the time of a training step goes: the share of every part, for several sides.

    python benchmarks/train_speed.py [--script MTL_main.py] [--sides 64 128 256] [--compile]

The parts are fetching and augmenting, forward pass with losses, backward pass, clipping, optimiser
and weight average. The same step with plain AdamW as the optimiser is measured beside it. The
variants take turns, step by step, so that a machine that slows down slows all of them; medians are
printed as a Markdown table.
"""

import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import SPLITS, write_split
from engine.batches import loader
from engine.script import ROOT, parse
from engine.setup import build, open_data
from engine.training import TrainingStep
from parts.commandline import Parser, whole_number
from parts.flops import gigaflop
from parts.precision import native_bf16
from tools.shared.common import choose_device, command

SAMPLES = 64
WARM_UP = 2  # steps of each variant before the clock runs
MATRIX = 2048  # side of the matrix product
PARTS = ("data", "forward", "backward", "clip", "optimiser", "average")


def write_random_data(folder, side):
    """Three splits of random images; speed does not depend on what they show."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        images = random.integers(0, 256, (SAMPLES, side, side, 3), dtype=np.uint8)
        masks = random.integers(0, 2, (SAMPLES, side, side, 1), dtype=np.uint8)
        boxes = np.tile([side / 4, side / 4, side / 2, side / 2], (SAMPLES, 1))
        labels = np.arange(SAMPLES) % 2
        arrays = {"images": images, "masks": masks, "bboxes": boxes, "binary": labels}
        write_split(folder / split, arrays, {}, {})


class Clock:
    """Seconds since the last reading, including the work of a GPU."""

    def __init__(self, device):
        self.device, self.last = device, time.perf_counter()

    def lap(self):
        """The seconds since the last lap."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.last = self.last, time.perf_counter()
        return self.last - before


def timed_step(trainer, data, step):
    """{part: seconds} of one training step, the parts of `Trainer.learn` one by one."""
    device, size = trainer.processes.device, trainer.settings.BATCH_SIZE
    clock = Clock(device)
    indices = [i % SAMPLES for i in range(step * size, (step + 1) * size)]
    images, targets = next(loader(data, [indices], device))
    images, targets = trainer.augment(images, targets, torch.Generator().manual_seed(step))
    images = images.contiguous(memory_format=torch.channels_last)
    counts = torch.stack([t.known(targets[n]).sum() for n, t in trainer.tasks.items()]).float()
    seconds = {"data": clock.lap()}
    total, *_ = trainer.training_step(images, targets, counts)
    seconds["forward"] = clock.lap()
    trainer.training_step.zero_grad()
    total.backward()
    seconds["backward"] = clock.lap()
    clip_grad_norm_(trainer.training_step.parameters(), trainer.settings.CLIP_NORM)
    seconds["clip"] = clock.lap()
    trainer.optimiser.step()
    seconds["optimiser"] = clock.lap()
    trainer.average.update_parameters(trainer.network)
    seconds["average"] = clock.lap()
    return seconds


def make_trainer(path, folder, processes, batch_size, *flags):
    """A Trainer of a script as a run would make it, and its training data."""
    paths = ["--h5-save-path", str(folder), "--batch-size", str(batch_size)]
    script, settings, options = parse(path, [*paths, *flags])
    data = open_data(folder, script.module.TASKS)["train"]
    trainer = build(script, settings, options, data, processes)
    trainer.training_step.train()  # it comes in eval mode, from the check of its outputs
    return trainer, data


def matrix_rate(device):
    """GFLOP/s of a large matrix product in the type of the step, the best this machine offers."""
    kind = torch.bfloat16 if native_bf16(device) else torch.float32
    a, clock, times = torch.randn(MATRIX, MATRIX, device=device).to(kind), Clock(device), []
    for _ in range(7):
        clock.lap()
        a @ a
        times.append(clock.lap())
    return 2 * MATRIX**3 / median(times[2:]) / 1e9, str(kind).removeprefix("torch.")


def measure(path, side, options, processes):
    """{variant: {part: median seconds}} at one side, and GFLOP of an image."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_data(Path(folder), side)
        arguments = path, Path(folder), processes, options.batch_size
        trainers = {"as shipped": make_trainer(*arguments), "with AdamW": make_trainer(*arguments)}
        plain = trainers["with AdamW"][0]
        plain.optimiser = torch.optim.AdamW(plain.training_step.parameters(), 1e-3, fused=True)
        if options.compile:
            trainers["compiled"] = make_trainer(*arguments, "--compile")
        rows = {name: [] for name in trainers}
        for step in range(WARM_UP + options.steps):
            for name, (trainer, data) in trainers.items():
                rows[name].append(timed_step(trainer, data, step))
        trainer, data = trainers["as shipped"]
        images, targets = next(loader(data, [[0, 1]], processes.device))
        alone = TrainingStep(trainer.network, trainer.tasks, trainer.weighting)
        work = gigaflop(alone, images, targets)
    kept = {name: series[WARM_UP:] for name, series in rows.items()}
    parts = {n: {p: median(row[p] for row in series) for p in PARTS} for n, series in kept.items()}
    return parts, work


@command
def main(argv):
    """Measure and print; raises UserError."""
    parser = Parser("train_speed.py", __doc__)
    parser.add_argument("--script", default="MTL_main.py", help="default: MTL_main.py")
    text = "image sides in pixels (default: 64 128 256)"
    sides = whole_number(1, 10**4)
    parser.add_argument("--sides", type=sides, nargs="+", default=[64, 128, 256], help=text)
    parser.add_argument("--batch-size", type=whole_number(2, 4096), default=32, help="default: 32")
    steps = whole_number(1, 10**6)
    parser.add_argument("--steps", type=steps, default=7, help="timed steps of each variant (7)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: CUDA if available)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    options = parser.parse_args(argv)
    processes = choose_device(options.device)
    path, device = ROOT / options.script, processes.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.platform()
    rate, kind = matrix_rate(device)
    print(f"{path.name}, batch {options.batch_size}, {device} {name}, {kind},")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"| side | variant | images/s | {' | '.join(PARTS)} | of the matrix product |")
    print("| --- " * (len(PARTS) + 4) + "|")
    for side in options.sides:
        variants, work = measure(path, side, options, processes)
        for variant, parts in variants.items():
            total = sum(parts.values())
            shares = " | ".join(f"{seconds / total:.1%}" for seconds in parts.values())
            reached = work * options.batch_size / total / rate
            speed = options.batch_size / total
            print(f"| {side} | {variant} | {speed:.0f} | {shares} | {reached:.0%} |", flush=True)
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 1e6
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(f"\nPeak memory of all variants together: {memory:.0f} MB.")


if __name__ == "__main__":
    sys.exit(main())
