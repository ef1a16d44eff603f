"""Drawn rooms: depth, normals and classes by hand, and views whose pixels are those of another."""

import numpy as np
import pytest
from cameras import transformed
from nyuv2_source import write_distributed

from parts.drawn_rooms import (
    CLASS_NAMES,
    HUES,
    Box,
    Camera,
    Room,
    draw_camera,
    draw_room,
    draw_view,
    render,
    scenes,
)

BED, CEILING, FLOOR, WALL = map(CLASS_NAMES.index, ("bed", "ceiling", "floor", "wall"))
AHEAD = np.eye(3)  # axes of a camera that looks along the room


def look(axes=AHEAD):
    """A room of 4 x 2.5 x 5 m with a bed 2 m ahead of a camera of 40 x 60 pixels, 1.5 m high."""
    bed = Box(np.array([1.5, -1.0, 3.0]), np.array([2.5, 0.0, 4.0]), BED, np.full(3, 100.0))
    room = Room(np.array([0.0, -2.5, 0.0]), np.array([4.0, 0.0, 5.0]), HUES, [bed])
    return room, Camera((40, 60), 20.0, np.array([2.0, -1.5, 1.0]), axes)


@pytest.mark.parametrize(
    "right, down, label, depth, normal",
    [
        (0.5, 0.5, WALL, 4, (0, 0, -1)),  # the far wall
        (0.5, 19.5, FLOOR, 1.5 / (19.5 / 20), (0, -1, 0)),
        (-0.5, -19.5, CEILING, 1 / (19.5 / 20), (0, 1, 0)),
        (-29.5, 0.5, WALL, 2 / (29.5 / 20), (1, 0, 0)),
        (29.5, 0.5, WALL, 2 / (29.5 / 20), (-1, 0, 0)),
        (-2.5, 8.5, BED, 2, (0, 0, -1)),  # its front, at a height of 65 cm
        (0.5, 4.5, BED, 0.5 / (4.5 / 20), (0, -1, 0)),  # its top, half a metre below the camera
    ],
)
def test_what_a_pixel_sees(right, down, label, depth, normal):
    view = render(*look())
    row, column = round(down + 19.5), round(right + 29.5)
    assert view.classes[row, column] == label
    assert view.depth[row, column] == pytest.approx(depth)
    assert view.normals[row, column] == pytest.approx(normal)


def test_a_camera_that_looks_to_the_right():
    room, camera = look(np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]], float))
    view = render(room, camera)
    assert view.depth[20, 30] == pytest.approx(2)  # the right wall is ahead
    assert view.normals[20, 30] == pytest.approx([0, 0, -1])
    assert view.normals[20, 59] == pytest.approx([-1, 0, 0])  # the near wall is on its right
    assert view.depth[20, 59] == pytest.approx(1 / (29.5 / 20))


def test_what_is_behind_the_camera_is_not_seen():
    view = render(*look(np.diag([-1.0, 1.0, -1.0])))
    assert BED not in view.classes and view.depth[20, 30] == pytest.approx(1)


def drawn(side=(40, 40)):
    rng = np.random.default_rng(5)
    room = draw_room(rng)
    return room, draw_camera(rng, room, side)


@pytest.mark.parametrize(("x", "y"), [(-1, 1), (1, -1), (-1, -1)])
def test_mirrored_views(x, y):
    room, camera = drawn()
    before, after = render(room, camera), render(room, transformed(camera, np.diag([x, y])))
    for name in ("image", "classes", "depth"):
        mirrored = getattr(before, name)[::y, ::x]
        np.testing.assert_allclose(getattr(after, name), mirrored, rtol=1e-6)
    np.testing.assert_allclose(after.normals, before.normals[::y, ::x] * (x, y, 1), atol=1e-9)


