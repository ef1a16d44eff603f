"""examples/nyuv2.py: losses and metrics by hand, augmentation against computed views, and runs.

The runs train on drawn rooms with unknown pixels of each kind, and with samples of which a kind is
not known at all.
"""

import math
import signal
import socket

import numpy as np
import pytest
import torch
from running import ROOT, Process, history, is_like, run

import engine.run
from benchmarks import dense_speed
from dataload import H5Dataset, write_split
from engine.processes import Processes
from engine.script import parse
from engine.setup import build, open_data
from examples import nyuv2
from parts.augment import Augment
from parts.drawn_rooms import (
    CLASS_NAMES,
    draw_camera,
    draw_room,
    render,
    scenes,
    transformed,
    write_distributed,
)
from tools import prepare_nyuv2

SCRIPT, SIDE = "examples/nyuv2", (32, 64)
TARGETS = {name: task.target for name, task in nyuv2.everything.items()}
NAN = math.nan


def ratios(task, output, target):
    """The metrics of a batch, as the run computes them for a split."""
    task = nyuv2.everything[task]
    sums = {name: table.sum(0) for name, table in task.metrics(output, target).items()}
    return task.ratios(sums)


def normal(x, y, z):
    return torch.tensor([x, y, z], dtype=torch.float32)[:, None]


# ------------------------------------------------------------------------------------- by hand


