"""The ablations are MTL_main with tasks removed, and nothing else."""

import importlib

import pytest
import torch

from engine.cli import constants

ABLATIONS = {
    "MTL_baseline": ["seg"],
    "MTL_ablation_bbox": ["seg", "bbox"],
    "MTL_ablation_bin": ["seg", "bin"],
    "MTL_OEQ": ["seg", "bbox", "bin"],
}
MAIN = importlib.import_module("MTL_main")
OWN = {"FILE_SAVE_PATH"}


@pytest.mark.parametrize("script", ABLATIONS)
def test_constants_are_those_of_main(script):
    settings = constants(importlib.import_module(script))
    main = constants(MAIN)
    assert set(main) - set(settings) <= {"DROPOUT"}  # without a class head
    assert {k: v for k, v in settings.items() if k not in OWN} == {
        k: main[k] for k in settings if k not in OWN
    }


@pytest.mark.parametrize("script", ABLATIONS)
def test_tasks_weights_encoder_and_decoder_are_those_of_main(script):
    module = importlib.import_module(script)
    assert list(module.TASKS) == ABLATIONS[script]
    assert all(module.TASKS[task] == MAIN.TASKS[task] for task in module.TASKS)
    weights = MAIN.weighting().weights()
    assert module.weighting().weights() == {task: weights[task] for task in module.TASKS}
    for part in ("encoder", "seg"):
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