def test_a_quarter_turn_takes_what_leans_right_to_what_leans_down():
    room, camera = drawn()
    after = render(room, transformed(camera, [[0, -1], [1, 0]]))  # x, right, goes to y, down
    before = render(room, camera)
    np.testing.assert_allclose(after.depth, np.rot90(before.depth, -1))
    x, y, z = np.moveaxis(np.rot90(before.normals, -1), -1, 0)
    np.testing.assert_allclose(after.normals, np.stack([-y, x, z], -1), atol=1e-9)


def test_a_zoom_divides_the_depth_and_a_shift_moves_it():
    room, camera = drawn((42, 42))
    before, after = render(room, camera), render(room, transformed(camera, 3 * np.eye(2)))
    inner = slice(14, 28)  # three pixels of the zoomed view show one of these
    np.testing.assert_allclose(after.depth[1::3, 1::3], before.depth[inner, inner] / 3)
    np.testing.assert_allclose(after.normals[1::3, 1::3], before.normals[inner, inner], atol=1e-9)
    after = render(room, transformed(camera, np.eye(2), (5, -2)))
    np.testing.assert_allclose(after.depth[:-2, 5:], before.depth[2:, :-5])
    np.testing.assert_allclose(after.normals[:-2, 5:], before.normals[2:, :-5], atol=1e-9)


def test_one_view_after_another_is_one_view():
    room, camera = drawn()
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    twice = transformed(transformed(camera, 1.5 * turn, (3, 1)), [[-1, 0], [0, 1]], (0, 2))
    once = transformed(camera, np.diag([-1, 1]) @ turn * 1.5, (-3, 3))
    for one, other in zip(render(room, twice)[1:], render(room, once)[1:], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_no_camera_sees_a_stretched_image():
    with pytest.raises(AssertionError, match="no camera sees a stretched image"):
        transformed(look()[1], [[2, 0], [0, 1]])


def test_depth_and_normals_of_random_rooms_agree():
    """On a plane n . P is the same for neighbours, but where a surface ends."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        room = draw_room(rng)
        camera = draw_camera(rng, room, (60, 80))
        view = render(room, camera)
        x, y = np.meshgrid(np.arange(80) - 39.5, np.arange(60) - 29.5)
        points = view.depth[..., None] * np.stack([x / 64, y / 64, np.ones_like(x)], -1)
        offset = (points * view.normals).sum(-1)
        assert (offset < 0).all() and np.allclose(np.linalg.norm(view.normals, axis=-1), 1)
        assert np.isclose(offset[:, 1:], offset[:, :-1]).mean() > 0.8
        assert np.isclose(offset[1:], offset[:-1]).mean() > 0.8


def test_samples_have_unknown_pixels_of_each_kind_and_repeat():
    views = [draw_view(0, number, (32, 48)) for number in range(40)]
    for name, blank in (("classes", -1), ("depth", 0), ("normals", 0)):
        unknown = [(getattr(view, name) == blank).reshape(32 * 48, -1).all(1) for view in views]
        shares = np.mean(unknown, axis=1)
        assert (shares == 0).any() and (shares == 1).any() and ((shares > 0) & (shares < 1)).any()
    again = draw_view(0, 7, (32, 48))
    assert all(map(np.array_equal, again, views[7]))
    assert not np.array_equal(again.image, draw_view(1, 7, (32, 48)).image)


def test_arrays_and_files_hold_the_same(tmp_path):
    arrays = scenes(12, 3, (32, 48))
    write_distributed(tmp_path, (12, 1), (32, 48), seed=3)
    for number in range(12):
        read = {k: np.load(tmp_path / "train" / k / f"{number}.npy") for k in ("image", "label")}
        assert np.array_equal(np.rint(read["image"] * 255), arrays["images"][number])
        assert np.array_equal(read["label"], arrays["segments"][number].astype(np.int8))
        for kind, name in (("depth", "depth"), ("normal", "normals")):
            stored = np.load(tmp_path / "train" / kind / f"{number}.npy")
            assert np.array_equal(stored.squeeze(), np.nan_to_num(arrays[name][number]))
    assert len(list((tmp_path / "val" / "image").iterdir())) == 1
