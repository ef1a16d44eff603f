"""A fourth task with a file of its own: MTL_main plus the breed, 37 classes.

python tools/prepare_pets.py --root data --out data/pets_breeds --breeds --add-unboxed
python -m examples.breed --h5-save-path data/pets_breeds
python -m examples.breed --demo
"""

from torch import nn

import engine
from MTL_Utils import BBOX, BIN, SEG, FixedWeights, Task, class_loss, class_metrics
from parts.augment import Augment
from parts.demo_data import make_demo
from parts.targets import Label
from ResBlock import BoxHead, ClassHead, Decoder, Encoder, foreground_weights

# ---- constants: each has a flag (H5_SAVE_PATH: --h5-save-path); its comment is its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # data folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/breed"  # folder for weights, history and pictures

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
LOSS_WEIGHTS = {"seg": 1.0, "bbox": 0.3, "bin": 0.2, "breed": 0.2}  # weight of each task's loss

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


BREED = Task(Label("breeds", classes=37), class_loss, class_metrics, primary="accuracy")


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"seg": (B, 1, H, W) logits, "bbox": (B, 4) xyxy in
    [0, 1], "bin": (B,) logits, "breed": (B, 37) logits}; H and W multiples of 32.
    """

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(WIDTHS, UNITS)
        self.stride = self.encoder.stride
        self.seg = Decoder(WIDTHS, UNITS)
        self.bbox = BoxHead(WIDTHS[-1])
        self.bin = ClassHead(WIDTHS[-1], DROPOUT)
        self.breed = ClassHead(WIDTHS[-1], DROPOUT, classes=37)

    def forward(self, image):
        return self.decode(self.encoder(image))

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        seg = self.seg(features)
        weights = foreground_weights(seg, features[-1])
        return {
            "seg": seg,
            "bbox": self.bbox(features[-1]),
            "bin": self.bin((features[-1], weights)),
            "breed": self.breed((features[-1], weights)),
        }


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "seg": SEG,
    "bbox": BBOX,
    "bin": BIN,
    "breed": BREED,
}


def weighting():
    """A new loss weighting."""
    return FixedWeights(LOSS_WEIGHTS)


def augmentation():
    """A new augmentation of images and targets."""
    return Augment(TASKS, DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE)


def demo(folder):
    """Draw the data of --demo, in which coat and pattern are the breed of a synthetic pet."""
    make_demo(folder, breeds=True)


if __name__ == "__main__":
    engine.main(__file__)
