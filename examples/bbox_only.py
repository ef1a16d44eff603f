"""The head box alone: the single-task reference of the box, with MTL_main's encoder and head.

python -m examples.bbox_only --h5-save-path data/pets
"""

from torch import nn

import engine
from engine.tasks import BBOX
from MTL_Utils import FixedWeights
from ResBlock import BoxHead, Encoder

# ---- constants: each has a flag, H5_SAVE_PATH is --h5-save-path; comments are its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/bbox_only"  # folder for weights, history and pictures

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
LOSS_WEIGHTS = {"bbox": 1.0}  # of the tasks in the loss

# network
WIDTHS = (32, 64, 128, 256)  # channels at stride 4, 8, 16, 32
UNITS = 1  # residual units per block

# augmentation
DEGREES = 15.0  # largest rotation, in degrees
SCALE = (0.75, 1.6)  # smallest and largest magnification
STRETCH = 1.2  # largest ratio of the magnifications of width and height
SHIFT = 0.15  # largest shift, of the side
COLOUR = 0.4  # brightness, contrast, saturation: largest change, of 1
ERASE = 0.2  # share of the images that lose a rectangle


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"bbox": (B, 4) xyxy in [0, 1]}; H and W multiples
    of 32.
    """

    def __init__(self, widths=WIDTHS, units=UNITS):
        super().__init__()
        self.encoder = Encoder(widths, units)
        self.stride = self.encoder.stride
        self.bbox = BoxHead(widths[-1])

    def forward(self, image):
        return self.decode(self.encoder(image))

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        return {"bbox": self.bbox(features[-1])}


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "bbox": BBOX,
}


def weighting(loss_weights=LOSS_WEIGHTS):
    """A new loss weighting."""
    return FixedWeights(loss_weights)


if __name__ == "__main__":
    engine.main(__file__)
