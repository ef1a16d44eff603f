"""The ablations are MTL_main with tasks removed, and nothing else."""

import importlib

import pytest
import torch

from engine.settings import constants

REFERENCES = {"examples.bbox_only": ["bbox"], "examples.bin_only": ["bin"]}
ABLATIONS = REFERENCES | {
    "MTL_baseline": ["seg"],
    "MTL_ablation_bbox": ["seg", "bbox"],
    "MTL_ablation_bin": ["seg", "bin"],
    "MTL_OEQ": ["seg", "bbox", "bin"],
}
MAIN = importlib.import_module("MTL_main")
TASKS = ("seg", "bbox", "bin")
OWN = {"FILE_SAVE_PATH", "LOSS_WEIGHTS", "METHOD"}
FINER = {"STEM", "WIDTHS"}  # what MTL_OEQ adds to the encoder


@pytest.mark.parametrize("script", [*ABLATIONS, "examples.weighting", "examples.breed"])
def test_constants_are_those_of_main(script):
    settings = constants(importlib.import_module(script))
    main = constants(MAIN)
    assert set(main) - set(settings) <= {"DROPOUT"}  # without a class head
    own = OWN | FINER if script == "MTL_OEQ" else OWN
    assert {k: v for k, v in settings.items() if k not in own} == {
        k: main[k] for k in settings if k not in own
    }


@pytest.mark.parametrize("script", ABLATIONS)
def test_tasks_weights_encoder_and_decoder_are_those_of_main(script):
    module = importlib.import_module(script)
    assert list(module.TASKS) == ABLATIONS[script]
    assert all(module.TASKS[task] == MAIN.TASKS[task] for task in module.TASKS)
    weights = MAIN.weighting().weights() if script not in REFERENCES else dict.fromkeys(TASKS, 1.0)
    assert module.weighting().weights() == {task: weights[task] for task in module.TASKS}
    for part in ("encoder", *module.TASKS) if script != "MTL_OEQ" else ():
        ours, mains = (getattr(m.Network(), part) for m in (module, MAIN))
        assert str(ours) == str(mains)


@pytest.mark.parametrize("script", ABLATIONS)
def test_outputs_have_the_documented_shapes(script):
    module = importlib.import_module(script)
    outputs = module.Network()(torch.zeros(2, 3, 64, 96))
    shapes = {"seg": (2, 1, 64, 96), "bbox": (2, 4), "bin": (2,)}
    assert {task: tuple(value.shape) for task, value in outputs.items()} == {
        task: shapes[task] for task in ABLATIONS[script]
    }


def test_oeq_answers_the_same_of_an_image_and_its_mirror_image():
    """The same two views, in the other order."""
    torch.manual_seed(0)
    module = importlib.import_module("MTL_OEQ")
    network = module.Network().eval()
    torch.nn.init.normal_(network.bbox.votes.weight)  # at zero every box is the same
    image = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        plain, flipped = network(image), network(image.flip(3))
        once = network.decode(network.encoder(image))
    for name, output in plain.items():
        torch.testing.assert_close(output, module.TASKS[name].mirror(flipped[name]))
    assert (plain["bbox"] - once["bbox"]).abs().max() > 1e-3


def test_a_box_is_mirrored_by_hand():
    module = importlib.import_module("MTL_OEQ")
    outputs = {
        "seg": torch.tensor([[[[1.0, 2.0, 3.0]]]]),
        "bbox": torch.tensor([[0.25, 0.5, 0.375, 0.75]]),
        "bin": torch.tensor([4.0]),
    }
    tasks = module.TASKS
    found = {name: tasks[name].mirror(output).tolist() for name, output in outputs.items()}
    assert found == {"seg": [[[[3.0, 2.0, 1.0]]]], "bbox": [[0.625, 0.5, 0.75, 0.75]], "bin": [4.0]}
