"""The experiments are MTL_main with tasks removed or one added, and nothing else."""

import functools

import pytest
import torch

import engine
from engine.settings import constants

REFERENCES = {"examples.bbox_only": ["bbox"], "examples.bin_only": ["bin"]}
ABLATIONS = REFERENCES | {
    "MTL_baseline": ["seg"],
    "MTL_ablation_bbox": ["seg", "bbox"],
    "MTL_ablation_bin": ["seg", "bin"],
    "MTL_OEQ": ["seg", "bbox", "bin"],
}
MORE = {"examples.breed": "breed", "examples.area": "area"}  # the task that they add
SHAPES = {
    "seg": (2, 1, 64, 96), "bbox": (2, 4), "bin": (2,), "breed": (2, 37), "area": (2,),
}  # fmt: skip
OWN = {"FILE_SAVE_PATH", "LOSS_WEIGHTS", "METHOD"}
FINER = {"STEM", "WIDTHS"}  # what MTL_OEQ adds to the encoder


load = functools.cache(engine.load)
main = functools.partial(load, "MTL_main")


@pytest.mark.parametrize("script", [*ABLATIONS, *MORE, "examples.weighting", "examples.border"])
def test_constants_are_those_of_main(script):
    ours, mains = constants(load(script)), constants(main())
    assert set(mains) - set(ours) <= {"DROPOUT"}  # without a class head
    own = OWN | FINER if script == "MTL_OEQ" else OWN
    shared = ours.keys() - own
    assert {name: ours[name] for name in shared} == {name: mains[name] for name in shared}


@pytest.mark.parametrize("script", [*ABLATIONS, *MORE])
def test_tasks_weights_encoder_and_decoder_are_those_of_main(script):
    module, common = load(script), main().TASKS.keys() & load(script).TASKS.keys()
    assert list(module.TASKS) == ABLATIONS.get(script, [*main().TASKS, MORE.get(script)])
    assert all(module.TASKS[task] is main().TASKS[task] for task in common)
    weights = module.weighting().weights()
    assert list(weights) == list(module.TASKS)
    for task in common:
        assert weights[task] == (1.0 if script in REFERENCES else main().LOSS_WEIGHTS[task])
    for part in ("encoder", *common) if script != "MTL_OEQ" else ():
        ours, mains = (getattr(m.Network(), part) for m in (module, main()))
        assert str(ours) == str(mains)
    assert module.augmentation().kinds.keys() == module.TASKS.keys() | (
        {"seg"} if script == "examples.area" else set()
    )


@pytest.mark.parametrize("script", [*ABLATIONS, *MORE])
def test_outputs_have_the_documented_shapes(script):
    outputs = load(script).Network()(torch.zeros(2, 3, 64, 96))
    assert {task: tuple(value.shape) for task, value in outputs.items()} == {
        task: SHAPES[task] for task in load(script).TASKS
    }


def test_border_has_the_network_of_the_baseline_with_three_logits_per_pixel():
    ours, other = load("examples.border").Network(), load("MTL_baseline").Network()
    assert str(ours.encoder) == str(other.encoder)
    assert ours(torch.zeros(2, 3, 64, 96))["seg"].shape == (2, 3, 64, 96)
    assert load("examples.border").weighting().weights() == {"seg": 1.0}


def test_oeq_answers_the_same_of_an_image_and_its_mirror_image():
    """The same two views, in the other order."""
    torch.manual_seed(0)
    module = load("MTL_OEQ")
    network = module.Network().eval()
    torch.nn.init.normal_(network.bbox.votes.weight)  # at zero every box is the same
    image = torch.rand(2, 3, 64, 96) * 255
    with torch.no_grad():
        plain, flipped = network(image), network(image.flip(3))
        once = network.decode(network.encoder(image))
    for name, output in plain.items():
        torch.testing.assert_close(output, module.TASKS[name].mirror(flipped[name]))
    assert (plain["bbox"] - once["bbox"]).abs().max() > 1e-3
