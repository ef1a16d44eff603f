"""A derived target: MTL_main plus the share of the image that the animal covers, computed from the
mask after augmentation, without a file.

python -m examples.area --h5-save-path data/pets
python -m examples.area --demo
"""

import torch
from torch import nn

import engine
from MTL_Utils import BBOX, BIN, SEG, FixedWeights, Task, value_loss, value_metrics
from parts.augment import Augment
from parts.targets import PETS, UNKNOWN, Derived
from ResBlock import BoxHead, ClassHead, Decoder, Encoder, foreground_weights

# ---- constants: each has a flag (H5_SAVE_PATH: --h5-save-path); its comment is its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # data folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/area"  # folder for weights, history and pictures

# training
EPOCHS = 250  # passes over the training split
DEMO_EPOCHS = 40  # number of epochs with --demo
BATCH_SIZE = 32  # images per step, over all processes
LEARNING_RATE = 1e-2  # peak learning rate of the one-cycle schedule
SIDES = (0.5, 0.75, 1.0)  # image sides in equal parts of training, as fractions of the full side
WEIGHT_DECAY = 0.2  # decoupled weight decay, as in AdamW
EMA_DECAY = 0.998  # decay per step of the averaged weights, which are validated, tested and saved
CLIP_NORM = 5.0  # largest gradient norm; larger gradients are scaled down to it
SEED = 0  # random seed

# losses
LOSS_WEIGHTS = {"seg": 1.0, "bbox": 0.3, "bin": 0.2, "area": 1.0}  # weight of each task's loss

# network
WIDTHS = (32, 64, 128, 256)  # channels at stride 4, 8, 16, 32
UNITS = 1  # residual units per block
DROPOUT = 0.3  # dropout probability of the class head's inputs

# augmentation
DEGREES = 15.0  # largest rotation, in degrees
SCALE = (0.75, 1.6)  # smallest and largest magnification
STRETCH = 1.2  # largest factor by which the aspect ratio changes
SHIFT = 0.15  # largest shift, as a share of the image side
COLOUR = 0.4  # largest relative change of brightness, contrast and saturation
ERASE = 0.2  # share of the images in which a rectangle is erased


def area_of(seg):
    """The foreground share of each mask (B, 1, H, W): (B,), NaN if any pixel is unknown."""
    share = (seg == 1).flatten(1).float().mean(1)
    return torch.where((seg == UNKNOWN).flatten(1).any(1), torch.nan, share)


def draw_area(image, value, names):
    """The share in words."""
    return image, "area unknown" if value.isnan().any() else f"area {value.item():.2f}"


AREA = Task(
    Derived(area_of, seg=PETS["seg"]),
    value_loss,
    value_metrics,
    primary="absolute_error",
    higher_is_better=False,
    draw=draw_area,
    describe=lambda output, size, names: {"area": round(output.item(), 4)},
)


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"seg": (B, 1, H, W) logits, "bbox": (B, 4) xyxy in
    [0, 1], "bin": (B,) logits, "area": (B,) in [0, 1]}; H and W multiples of 32.
    """

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(WIDTHS, UNITS)
        self.stride = self.encoder.stride
        self.seg = Decoder(WIDTHS, UNITS)
        self.bbox = BoxHead(WIDTHS[-1])
        self.bin = ClassHead(WIDTHS[-1], DROPOUT)
        self.area = ClassHead(WIDTHS[-1], DROPOUT)

    def forward(self, image):
        return self.decode(self.encoder(image))

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        seg = self.seg(features)
        animal = features[-1], foreground_weights(seg, features[-1])
        return {
            "seg": seg,
            "bbox": self.bbox(features[-1]),
            "bin": self.bin(animal),
            "area": self.area(animal).sigmoid(),
        }


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "seg": SEG,
    "bbox": BBOX,
    "bin": BIN,
    "area": AREA,
}


def weighting():
    """A new loss weighting."""
    return FixedWeights(LOSS_WEIGHTS)


def augmentation():
    """A new augmentation of images and targets."""
    return Augment(TASKS, DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE)


if __name__ == "__main__":
    engine.main(__file__)
