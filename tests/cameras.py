"""Cameras that see a drawn room as augmentation shows its picture."""

import numpy as np


def transformed(camera, linear, shift=(0.0, 0.0)):
    """The camera that sees the scene where an affine map of the image would put it.

    A pixel's offset from the centre of the image, (x, y), goes to linear @ (x, y) + shift. A flip
    makes a camera of the mirrored room, a turn rolls the camera, a zoom s multiplies its focal
    length by s. The depth is then divided by s, as usual in training on depth: things look as large
    as they would to the old camera at that depth. The normals are those of the scene.

    Args:
        linear: (2, 2), s times an orthogonal matrix.
        shift: x and y in pixels.
    """
    linear = np.asarray(linear, float)
    zoom = np.sqrt(abs(np.linalg.det(linear)))
    turn = np.eye(3)
    turn[:2, :2] = linear / zoom
    assert np.allclose(turn @ turn.T, np.eye(3), atol=1e-5), "no camera sees a stretched image"
    return camera._replace(
        focal=camera.focal * zoom,
        axes=turn @ camera.axes,
        centre=linear @ camera.centre + shift,
        zoom=camera.zoom * zoom,
    )
