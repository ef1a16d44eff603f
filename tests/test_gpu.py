"""What a GPU needs: steps that never wait for it, and one graph for torch.compile. None is used."""

from types import SimpleNamespace

import pytest
import torch
from running import ROOT, SCRIPTS, changed, history, name_of, run, without_pictures
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

import engine
import engine.evaluation
from engine.training import Trainer

# --------------------------------------------------------------------------------------- compile


@pytest.fixture
def graphs(monkeypatch):
    """How often and why torch captures a graph; the compiler behind it is torch's own affair."""
    compile_with = torch.nn.Module.compile

    def capture(step, dynamic):  # a backend would be another than the default
        compile_with(step, dynamic=dynamic, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", capture)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


ODD = changed(  # the text of a script with classes of its own
    (ROOT / "MTL_baseline.py").read_text(),
    ("class Network", "import enum\n\n\nclass Mode(enum.Enum):\n    A = 1\n\n\nclass Network"),
    ("self.seg(features)", "self.seg(features) if Mode(1) is Mode.A and UNITS else None"),
)


@pytest.mark.parametrize(
    ("script", "sides"),
    [("MTL_main", ["0.5", "1"]), ("MTL_OEQ", ["1"]), ("my code/MTL_0.1 é.py", ["1"])],
)
def test_a_compiled_step_is_one_graph_for_each_side(script, sides, shared_data, tmp_path, graphs):
    flags = ["--widths", "8", "16", "--sides", *sides, "--epochs", str(len(sides))]
    found = {}
    if script.endswith(".py"):
        script = tmp_path / script
        script.parent.mkdir()
        script.write_text(ODD)
    with without_pictures():
        for name, more in {"plain": [], "compiled": ["--compile"]}.items():
            run(script, shared_data, tmp_path / name, *flags, *more)
            found[name] = history(tmp_path / name, name_of(script))
            assert graphs["stats"]["unique_graphs"] == len(more) * len(sides)
    assert not graphs["graph_break"]
    for part in ("train", "val"):
        for metric, values in found["plain"][part].items():
            expected = pytest.approx(values, rel=1e-3, abs=1e-3, nan_ok=True)
            assert found["compiled"][part][metric] == expected


# ------------------------------------------------------------------------------------ fake CUDA


@pytest.fixture
def fake_gpu(monkeypatch):
    """Tensors that are only said to be on a GPU: reading a value of one raises."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: True)
    monkeypatch.setattr(torch.nn.Module, "to", move)  # torch's own cannot move fake ones
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    with FakeTensorMode():
        yield torch.device("cuda:0")


def move(module, device, **options):
    """Module.to for fake weights."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            part._parameters[name] = (
                None if weight is None else torch.nn.Parameter(weight.to(device))
            )
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to(device)
    return module


def fake_batch(device):
    """Images uint8 (4, 3, 64, 64) and targets."""
    targets = {
        "seg": torch.zeros(4, 1, 64, 64, dtype=torch.uint8, device=device),
        "bbox": torch.zeros(4, 4, device=device),
        "bin": torch.zeros(4, device=device),
    }
    return torch.zeros(4, 3, 64, 64, dtype=torch.uint8, device=device), targets


def fake_processes(device):
    return SimpleNamespace(device=device, rank=0, size=1, sum=lambda tensor: tensor)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_training_step_stays_on_the_gpu_and_never_waits_for_it(script, fake_gpu, monkeypatch):
    module = engine.load(script, WIDTHS=(16, 16, 32))
    settings = SimpleNamespace(LEARNING_RATE=1.0, WEIGHT_DECAY=0.1, EMA_DECAY=0.9, CLIP_NORM=1.0)
    network, processes = module.Network().to(fake_gpu), fake_processes(fake_gpu)
    parts = module.TASKS, module.weighting(), module.augmentation()
    trainer = Trainer(network, *parts, settings, 10, processes)

    def backward(total):  # the one part that a real GPU alone can do
        assert total.shape == () and total.device == fake_gpu and total.requires_grad
        for weight in trainer.training_step.parameters():
            weight.grad = torch.empty_like(weight)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    trainer.training_step.train()
    for side in (None, (32, 32)):
        row = trainer.learn(*fake_batch(fake_gpu), torch.Generator(), side)
        count = len(module.TASKS)
        shapes = {name: tensor.shape for name, tensor in row.items()}
        assert shapes == {"loss": (count,), "known": (count,), "norm": ()}
        assert all(tensor.device == fake_gpu for tensor in row.values())


@pytest.mark.parametrize("script", ["MTL_main", "MTL_OEQ"])
def test_an_evaluation_waits_for_the_gpu_once_at_its_end(script, fake_gpu, monkeypatch):
    batches = [fake_batch(fake_gpu)] * 3
    monkeypatch.setattr(engine.evaluation, "loader", lambda *arguments: batches)
    processes, sums = fake_processes(fake_gpu), []
    processes.sum = lambda tensor: sums.append(tensor) or tensor
    module = engine.load(script, WIDTHS=(16, 16, 32))
    network = module.Network().to(fake_gpu)
    with pytest.raises(DataDependentOutputException):
        engine.evaluation.evaluate(network, range(12), module.TASKS, 4, processes)
    assert len(sums) == 1  # it asks whether every sample was seen, after all batches
    yes = SimpleNamespace(eq=lambda one: SimpleNamespace(all=lambda: True))
    answers = iter([yes])
    processes.sum = lambda tensor: next(answers, tensor)
    table = engine.evaluation.evaluate(network, range(12), module.TASKS, 4, processes)
    pairs = [pair for metrics in table.values() for pair in metrics.values()]
    assert all(pair.device == fake_gpu and pair.shape == (12, 2) for pair in pairs)


@pytest.mark.parametrize(
    "wait",
    [
        lambda values: values.sum().item(),
        lambda values: bool(values.any()),
        lambda values: values.nonzero(),
        lambda values: values[values > 0],
        lambda values: values + torch.zeros(3),  # on the CPU
    ],
)
def test_the_fake_gpu_notices_a_wait_and_another_device(fake_gpu, wait):
    errors = (DataDependentOutputException, DynamicOutputShapeException, RuntimeError)
    with pytest.raises(errors):
        wait(torch.zeros(3, device=fake_gpu))
