"""A training step of examples/nyuv2.py beside the same step as a plain PyTorch loop.

    python benchmarks/dense_speed.py [--side 288 384] [--batch-size 8] [--methods fixed pcgrad]

The plain loop has the same network, losses and precision, the batch in memory, and AdamW: no
augmentation, no clipping, no averaged weights, no Muon. Every variant has a process of its own, so
that its peak memory is its own; medians over the steps are printed as a Markdown table. The
pictures are synthetic rooms; unknown pixels cost as much as known ones.
"""

import multiprocessing
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataload import write_split
from engine.script import ROOT, parse
from engine.setup import build, open_data
from parts.commandline import Parser, whole_number
from parts.drawn_rooms import CLASS_NAMES, scenes
from parts.precision import autocast, native_bf16
from tools.shared.common import choose_device, command

SCRIPT = ROOT / "examples/nyuv2.py"
WARM_UP = 2  # steps before the clock runs


def seconds(step, count, device):
    """Median seconds of `count` calls of step(number)."""
    times = []
    for number in range(WARM_UP + count):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        step(number)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return median(times[WARM_UP:])


def plain_step(trainer, images, targets):
    """The step of a loop that anyone would write, as a function of the step's number."""
    network, tasks = trainer.network.train(), trainer.tasks
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    images = images.float().contiguous(memory_format=torch.channels_last)

    def step(number):
        with autocast(images.device):
            outputs = network(images)
        loss = sum(task.loss(outputs[name], targets[name]).mean() for name, task in tasks.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def measure(variant, folder, batch_size, steps, device):
    """(seconds of a step, peak memory in MB) of "plain" or of a method of the example."""
    method = "fixed" if variant == "plain" else variant
    flags = ["--h5-save-path", folder, "--batch-size", str(batch_size), "--method", method]
    script, settings, options = parse(SCRIPT, flags)
    processes = choose_device(device)
    device = processes.device
    data = open_data(folder, script.module.TASKS)["train"]
    trainer = build(script, settings, options, data, processes)
    trainer.training_step.train()
    images, targets = data.to(device)[list(range(batch_size))]
    step = plain_step(trainer, images, targets)
    if variant != "plain":

        def step(number):
            trainer.learn(images, targets, torch.Generator().manual_seed(number))

    found = seconds(step, steps, device)
    if device.type == "cuda":
        return found, torch.cuda.max_memory_allocated(device) / 1e6
    return found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def alone(*arguments):
    """`measure` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *arguments).result()


@command
def main(argv):
    """Measure and print; raises UserError."""
    parser = Parser("dense_speed.py", __doc__)
    add = parser.add_argument
    add("--side", type=int, nargs=2, default=[288, 384], help="height and width (288 384)")
    add("--batch-size", type=whole_number(2, 4096), default=8, help="default: 8")
    add("--methods", nargs="+", default=["fixed", "pcgrad"], help="default: fixed pcgrad")
    add("--steps", type=whole_number(1, 10**6), default=7, help="timed steps of each variant (7)")
    add("--device", help="cpu, cuda, ... (default: CUDA if available)")
    options = parser.parse_args(argv)
    device = choose_device(options.device).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.platform()
    kind = "bf16" if native_bf16(device) else "fp32"
    print(f"{options.side[0]} x {options.side[1]}, batch {options.batch_size}, {device} {name},")
    print(f"{kind}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| step | seconds | images/s | peak memory, MB |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for seed, split in enumerate(("train", "val", "test")):
            arrays = scenes(options.batch_size if split == "train" else 2, seed, options.side)
            write_split(Path(folder) / split, arrays, {}, {"segments": CLASS_NAMES})
        for variant in ("plain", *options.methods):
            found, memory = alone(variant, folder, options.batch_size, options.steps, str(device))
            speed = options.batch_size / found
            print(f"| {variant} | {found:.2f} | {speed:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