def test_segmentation_of_four_pixels():
    """Class 0 where class 0 is, twice; class 2 where class 1 is; one pixel unknown."""
    logits = torch.zeros(1, 13, 1, 4)
    for pixel, number in enumerate((0, 0, 2, 5)):
        logits[0, number, 0, pixel] = 2.0
    target = torch.tensor([0, 0, 1, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    found = ratios("seg", logits, target)
    assert found["pixel_accuracy"] == pytest.approx(2 / 3)
    assert (found["iou_bed"], found["iou_books"], found["iou_ceiling"]) == (1, 0, 0)
    assert math.isnan(found["iou_furniture"])  # was predicted for the unknown pixel only
    assert found["miou"] == pytest.approx(1 / 3)
    total = 12 + math.exp(2)
    expected = (2 * (math.log(total) - 2) + math.log(total)) / 3
    assert nyuv2.seg_loss(logits, target).tolist() == pytest.approx([expected])


def test_iou_is_pooled_over_the_split():
    """1 of 2 pixels and 3 of 3: 4/5, not the mean of the images' IoUs."""
    logits = torch.zeros(2, 13, 1, 3)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = logits[1, 0] = 1.0
    target = torch.tensor([[0, 0, 255], [0, 0, 0]], dtype=torch.uint8).view(2, 1, 1, 3)
    assert ratios("seg", logits, target)["iou_bed"] == pytest.approx(4 / 5)


def test_depth_of_three_pixels():
    depth = torch.tensor([[1.5, 4.0, 9.0]]).view(1, 1, 1, 3)
    target = torch.tensor([[1.0, 5.0, NAN]]).view(1, 1, 1, 3)
    found = ratios("depth", depth, target)
    assert found["absolute_error"] == pytest.approx((0.5 + 1) / 2)
    assert found["relative_error"] == pytest.approx((0.5 / 1 + 1 / 5) / 2)
    assert nyuv2.depth_loss(depth, target).tolist() == pytest.approx([0.75])


def test_normals_of_five_pixels():
    """Angles of 0, 10, 20, 25 and 90 degrees; the sixth is not known; no length matters."""
    angles = [math.radians(degrees) for degrees in (0, 10, 20, 25, 90, 0)]
    output = torch.stack([normal(3 * math.sin(a), 0, -3 * math.cos(a)) for a in angles], 2)
    target = torch.stack([normal(0, 0, -1)] * 5 + [normal(NAN, NAN, NAN)], 2)
    output, target = output[None], target[None]
    found = ratios("normals", output, target)
    assert found["mean_angle"] == pytest.approx(145 / 5, rel=1e-5)
    assert found["median_angle"] == pytest.approx(20, rel=1e-5)
    assert (found["within_11"], found["within_22"], found["within_30"]) == (0.4, 0.6, 0.8)
    expected = 1 - sum(math.cos(a) for a in angles[:5]) / 5
    assert nyuv2.normals_loss(output, target).tolist() == pytest.approx([expected], rel=1e-5)


def test_the_median_is_that_of_each_image_and_of_two_middle_pixels_their_mean():
    angles = torch.tensor([[[10.0, 20.0, 40.0, 70.0]], [[1.0, 2.0, 9.0, 3.0]], [[5.0] * 4]])
    known = torch.tensor([[[1, 1, 1, 1]], [[1, 1, 1, 0]], [[0, 0, 0, 0]]]).bool()
    median, there = nyuv2.medians(angles, known)
    assert median.tolist() == [[30], [2], [0]] and there.tolist() == [[True], [True], [False]]


def test_an_exact_answer_has_no_angle_and_none_at_all_is_at_right_angles():
    target = torch.nn.functional.normalize(torch.randn(1, 3, 8, 8), dim=1)
    assert ratios("normals", 0.01 * target, target)["mean_angle"] < 1e-3
    assert ratios("normals", 0 * target, target)["mean_angle"] == pytest.approx(90)


@pytest.mark.parametrize("task", TARGETS)
def test_what_is_unknown_has_no_loss_no_gradient_and_no_vote(task):
    torch.manual_seed(0)
    kind, channels = TARGETS[task], {"seg": 13, "depth": 1, "normals": 3}[task]
    known = {
        "seg": torch.randint(0, 13, (1, 1, 4, 6), dtype=torch.uint8),
        "depth": torch.rand(1, 1, 4, 6) + 1,
        "normals": torch.nn.functional.normalize(torch.randn(1, 3, 4, 6), dim=1),
    }[task]
    unknown = kind.batch(kind.unknown(1, (4, 6)))
    half = torch.cat([known[..., :3], unknown[..., 3:]], dim=3)
    target = torch.cat([known, half, unknown])
    output = torch.randn(3, channels, 4, 6, requires_grad=True)
    losses = nyuv2.everything[task].loss(output, target)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and losses.isfinite().all() and losses[2] == 0
    assert (output.grad[0] != 0).any() and (output.grad[1, ..., :3] != 0).any()
    assert (output.grad[1, ..., 3:] == 0).all() and (output.grad[2] == 0).all()
    alone = nyuv2.everything[task].loss(output[1:2, ..., :3], known[..., :3])
    torch.testing.assert_close(losses[1:2], alone)
    for name, table in nyuv2.everything[task].metrics(output, target).items():
        assert table.dtype == torch.float64 and table.isfinite().all() and name
        assert table[2].tolist() == [0, 0]
        own = nyuv2.everything[task].metrics(output[1:2, ..., :3], known[..., :3])[name]
        torch.testing.assert_close(table[1:2], own, rtol=1e-6, atol=1e-9)


# -------------------------------------------------------------- augmentation of scenes' geometry


class Recorded(Augment):
    """An augmentation that keeps its maps."""

    def draw_affine(self, *arguments):
        self.maps = super().draw_affine(*arguments)
        return self.maps


def augmented(view, count, **limits):
    """(targets, maps (B, 3, 3)) of copies of a View that augmentation moves."""
    limits = {"degrees": 0, "scale": (1, 1), "stretch": 1, "shift": 0} | limits
    augment = Recorded(nyuv2.everything, **limits, colour=0, erase=0)
    arrays = {
        "seg": torch.from_numpy(view.classes.astype(np.uint8))[None],
        "depth": torch.from_numpy(view.depth).float()[None],
        "normals": torch.from_numpy(view.normals).float().permute(2, 0, 1),
    }
    targets = {name: array[None].repeat(count, 1, 1, 1) for name, array in arrays.items()}
    images = torch.from_numpy(view.image).permute(2, 0, 1)[None].repeat(count, 1, 1, 1)
    _, targets = augment(images, targets, torch.Generator().manual_seed(0))
    return targets, augment.maps


def computed(room, camera, maps):
    """The View of a camera that sees what a map of [-1, 1] coordinates makes of the image."""
    half = np.array(camera.side[::-1]) / 2
    maps = maps.double().numpy()
    linear = maps[:2, :2] * half[:, None] / half
    return render(room, transformed(camera, linear, maps[:2, 2] * half))


def agreement(targets, number, view):
    """{task: share of the known pixels that are as computed} of one sample."""
    seg, depth, normals = (targets[task][number].numpy() for task in TARGETS)
    known = seg[0] != 255
    assert np.array_equal(known, ~np.isnan(depth[0])) and known.mean() > 0.2
    cosine = (np.moveaxis(normals, 0, -1) * view.normals).sum(-1)[known]
    return {
        "seg": (seg[0] == view.classes)[known].mean(),
        "depth": np.isclose(depth[0], view.depth, rtol=0.02)[known].mean(),
        "normals": (cosine > 1 - 1e-5).mean(),
    }


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(2)
    room = draw_room(rng)
    return room, draw_camera(rng, room, (96, 128))


@pytest.mark.parametrize(
    "limits",
    [
        {"degrees": 180},
        {"scale": (0.6, 2)},
        {"shift": 0.3},
        {"degrees": 30, "scale": (1, 1.5), "shift": 0.1},
    ],
)
def test_augmentation_gives_what_the_moved_camera_sees(seen, limits):
    """But for half a pixel at the edges of things; half of the samples are flipped too."""
    room, camera = seen
    targets, maps = augmented(render(room, camera), 8, **limits)
    assert {True, False} == set((torch.linalg.det(maps) < 0).tolist())
    for number in range(8):
        shares = agreement(targets, number, computed(room, camera, maps[number]))
        assert min(shares.values()) > 0.95, (number, shares)


def test_a_flip_is_exact(seen):
    room, camera = seen
    view = render(room, camera)
    targets, maps = augmented(view, 8)
    flipped = (maps[:, 0, 0] < 0).tolist()
    assert {True, False} == set(flipped)
    for number, is_flipped in enumerate(flipped):
        expected = computed(room, camera, maps[number])
        assert np.array_equal(targets["seg"][number, 0], expected.classes)
        np.testing.assert_allclose(targets["depth"][number, 0], expected.depth, rtol=1e-6)
        found = targets["normals"][number].permute(1, 2, 0)
        np.testing.assert_allclose(found, expected.normals, atol=1e-6)
        x = view.normals[:, ::-1, 0] * -1 if is_flipped else view.normals[..., 0]
        np.testing.assert_allclose(found[..., 0], x, atol=1e-6)


def test_a_stretch_turns_normals_of_unit_length_and_keeps_the_area_of_the_zoom():
    turn = torch.tensor([[[0.6, -0.8], [0.8, 0.6]]])
    linear = turn @ torch.diag(torch.tensor([-2.0, 0.5]))
    normals = torch.tensor([0.36, 0.48, -0.8]).view(1, 3, 1, 1)
    found = nyuv2.move_normals(normals, linear).flatten()
    expected = (turn[0] @ torch.tensor([-0.36, 0.48])).tolist()
    assert found.tolist() == pytest.approx([*expected, -0.8])
    assert nyuv2.move_depth(torch.full((1, 1, 1, 1), 3.0), 4 * linear).item() == pytest.approx(0.75)


def test_normals_of_a_mirrored_image_are_mirrored_back():
    rng = np.random.default_rng(0)
    room = draw_room(rng)
    camera = draw_camera(rng, room, (32, 32))
    plain, flipped = (
        torch.from_numpy(render(room, one).normals).permute(2, 0, 1)[None]
        for one in (camera, transformed(camera, [[-1, 0], [0, 1]]))
    )
    torch.testing.assert_close(nyuv2.everything["normals"].mirror(flipped), plain)


# ------------------------------------------------------------------------------ data and runs


def test_the_network_answers_in_the_units_of_the_targets():
    torch.manual_seed(0)
    outputs = nyuv2.Network().eval()(torch.rand(2, 3, 64, 96) * 255)
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "seg": (2, 13, 64, 96),
        "depth": (2, 1, 64, 96),
        "normals": (2, 3, 64, 96),
    }
    lengths = torch.linalg.vector_norm(outputs["normals"], dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """12, 5 and 7 drawn rooms of 32 x 64 pixels."""
    folder = tmp_path_factory.mktemp("rooms") / "data"
    for seed, (split, count) in enumerate({"train": 12, "val": 5, "test": 7}.items()):
        arrays = scenes(count, seed, SIDE)
        write_split(folder / split, arrays, {"source": "test"}, {"segments": CLASS_NAMES})
    return folder


def test_what_prepare_nyuv2_writes_is_what_the_example_reads(tmp_path):
    """The same scenes, written by the tool and by the demo, within 1 mm and 0.1 degrees."""
    write_distributed(tmp_path / "nyuv2", (6, 2), SIDE)
    flags = ["--root", str(tmp_path / "nyuv2"), "--out", str(tmp_path / "data"), "--val-is-test"]
    assert prepare_nyuv2.main(flags) == 0
    write_split(tmp_path / "drawn" / "train", scenes(6, 0, SIDE), {}, {"segments": CLASS_NAMES})
    one, other = (H5Dataset("train", tmp_path / f, TARGETS) for f in ("data", "drawn"))
    assert one.class_names["seg"] == CLASS_NAMES
    for name in TARGETS:
        assert torch.equal(one.known[name], other.known[name])
    images, targets = one[list(range(6))]
    drawn_images, drawn = other[list(range(6))]
    assert torch.equal(images, drawn_images) and torch.equal(targets["seg"], drawn["seg"])
    assert torch.equal(targets["depth"].isnan(), drawn["depth"].isnan())
    assert (targets["depth"] - drawn["depth"]).abs().nan_to_num().max() < 1e-3
    assert torch.equal(targets["normals"].isnan(), drawn["normals"].isnan())
    found = ratios("normals", targets["normals"].nan_to_num(), drawn["normals"])
    assert found["mean_angle"] < 0.01


def test_the_demo_has_something_of_each_kind_to_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(nyuv2, "scenes", lambda count, seed: scenes(count // 8, seed, SIDE))
    nyuv2.demo(tmp_path)
    for split, count in (("train", 32), ("val", 6), ("test", 6)):
        dataset = H5Dataset(split, tmp_path, TARGETS)
        assert len(dataset) == count and all(dataset.known[name].any() for name in TARGETS)
        assert not dataset.complete


@pytest.mark.parametrize("method", nyuv2.weightings)
def test_every_weighting_learns_from_partly_known_batches(rooms, method):
    """Two steps, of which the second has nothing but depth."""
    flags = ["--h5-save-path", str(rooms), "--batch-size", "4", "--method", method]
    widths = ["--widths", "8", "8", "16", "16"]
    script, settings, options = parse(ROOT / f"{SCRIPT}.py", [*flags, *widths])
    data = open_data(rooms, script.module.TASKS)["train"]
    trainer = build(script, settings, options, data, Processes({}))
    trainer.step.train()
    images, targets = data[[0, 1, 2, 3]]
    row = trainer.learn(images, targets, torch.Generator().manual_seed(0))
    assert row.isfinite().all() and (row[:6] > 0).all()
    for name in ("seg", "normals"):
        kind = TARGETS[name]
        targets[name] = kind.batch(kind.unknown(4, SIDE))
    row = trainer.learn(images, targets, torch.Generator().manual_seed(1))
    assert row.isfinite().all() and row[[0, 2, 3, 5]].tolist() == [0] * 4 and row[1] > 0
    assert all(p.isfinite().all() for p in trainer.network.parameters())


def test_a_run_resumes_bit_for_bit(rooms, tmp_path, monkeypatch):
    flags = ["--method", "cagrad"]
    run(SCRIPT, rooms, tmp_path / "whole", *flags)
    assert all(map(math.isfinite, history(tmp_path / "whole", "nyuv2")["test"].values()))
    original, steps = engine.run.Run.pause, []

    def pause(self):
        steps.append(1)
        if len(steps) == 5:
            signal.raise_signal(signal.SIGTERM)
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(engine.run.Run, "pause", pause)
        run(SCRIPT, rooms, tmp_path / "parts", *flags, code=143)
    run(SCRIPT, rooms, tmp_path / "parts", *flags, "--resume")
    assert is_like(tmp_path / "whole", tmp_path / "parts", "nyuv2")


def test_two_processes_train_together(rooms, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in ("0", "1"):
        place = address | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        flags = ("--method", "pcgrad")
        processes.append(Process(SCRIPT, rooms, tmp_path / "out", *flags, environment=place))
    ends = [process.wait() for process in processes]
    assert [code for code, _ in ends] == [0, 0] and "2 process(es)" in ends[0][1], ends
    record = history(tmp_path / "out", "nyuv2")
    for name in TARGETS:
        assert all(map(math.isfinite, record["train"][f"{name}_loss"]))
    assert len(record["test_rows"]["normals_mean_angle"]) == 7


def test_one_task_alone_needs_one_file(rooms, tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for name in ("images", "depth"):
            (tmp_path / "data" / split / f"{name}.h5").symlink_to(rooms / split / f"{name}.h5")
    run(SCRIPT, tmp_path / "data", tmp_path / "out", "--learn", "depth")
    record = history(tmp_path / "out", "nyuv2")
    assert list(record["tasks"]) == ["depth"]
    assert record["tasks"]["depth"]["reference"] == "only_depth"


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--method", "gradnorm"], "--method: expected one of fixed, uncertainty"),
        (["--learn", "seg", "dpeth"], "--learn: expected some of seg, depth, normals, found dpeth"),
        (
            ["--method", "uncertainty", "--loss-weights", "depth=0"],
            "--loss-weights: expected numbers above 0 with --method uncertainty, found {",
        ),
    ],
)
def test_wrong_settings(rooms, tmp_path, flags, expected):
    printed = run(SCRIPT, rooms, tmp_path / "out", *flags, code=2)
    assert expected in printed and printed.count("\n") == 1


def constant_answers(train, targets):
    """{task: output}: the commonest class, the median depth and the mean normal of train."""
    _, known = train[list(range(len(train)))]
    count, (height, width) = len(targets["seg"]), train.side
    classes = torch.bincount(known["seg"].flatten().long(), minlength=256)[:13]
    seg = torch.zeros(count, 13, height, width)
    seg[:, classes.argmax()] = 1
    median = known["depth"].nanmedian().item()
    mean = known["normals"].nanmean((0, 2, 3)).view(1, 3, 1, 1).expand(count, 3, height, width)
    return {"seg": seg, "depth": torch.full((count, 1, height, width), median), "normals": mean}


def test_training_beats_constant_answers_in_every_metric(tmp_path):
    for seed, (split, count) in enumerate({"train": 48, "val": 8, "test": 12}.items()):
        arrays = scenes(count, seed, SIDE)
        write_split(tmp_path / "data" / split, arrays, {}, {"segments": CLASS_NAMES})
    flags = ["--widths", "16", "16", "32", "32", "--learning-rate", "0.02", "--ema-decay", "0.9"]
    run(SCRIPT, tmp_path / "data", tmp_path / "out", "--epochs", "16", *flags)
    found = history(tmp_path / "out", "nyuv2")["test"]
    train, test = (H5Dataset(split, tmp_path / "data", TARGETS) for split in ("train", "test"))
    _, targets = test[list(range(len(test)))]
    better_if_less = ("error", "angle")
    for name, output in constant_answers(train, targets).items():
        for metric, constant in ratios(name, output, targets[name]).items():
            if metric.startswith("iou_"):
                continue
            sign = -1 if metric.endswith(better_if_less) else 1
            assert sign * found[f"{name}_{metric}"] > sign * constant, metric


def test_the_table_of_the_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(dense_speed, "alone", dense_speed.measure)
    flags = ["--side", "32", "32", "--batch-size", "2", "--steps", "1", "--methods", "cagrad"]
    assert dense_speed.main([*flags, "--device", "cpu"]) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if "| " in row][2:]
    assert [row[0] for row in rows] == ["| plain", "| cagrad"]
    assert all(float(row[1]) > 0 for row in rows)
