"""The benchmark of the field: classes, depth and surface normals of every pixel of NYUv2.

    python -m examples.nyuv2 --demo                               synthetic rooms, minutes on a CPU
    python tools/prepare_nyuv2.py --root nyuv2 --out data/nyuv2
    python -m examples.nyuv2 --method cagrad
    python -m examples.nyuv2 --learn depth                        one task alone

docs/nyuv2.md says where to get the data, and what each metric is.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import engine
from dataload import write_split
from MTL_Utils import UNKNOWN, Task, pixel_class_loss, value_loss
from parts.augment import Augment
from parts.drawn_rooms import CLASS_NAMES, scenes
from parts.errors import UserError
from parts.methods import choose
from parts.targets import PixelClasses, PixelValues
from ResBlock import Decoder, Encoder

# ---- constants: each has a flag (H5_SAVE_PATH: --h5-save-path); its comment is its --help ----
# paths
H5_SAVE_PATH = "data/nyuv2"  # data folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/nyuv2"  # folder for weights, history and pictures

# training
EPOCHS = 200  # passes over the training split
DEMO_EPOCHS = 20  # number of epochs with --demo
BATCH_SIZE = 8  # images per step, over all processes
LEARNING_RATE = 1e-2  # peak learning rate of the one-cycle schedule
SIDES = (1.0,)  # image sides as fractions of the full side; a smaller image would look farther away
WEIGHT_DECAY = 0.2  # decoupled weight decay, as in AdamW
EMA_DECAY = 0.998  # decay per step of the averaged weights, which are validated, tested and saved
CLIP_NORM = 5.0  # largest gradient norm; larger gradients are scaled down to it
SEED = 0  # random seed

# losses
LEARN = ("seg", "depth", "normals")  # tasks to learn; the first one chooses the best epoch
LOSS_WEIGHTS = {"seg": 1.0, "depth": 1.0, "normals": 1.0}  # weight of each task's loss
METHOD = "fixed"  # loss weighting: fixed, uncertainty, dwa, pcgrad, ...: see parts/methods.py

# network
WIDTHS = (32, 64, 128, 256)  # channels at stride 4, 8, 16, 32
UNITS = 1  # residual units per block

# augmentation
DEGREES = 5.0  # largest rotation, in degrees
SCALE = (1.0, 1.5)  # smallest and largest magnification
STRETCH = 1.0  # largest factor by which the aspect ratio changes; no camera stretches its image
SHIFT = 0.1  # largest shift, as a share of the image side
COLOUR = 0.4  # largest relative change of brightness, contrast and saturation
ERASE = 0.0  # share of the images in which a rectangle is erased


# ---- segmentation ----


def seg_metrics(logits, target):
    """IoU of each class, and the share of the known pixels that are right, pooled over the split.

    mIoU is the mean of the IoUs over the classes that the split has, or that were predicted.

    Shape: logits (B, 13, H, W), target (B, 1, H, W) -> {name: (B, 2)}.
    """
    target = target[:, 0]
    known = target != UNKNOWN
    predicted = logits.argmax(1).to(torch.uint8).masked_fill(~known, UNKNOWN)
    right = (predicted == target) & known
    found = {"pixel_accuracy": pairs(right, known)}
    for number, name in enumerate(CLASS_NAMES):
        truth = target == number
        found[f"iou_{name}"] = pairs(right & truth, truth | (predicted == number))
    return found


def pairs(numerator, denominator):
    """fp64 (B, 2): the sums over each sample."""
    return torch.stack([x.flatten(1).sum(1).double() for x in (numerator, denominator)], dim=1)


# ---- depth ----


def depth_metrics(depth, target):
    """Mean absolute error, in metres, and mean error relative to the true depth, over all known
    pixels of the split.

    Shape: depth (B, 1, H, W), target (B, 1, H, W) -> {name: (B, 2)}.
    """
    known = ~target.isnan()
    target = torch.where(known, target, 1.0)
    error = (depth.float() - target).abs() * known
    relative = error / target.clamp(min=1e-3)
    return {"absolute_error": pairs(error, known), "relative_error": pairs(relative, known)}


# ---- surface normals ----


def normals_loss(normals, target):
    """1 - cosine of the angle, the mean over the known pixels of a sample.

    Shape: normals (B, 3, H, W) of any length, target unit vectors (B, 3, H, W), NaN unknown ->
    (B,).
    """
    known = ~target.isnan().any(1)  # (B, H, W)
    target = torch.where(known[:, None], target, 0.0)
    cosine = (F.normalize(normals.float(), dim=1) * target).sum(1)
    return ((1 - cosine) * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def normals_metrics(normals, target):
    """Mean angle in degrees, and the shares of pixels within 11.25, 22.5 and 30 degrees, over all
    known pixels of the split; and the median angle of an image, as a mean over the images.

    A median over all pixels of a split is no ratio of sums. MTAN and the papers that follow it take
    the mean of the medians of the test batches; here a batch is one image. LibMTL takes the median
    over all pixels at once, which is a different number.

    Shape: normals (B, 3, H, W), target (B, 3, H, W) -> {name: (B, 2)}.
    """
    known = ~target.isnan().any(1)
    normals, target = normals.float(), torch.where(known[:, None], target, 0.0)
    cross = torch.linalg.vector_norm(torch.linalg.cross(normals, target, dim=1), dim=1)
    cross = cross.clamp(min=1e-12)  # no direction is at 90 degrees to all
    angle = torch.atan2(cross, (normals * target).sum(1)).rad2deg()  # exact near 0, unlike acos
    found = {"mean_angle": pairs(angle * known, known)}
    found["median_angle"] = pairs(*medians(angle, known))
    for name, limit in {"within_11": 11.25, "within_22": 22.5, "within_30": 30.0}.items():
        found[name] = pairs(angle < limit, known)
    return found


def medians(values, known):
    """(B, 1) medians of values (B, H, W) over the known pixels, and (B, 1) whether there are any.

    Without torch.median, which is not deterministic on a GPU.
    """
    ordered = values.masked_fill(~known, torch.inf).flatten(1).sort(1).values
    count = known.flatten(1).sum(1, keepdim=True)
    middle = torch.cat([(count - 1).clamp(min=0) // 2, count // 2], dim=1)
    median = ordered.gather(1, middle).mean(1, keepdim=True)
    return torch.where(count > 0, median, 0.0), count > 0


# ---- augmentation of geometry: `linear` maps offsets in the image, see parts/targets.py ----


def move_depth(depth, linear):
    """Depth (B, 1, H, W) of an image magnified s times: divided by s, as usual.

    What looks s times as large looks s times as near. (This holds for objects, not for a room: no
    camera elsewhere in it sees a magnified image.)
    """
    return depth / torch.linalg.det(linear).abs().sqrt()[:, None, None, None]


def move_normals(normals, linear):
    """Normals (B, 3, H, W), x right, y down, z ahead: turned or mirrored with the image.

    A zoom leaves them unchanged, and so does a stretch, like that of a lens: the columns of
    `linear` are orthogonal, in the directions of the turned axes.
    """
    flat = torch.einsum("bij,bjhw->bihw", F.normalize(linear, dim=1), normals[:, :2])
    return torch.cat([flat, normals[:, 2:]], dim=1)


def mirror_normals(normals):
    """Normals of an image flipped left to right -> those of the image."""
    return normals.flip(3) * normals.new_tensor([-1.0, 1.0, 1.0])[:, None, None]


# ---- tasks: the first one chooses the best epoch; references are labels in tools/compare.py ----
everything = {
    "seg": Task(
        target=PixelClasses("segments", classes=len(CLASS_NAMES), outside=UNKNOWN),
        loss=pixel_class_loss,
        metrics=seg_metrics,
        primary="miou",
        means={"miou": tuple(f"iou_{name}" for name in CLASS_NAMES)},
        counted=("miou", "pixel_accuracy"),
        reference="only_seg",
    ),
    "depth": Task(
        target=PixelValues("depth", move=move_depth),
        loss=value_loss,
        metrics=depth_metrics,
        primary="absolute_error",
        higher_is_better=False,
        lower_is_better=("relative_error",),
        counted=("absolute_error", "relative_error"),
        reference="only_depth",
    ),
    "normals": Task(
        target=PixelValues("normals", channels=3, move=move_normals),
        loss=normals_loss,
        metrics=normals_metrics,
        primary="mean_angle",
        higher_is_better=False,
        lower_is_better=("median_angle",),
        counted=("mean_angle", "median_angle", "within_11", "within_22", "within_30"),
        reference="only_normals",
        mirror=mirror_normals,
    ),
}
if unknown := [name for name in LEARN if name not in everything]:
    raise UserError(f"--learn: expected some of {', '.join(everything)}, found {unknown[0]}")
TASKS = {name: everything[name] for name in LEARN}


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> those in LEARN of {"seg": (B, 13, H, W) logits,
    "depth": (B, 1, H, W) in metres, "normals": (B, 3, H, W) of length 1}; H and W multiples of 32.
    """

    def __init__(self):
        super().__init__()
        channels = {"seg": len(CLASS_NAMES), "depth": 1, "normals": 3}
        self.encoder = Encoder(WIDTHS, UNITS)
        self.stride = self.encoder.stride
        decoders = {name: Decoder(WIDTHS, UNITS, channels=channels[name]) for name in TASKS}
        self.decoders = nn.ModuleDict(decoders)

    def forward(self, image):
        return self.decode(self.encoder(image))

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        outputs = {name: decoder(features) for name, decoder in self.decoders.items()}
        if "normals" in outputs:
            outputs["normals"] = F.normalize(outputs["normals"].float(), dim=1)
        return outputs


def weighting():
    """A new loss weighting."""
    return choose(METHOD, {name: LOSS_WEIGHTS[name] for name in TASKS})


def augmentation():
    """A new augmentation of images and targets."""
    return Augment(TASKS, DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE)


def demo(folder):
    """Write synthetic rooms, 64 x 96 pixels, to `folder`/{train,val,test}."""
    names = {"segments": CLASS_NAMES}
    for seed, (split, count) in enumerate({"train": 256, "val": 48, "test": 48}.items()):
        write_split(Path(folder) / split, scenes(count, seed), {"source": "drawn rooms"}, names)


if __name__ == "__main__":
    engine.main(__file__)
