"""What a run records about itself, and the files that it writes after the test."""

import copy
import functools

import torch

from engine.evaluation import predict, sample_scores, values
from engine.report import test_table
from engine.script import PICKLE
from engine.training import TrainingStep
from parts import files, provenance
from parts.errors import UserError, with_class
from parts.files import save_csv
from parts.flops import gigaflop


def describe_run(script, config, tasks, data, trainer):
    """The part of a history that is known before training; checkpoints hold it too."""
    train, device = data["train"], trainer.processes.device
    card = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return {
        "name": script.name,
        "script": script.place,
        "config": config,
        "tasks": _summaries(tasks, trainer.network, train, device),
        "data": {split: len(dataset) for split, dataset in data.items()},
        "data_fingerprint": {split: dataset.fingerprint() for split, dataset in data.items()},
        "side": tuple(train.side),
        "class_names": _class_names(data),
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "device": f"{device}{card}",
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "weights_from": None,
    }


def _class_names(data):
    """{target: names of its classes}, those of the first split that has its file."""
    found = {}
    for dataset in data.values():
        new = dataset.arrays.keys() - found.keys()
        found |= {n: names for n, names in dataset.class_names.items() if n in new}
    return data["train"].class_names | found


@torch.inference_mode()
def _summaries(tasks, network, train, device):
    """{task: its metrics, as readers of the history need them}; UserError without the primary."""
    images, targets = train[[0]]
    outputs = network.eval()(images.to(device))
    found = {}
    for name, task in tasks.items():
        metrics = [*task.metrics(outputs[name], targets[name].to(device)), *task.means]
        if task.primary not in metrics:
            raise UserError(
                f"TASKS: expected a primary metric of '{name}' among {', '.join(metrics)}, found "
                f"{task.primary}"
            )
        found[name] = {
            "primary": task.primary,
            "higher_is_better": task.higher_is_better,
            "metrics": metrics,
            "means": {metric: list(parts) for metric, parts in task.means.items()},
            "lower_is_better": list(task.lower_is_better),
            "counted": list(task.counted or (task.primary,)),
            "reference": task.reference,
        }
    return found


def _gigaflop(trainer, train, report):
    """GFLOP of one image, forward and backward, in this process alone; None if it fails."""
    device = trainer.processes.device
    images, targets = train[[0, 0]]  # batch norm needs more than one value
    targets = {task: target.to(device) for task, target in targets.items()}
    alone = TrainingStep(trainer.network, trainer.tasks, trainer.weighting)
    try:
        return gigaflop(alone, images.to(device), targets)
    except Exception as error:  # such as a network that cannot be copied, once it has trained
        report.warn(f"warning: the work of a step could not be counted ({with_class(error)})")


def with_test_results(about, trainer, table, data, report):
    """The `describe_run` of a run with its results on the test split, one row per sample."""
    rows = {
        f"{name}_{metric}": pairs.cpu()
        for name, metrics in table.items()
        for metric, pairs in metrics.items()
    }
    return about | {
        "gflop": _gigaflop(trainer, data["train"], report),
        "test": values(trainer.tasks, table),
        "test_rows": rows,
        "test_lines": data["test"].source_lines,
    }


def paths(folder, name, tasks):
    """The files of a finished run, in the order in which they are written: numbers, then pictures.

    The checkpoint is not among them.
    """
    numbers = ("model_lite.pt", "history.csv", "history.pt")
    endings = (*numbers, "model.pt", f"{next(iter(tasks))}_loss.png", "test.png", "conflict.png")
    return [folder / f"{name}_{ending}" for ending in endings]


def write_numbers(folder, tasks, history, network):
    """Write weights and history.

    Args:
        folder: of the run.
        tasks: {name: Task}.
        history: complete; its file, written last, shows that all numbers are written.
        network: with the weights of the best epoch.
    """
    lite, table, record, *_ = paths(folder, history["name"], tasks)
    files.save({key: value.cpu() for key, value in network.state_dict().items()}, lite)
    save_csv(history, table)
    files.save(history, record)


def write_others(folder, tasks, history, network, data, report, table):
    """Print the test metrics and write the whole network and the pictures, or warn.

    The arguments are those of `write_numbers`, {split: H5Dataset}, the Report of the run, and what
    `evaluate` gives for the test split.
    """
    report.say(test_table(history))
    on_cpu = copy.deepcopy(network).cpu().eval()  # so that the files open without a GPU
    places = paths(folder, history["name"], tasks)
    steps = [
        functools.partial(_save_network, on_cpu, data["test"], report),
        functools.partial(_draw_losses, history, tasks),
        functools.partial(_draw_median, on_cpu, tasks, table, data["test"], history),
    ]
    if "conflict" in history:
        steps.append(functools.partial(_draw_conflict, history))
    for write, path in zip(steps, places[3:], strict=False):
        try:
            write(path)
        except UserError as error:
            report.warn(f"warning: {error}")
        except Exception as error:  # of a user's code or of matplotlib: the numbers are safe
            report.warn(f"warning: {path}: cannot be made ({with_class(error)})")
    last = folder / f"{history['name']}_last.pt"
    report.end(history, [*(path for path in places if path.is_file()), last])


def _save_network(network, test, report, path):
    """Save the whole network, and compare it with what a user gets who opens the file."""
    files.save(network, path, pickle_module=PICKLE)
    opened = torch.load(path, map_location="cpu", weights_only=False).eval()
    images, _ = test[[0]]
    ours, theirs = (predict(each, images.cpu())[0] for each in (network, opened))
    if not all(torch.equal(ours[name], theirs[name]) for name in ours):
        report.warn(
            f"warning: {path}: the opened network gives other outputs than the trained one; what "
            "it needs must be in its own attributes"
        )


def _draw_losses(history, tasks, path):
    from engine.pictures import save_loss_picture  # matplotlib takes long to import

    save_loss_picture(path, history, *next(iter(tasks.items())))


def _draw_conflict(history, path):
    from parts.figures import save_conflict_picture

    save_conflict_picture(path, history["conflict"])


def _draw_median(network, tasks, table, test, history, path):
    """Draw the test sample whose primary metric is the median of those where it is known."""
    from engine.pictures import save_test_picture

    name, task = next(iter(tasks.items()))
    scores = sample_scores(table[name], task)
    index = scores.argsort()[scores.isfinite().sum() // 2].item()  # NaN come last
    images, targets = test[[index]]
    (outputs,) = predict(network, images.cpu())
    targets = {task: target[0].cpu() for task, target in targets.items()}
    rows = {n: {m: pairs[[index]] for m, pairs in each.items()} for n, each in table.items()}
    metrics = values(tasks, rows)
    scores = {f"{n} {t.primary}": metrics[f"{n}_{t.primary}"] for n, t in tasks.items()}
    save_test_picture(
        path, images[0].cpu(), targets, outputs, scores, tasks, history["class_names"]
    )
