"""The class alone: the single-task reference of the class, with MTL_main's encoder and head.

Without a mask to look under, the head takes the plain mean of the features.

    python -m examples.bin_only --h5-save-path data/pets
"""

import torch
from torch import nn

import engine
from engine.tasks import BIN
from MTL_Utils import FixedWeights
from ResBlock import ClassHead, Encoder

# ---- constants: each has a flag, H5_SAVE_PATH is --h5-save-path; comments are its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/bin_only"  # folder for weights, history and pictures

# training
EPOCHS = 250  # passes over the training split
DEMO_EPOCHS = 40  # EPOCHS of --demo
BATCH_SIZE = 32  # images per step, over all processes
LEARNING_RATE = 1e-2  # the peak of the one-cycle schedule
SIDES = (0.5, 0.75, 1.0)  # progressive resizing: one share of the side per equal part of EPOCHS
WEIGHT_DECAY = 0.2  # decoupled
EMA_DECAY = 0.998  # per step, of the weight average that is validated, tested and saved
CLIP_NORM = 5.0  # largest norm of the gradient
SEED = 0  # of weights, order, augmentation and dropout

# losses
LOSS_WEIGHTS = {"bin": 1.0}  # of the tasks in the loss

# network
WIDTHS = (32, 64, 128, 256)  # channels at stride 4, 8, 16, 32
UNITS = 1  # residual units per block
DROPOUT = 0.3  # before the class logit

# augmentation
DEGREES = 15.0  # largest rotation, in degrees
SCALE = (0.75, 1.6)  # smallest and largest magnification
STRETCH = 1.2  # largest ratio of the magnifications of width and height
SHIFT = 0.15  # largest shift, of the side
COLOUR = 0.4  # brightness, contrast, saturation: largest change, of 1
ERASE = 0.2  # share of the images that lose a rectangle


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"bin": (B,) logits}; H and W multiples of 32."""

    def __init__(self, widths=WIDTHS, units=UNITS, dropout=DROPOUT):
        super().__init__()
        self.encoder = Encoder(widths, units)
        self.stride = self.encoder.stride
        self.bin = ClassHead(widths[-1], dropout)

    def forward(self, image):
        return self.decode(self.encoder(image))

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        everywhere = torch.ones_like(features[-1][:, :1])
        return {"bin": self.bin(features[-1], everywhere)}


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "bin": BIN,
}


def weighting(loss_weights=LOSS_WEIGHTS):
    """A new loss weighting."""
    return FixedWeights(loss_weights)


if __name__ == "__main__":
    engine.main(__file__)
