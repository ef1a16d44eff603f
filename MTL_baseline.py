"""MTL_baseline: segmentation alone, the reference of the other experiments.

Measured at 128 x 128, 120 epochs, 3 seeds (README.md), on test images: seg IoU 0.794 ± 0.003;
at 256 x 256, one seed: 0.830.

Try `python MTL_baseline.py --demo`; README.md says how to get data.
"""

from torch import nn

import engine
from engine.pictures import draw_seg
from MTL_Utils import (
    FixedWeights,
    Task,
    seg_loss,
    seg_metrics,
)
from ResBlock import Decoder, Encoder

# ---- constants: each has a flag, H5_SAVE_PATH is --h5-save-path; comments are its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/baseline"  # folder for weights, history and pictures

# training
EPOCHS = 250  # passes over the training split
DEMO_EPOCHS = 40  # EPOCHS of --demo
BATCH_SIZE = 32  # images per step, over all processes
LEARNING_RATE = 1e-2  # the peak of the one-cycle schedule
SIDES = (0.5, 0.75, 1.0)  # of training images in equal parts of EPOCHS, times the data's side
WEIGHT_DECAY = 0.2  # decoupled
EMA_DECAY = 0.998  # per step, of the weight average that is validated, tested and saved
CLIP_NORM = 5.0  # largest norm of the gradient
SEED = 0  # of weights, order, augmentation and dropout

# network
WIDTHS = (32, 64, 128, 256)  # channels at stride 4, 8, 16, 32
SIZE = 1  # residual units per block

# augmentation
DEGREES = 15.0  # largest rotation, in degrees
SCALE = (0.75, 1.6)  # smallest and largest magnification
STRETCH = 1.2  # largest ratio of the magnifications of width and height
SHIFT = 0.15  # largest shift, of the side
COLOUR = 0.4  # brightness, contrast, saturation: largest change, of 1
ERASE = 0.2  # share of the images that lose a rectangle


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"seg": (B, 1, H, W) logits};
    H and W multiples of 32.
    """

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(WIDTHS, SIZE)
        self.stride = self.encoder.stride
        self.seg = Decoder(WIDTHS, SIZE)

    def forward(self, image):
        features = self.encoder(image)
        seg = self.seg(features)
        return {
            "seg": seg,
        }


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "seg": Task(seg_loss, seg_metrics, draw_seg),
}


def weighting():
    """A new loss weighting; README.md tells how the numbers were found."""
    return FixedWeights({"seg": 1.0})


if __name__ == "__main__":
    engine.main("MTL_baseline")
