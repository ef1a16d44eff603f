"""Three classes per pixel: background, pet, and the border between them, from Oxford-IIIT Pet.

python tools/prepare_pets.py --root data --out data/pets_border3 --border class --add-unboxed
python -m examples.border --h5-save-path data/pets_border3
python -m examples.border --demo
"""

import h5py
import torch
import torch.nn.functional as F
from torch import nn

import engine
from dataload import SPLITS
from MTL_Utils import FixedWeights, Task, pixel_class_loss, pixel_class_metrics
from parts.augment import Augment
from parts.demo_data import make_demo
from parts.targets import PixelClasses
from ResBlock import Decoder, Encoder

# ---- constants: each has a flag (H5_SAVE_PATH: --h5-save-path); its comment is its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # data folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/border"  # folder for weights, history and pictures

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
LOSS_WEIGHTS = {"seg": 1.0}  # weight of each task's loss

# network
WIDTHS = (32, 64, 128, 256)  # channels at stride 4, 8, 16, 32
UNITS = 1  # residual units per block

# augmentation
DEGREES = 15.0  # largest rotation, in degrees
SCALE = (0.75, 1.6)  # smallest and largest magnification
STRETCH = 1.2  # largest factor by which the aspect ratio changes
SHIFT = 0.15  # largest shift, as a share of the image side
COLOUR = 0.4  # largest relative change of brightness, contrast and saturation
ERASE = 0.2  # share of the images in which a rectangle is erased


class_names = ("background", "pet", "border")  # in lower case, so it has no flag
SEG = Task(
    PixelClasses("masks", classes=3, names=class_names),
    pixel_class_loss,
    pixel_class_metrics,
    primary="miou",
    means={"miou": ("iou_0", "iou_1", "iou_2")},
)


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"seg": (B, 3, H, W) logits};
    H and W multiples of 32.
    """

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(WIDTHS, UNITS)
        self.stride = self.encoder.stride
        self.seg = Decoder(WIDTHS, UNITS, channels=3)

    def forward(self, image):
        return self.decode(self.encoder(image))

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        seg = self.seg(features)
        return {
            "seg": seg,
        }


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "seg": SEG,
}


def weighting():
    """A new loss weighting."""
    return FixedWeights(LOSS_WEIGHTS)


def augmentation():
    """A new augmentation of images and targets."""
    return Augment(TASKS, DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE)


def demo(folder):
    """Draw the data of --demo, with a border of five pixels around the synthetic pets."""
    make_demo(folder)
    for split in SPLITS:
        with h5py.File(folder / split / "masks.h5", "r+") as file:
            pet = torch.from_numpy(file["masks"][..., 0])[:, None].float()  # (N, 1, H, W)
            wide, narrow = F.max_pool2d(pet, 5, 1, 2), 1 - F.max_pool2d(1 - pet, 5, 1, 2)
            file["masks"][...] = (pet + (2 - pet) * (wide > narrow)).byte()[:, 0, :, :, None]


if __name__ == "__main__":
    engine.main(__file__)
