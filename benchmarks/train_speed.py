"""Images per second of a script's whole training step, against plain fp32 and torch.compile.

    python benchmarks/train_speed.py [--script MTL_main] [--size 256] [--batch-size 32] [--compile]

One step is fetching, augmentation, forward, losses, backward, clipping, optimiser and weight
average. The variants take turns, step by step, so that a machine that slows down slows all of
them; medians are printed as a Markdown table.
"""

import argparse
import importlib
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.loop import gigaflop, loader, train_step

from dataload import SPLITS, write_split
from engine.optimiser import Optimiser
from engine.processes import Processes
from engine.run import Run

SAMPLES = 128
WARM_UP = 3  # steps of each variant before the clock runs
MATRIX = 4096  # side of the matrix product


def write_random_data(folder, side):
    """Three splits of random images; speed does not depend on what they show."""
    random = np.random.default_rng(0)
    for split in SPLITS:
        images = random.integers(0, 256, (SAMPLES, side, side, 3), dtype=np.uint8)
        masks = random.integers(0, 2, (SAMPLES, side, side, 1), dtype=np.uint8)
        boxes = np.tile([side / 4, side / 4, side / 2, side / 2], (SAMPLES, 1))
        write_split(folder / split, images, masks, boxes, np.arange(SAMPLES) % 2, ("a", "b"), {})


def make_run(module, folder, device, compiled=False):
    """A Run of the script as it ships, on the random data."""
    processes = Processes()
    processes.use(device)
    options = SimpleNamespace(demo=False, quiet=True, tensorboard=False, compile=compiled)
    run = Run(module, folder, processes, None, options)
    run.step.train()  # it comes in eval mode, from the check of the image side
    return run


def fetch(run, step):
    """The batch of a step on the device, by the way of the training loop."""
    first = step * run.module.BATCH_SIZE
    indices = [i % SAMPLES for i in range(first, first + run.module.BATCH_SIZE)]
    return next(loader(run.data["train"], [indices], run.processes.device))


def shipped_step(run, step):
    """The training loop's own step."""
    train_step(run, *fetch(run, step), torch.Generator().manual_seed(step))


def plain_step(run, step):
    """The same network, data, losses and optimiser as most would write it: fp32, NCHW memory.

    On a GPU convolutions may round to TF32, which is torch's default.
    """
    images, targets = run.augment(*fetch(run, step), torch.Generator().manual_seed(step))
    outputs = run.network(images.contiguous())
    losses = {name: task.loss(outputs[name], targets[name]) for name, task in run.tasks.items()}
    run.optimiser.zero_grad()
    run.weighting(losses).backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), run.clip_norm)
    run.optimiser.step()
    run.average.update_parameters(run.network)


def augment_only(run, step):
    """Fetching and augmentation, the share of the data in a step."""
    run.augment(*fetch(run, step), torch.Generator().manual_seed(step))


def seconds_of(work, device):
    """Seconds that `work()` takes, a GPU's part included."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def matrix_rate(device):
    """GFLOP/s of a large bf16 matrix product, the best this machine has to offer."""
    a = torch.randn(MATRIX, MATRIX, device=device).bfloat16()
    times = [seconds_of(lambda: a @ a, device) for _ in range(7)]
    return 2 * MATRIX**3 / median(times[2:]) / 1e9


def peak_memory(device):
    """Megabytes (10^6 bytes) at most: on the GPU, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def measure(module, folder, settings):
    """{variant: median seconds of a step} and the Run as shipped."""
    run = make_run(module, folder, settings.device)
    for _ in range(WARM_UP):
        shipped_step(run, 0)
    memory = peak_memory(run.processes.device)  # before the other variants add theirs
    plain = make_run(module, folder, settings.device)
    for network in (plain.network, plain.average.module):
        network.to(memory_format=torch.contiguous_format)
    plain.optimiser = Optimiser(
        plain.step.parameters(), 1e-3, 0.0, 10**6
    )  # views of the new memory
    variants = {
        "as shipped": lambda step: shipped_step(run, step),
        "plain fp32": lambda step: plain_step(plain, step),
        "data alone": lambda step: augment_only(run, step),
    }
    if settings.compile:
        compiled = make_run(module, folder, settings.device, compiled=True)
        variants["as shipped, compiled"] = lambda step: shipped_step(compiled, step)
    times = {name: [] for name in variants}
    for step in range(WARM_UP + settings.steps):
        for name, work in variants.items():
            times[name].append(seconds_of(lambda w=work, s=step: w(s), run.processes.device))
    return {name: median(series[WARM_UP:]) for name, series in times.items()}, run, memory


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", default="MTL_main", help="MTL_main")
    parser.add_argument("--size", type=int, default=256, help="image side in pixels (256)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step (32)")
    parser.add_argument("--steps", type=int, default=11, help="timed steps of each variant (11)")
    parser.add_argument("--device", help="cpu, cuda, ... (CUDA where there is one)")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile")
    settings = parser.parse_args()
    module = importlib.import_module(settings.script)
    module.BATCH_SIZE = settings.batch_size
    with tempfile.TemporaryDirectory() as folder:
        module.FILE_SAVE_PATH = f"{folder}/run"
        write_random_data(Path(folder), settings.size)
        seconds, run, memory = measure(module, folder, settings)
        work = gigaflop(run.step, *fetch(run, 0))
    device, best = run.processes.device, matrix_rate(run.processes.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.platform()
    print(f"{settings.script}, {settings.size} x {settings.size}, batch {settings.batch_size},")
    print(f"{device} {name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| variant | s / step | images/s | against plain fp32 |\n| --- | --- | --- | --- |")
    for variant in (v for v in seconds if v != "data alone"):
        rate, gain = settings.batch_size / seconds[variant], seconds["plain fp32"]
        print(
            f"| {variant} | {seconds[variant]:.3f} | {rate:.1f} | {gain / seconds[variant]:.2f} |"
        )
    reached = work * settings.batch_size / seconds["as shipped"]
    print(
        f"\n{work:.2f} GFLOP an image forward and backward; the step reaches {reached:.0f} GFLOP/s,"
    )
    print(f"{reached / best:.0%} of the {best:.0f} GFLOP/s of a bf16 matrix product.")
    print(
        f"Fetching and augmenting: {seconds['data alone'] / seconds['as shipped']:.1%} of the step."
    )
    print(f"Peak memory as shipped: {memory:.0f} MB.")


if __name__ == "__main__":
    main()
