"""Encoders of torchvision: stages, weights from a file, and every mistake in one line."""

import pytest
import torch
from running import load, run
from torchvision import models

import engine
from engine.training import parameters_by_rate
from MTL_Utils import FixedWeights
from parts.errors import SettingError
from parts.precision import StridedDepthwise, speed_up_depthwise

PLACE = "examples/pretrained.py"
BACKBONES = ("mobilenet_v2", "mobilenet_v3_large", "resnet18", "resnet34", "efficientnet_b0")
STRIDES = [2, 4, 8, 16, 32]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of torchvision's weights, but drawn at random."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "mobilenet.pt"
    torch.save(models.mobilenet_v2().state_dict(), path)
    return path


@pytest.mark.parametrize("name", [*BACKBONES, "convnext_tiny"])
def test_a_backbone_gives_its_stages_and_learns(name):
    module = engine.load(PLACE, BACKBONE=name, BACKBONE_WEIGHTS="")
    network = module.Network().train()
    assert network.encoder.strides == STRIDES[name == "convnext_tiny" :]  # it has no stride 2
    assert network.stride == 32
    outputs = network(torch.full((2, 3, 64, 96), 200.0))
    shapes = {"seg": (2, 1, 64, 96), "bbox": (2, 4), "bin": (2,)}
    assert {task: tuple(output.shape) for task, output in outputs.items()} == shapes
    torch.stack([output.float().sum() for output in outputs.values()]).sum().backward()
    first = next(network.encoder.stages.parameters())
    assert first.grad is not None and first.grad.isfinite().all()


def test_images_are_normalised_as_torchvision_does():
    encoder = engine.load(PLACE, BACKBONE_WEIGHTS="").Network().encoder.eval()
    seen = []
    encoder.stages.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    encoder(torch.full((1, 3, 32, 32), 255.0))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0][0, :, 0, 0], expected)


def test_a_run_starts_from_the_file_and_resumes_without_it(weights, shared_data, tmp_path):
    flags = ["--backbone-weights", str(weights), "--learning-rate", "1e-9", "--epochs", "1"]
    out = tmp_path / "out"
    run(PLACE, shared_data, out, *flags, "--units", "1", "--widths", "8", "8", "8", "8", "16")
    state = load(out / "pretrained_model_lite.pt")
    own = torch.load(weights, weights_only=True)["features.0.0.weight"]
    torch.testing.assert_close(state["encoder.stages.features.0.0.weight"], own, atol=1e-5, rtol=0)
    moved = weights.rename(tmp_path / "away.pt")
    try:
        network = engine.open_network(out / "pretrained_model_lite.pt", "cpu")
        assert network.predict(torch.zeros(32, 32, 3, dtype=torch.uint8))["mask"].shape == (32, 32)
        (out / "pretrained_history.pt").unlink()
        given = ["--resume", "--units", "1", "--widths", "8", "8", "8", "8", "16"]
        run(PLACE, shared_data, out, *flags, *given)
    finally:
        moved.rename(weights)


def test_mistakes_end_in_one_line(weights, shared_data, tmp_path):
    def said(*flags):
        printed = run(PLACE, shared_data, tmp_path / "out", *flags, code=2)
        assert printed.count("\n") == 1 and not (tmp_path / "out" / "pretrained_last.pt").exists()
        return printed.removeprefix("pretrained.py: ").strip()

    wide = ["--widths", "8", "8", "8", "8", "16", "--epochs", "1"]
    found = said("--backbone", "resnet35", *wide)
    assert found.startswith("--backbone: expected a classification network of torchvision (resnet")
    found = said("--backbone-weights", str(tmp_path / "no.pt"), *wide)
    assert "expected a file, found no such file" in found
    found = said("--backbone-weights", str(weights), "--backbone", "resnet18", *wide)
    assert "expected the weights of resnet18, found a file that fits in 0 of " in found
    state = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in state.items() if "features.18" not in k}, tmp_path / "part.pt")
    found = said("--backbone-weights", str(tmp_path / "part.pt"), *wide)
    assert "fits in 255 of 260 tensors, not in features.18.0.weight" in found
    state["features.0.0.weight"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    assert "expected finite weights" in said("--backbone-weights", str(tmp_path / "nan.pt"), *wide)
    found = said("--widths", "8", "16")
    assert found == (
        "--widths: expected 5 numbers or more, one for each stride of mobilenet_v2 (2, 4, 8, 16, "
        "32), found 2"
    )
    found = said("--backbone", "swin_t")  # its layers have their channels last
    expected = "a network with stages at strides 4, 8, 16 and 32"
    assert found == f"--backbone: expected {expected}, found swin_t with [4, 1, 32]"
    found = said("--backbone-norms", "thawed", "--backbone-weights", "", *wide)
    assert found == "--backbone-norms: expected running or frozen, found thawed"


def test_without_internet_the_message_names_the_flag(monkeypatch):
    def offline(name, weights):
        raise OSError("Name or service not known")

    module = engine.load(PLACE, BACKBONE="resnet18")
    monkeypatch.setattr(module.models, "get_model", offline)
    with pytest.raises(SettingError, match=r"the download failed .* give a file"):
        module.backbone_weights()


def test_frozen_norms_keep_their_statistics():
    for norms in ("frozen", "running"):
        module = engine.load(PLACE, BACKBONE_NORMS=norms, BACKBONE_WEIGHTS="")
        network = module.Network().train()
        norm = network.encoder.stages.get_submodule("features.0.1")
        before = norm.running_mean.clone()
        network(torch.full((2, 3, 32, 32), 50.0))
        changed = not torch.equal(before, norm.running_mean)
        assert changed is (norms == "running")


def test_the_backbone_learns_at_its_own_rate():
    module = engine.load(PLACE, BACKBONE_RATE=0.25, BACKBONE_WEIGHTS="")
    network = module.Network()
    parts = parameters_by_rate(network, FixedWeights({"seg": 1.0}))
    assert {factor: len(each) for factor, each in parts.items()} == {
        0.25: len(list(network.encoder.stages.parameters())),
        1.0: sum(1 for n, _ in network.named_parameters() if "stages" not in n),
    }


def test_a_strided_depthwise_convolution_computes_the_same():
    layer = torch.nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    x = torch.rand(2, 8, 6, 6)
    expected = layer(x)
    speed_up_depthwise(torch.nn.Sequential(layer))
    assert type(layer) is StridedDepthwise
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16().float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)
    dense = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, 2), torch.nn.Conv2d(8, 8, 3, groups=8))
    assert not any(isinstance(m, StridedDepthwise) for m in speed_up_depthwise(dense))
