"""The three tasks on a torchvision encoder pre-trained on ImageNet, with the decoder and the heads
of MTL_OEQ.

    python -m examples.pretrained --h5-save-path data/pets
    python -m examples.pretrained --h5-save-path data/pets --backbone resnet34
    python -m examples.pretrained --h5-save-path data/pets --backbone-weights mobilenet_v2.pt

The first command downloads the weights once. With --backbone-weights, when resuming a run, and when
opening a trained network, no internet is needed.
"""

import difflib
import os
from pathlib import Path

import torch
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import engine
from MTL_Utils import BBOX, BIN, SEG, FixedWeights
from parts.augment import Augment
from parts.errors import SettingError, UserError, one_line
from parts.files import load
from parts.precision import speed_up_depthwise
from ResBlock import BoxHead, ClassHead, Decoder, conv_norm, foreground_weights

# ---- constants: each has a flag (H5_SAVE_PATH: --h5-save-path); its comment is its --help ----
# paths
H5_SAVE_PATH = "data/pets"  # data folder with train/, val/ and test/
FILE_SAVE_PATH = "runs/pretrained"  # folder for weights, history and pictures

# training
EPOCHS = 40  # passes over the training split
DEMO_EPOCHS = 10  # number of epochs with --demo
BATCH_SIZE = 32  # images per step, over all processes
LEARNING_RATE = 3e-3  # peak learning rate of the one-cycle schedule
SIDES = (1.0,)  # image sides in equal parts of training, as fractions of the full side
WEIGHT_DECAY = 0.2  # decoupled weight decay, as in AdamW
EMA_DECAY = 0.99  # decay per step of the averaged weights, which are validated, tested and saved
CLIP_NORM = 5.0  # largest gradient norm; larger gradients are scaled down to it
SEED = 0  # random seed

# losses
LOSS_WEIGHTS = {"seg": 1.0, "bbox": 0.3, "bin": 0.2}  # weight of each task's loss

# network
BACKBONE = "mobilenet_v2"  # classification network of torchvision, such as resnet34
BACKBONE_WEIGHTS = "DEFAULT"  # DEFAULT (downloaded by torchvision), a file, or "" for none
BACKBONE_RATE = 1.0  # learning rate of the backbone, as a share of LEARNING_RATE
BACKBONE_NORMS = "running"  # statistics of the backbone's batch norms: running or frozen
WIDTHS = (16, 32, 64, 128, 256)  # channels at stride 2, 4, 8, 16, 32; ConvNeXt has no stride 2
UNITS = 1  # residual units per block
DROPOUT = 0.3  # dropout probability of the class head's inputs

# augmentation
DEGREES = 15.0  # largest rotation, in degrees
SCALE = (0.75, 1.6)  # smallest and largest magnification
STRETCH = 1.2  # largest factor by which the aspect ratio changes
SHIFT = 0.15  # largest shift, as a share of the image side
COLOUR = 0.4  # largest relative change of brightness, contrast and saturation
ERASE = 0.2  # share of the images in which a rectangle is erased


class Backbone(nn.Module):
    """The stages of a classification network, each with a 1 x 1 convolution to its entry of WIDTHS.

    Shape: image (B, 3, H, W) in [0, 255] -> a list of features (B, widths[i], H / s, W / s) at the
    strides s of the stages, 2 or 4 to 32.

    Attributes:
        strides: of the stages.
        stride: the last of them.
    """

    def __init__(self):
        super().__init__()
        if BACKBONE not in models.list_models(module=models):
            near = difflib.get_close_matches(BACKBONE, models.list_models(module=models), n=3)
            expected = f"a classification network of torchvision ({', '.join(near) or 'resnet18'})"
            raise SettingError(f"backbone: expected {expected}, found {BACKBONE}")
        if BACKBONE_NORMS not in ("running", "frozen"):
            found = f"expected running or frozen, found {BACKBONE_NORMS}"
            raise SettingError(f"backbone-norms: {found}")
        network = models.get_model(BACKBONE, weights=None)
        found = stages(network)
        self.strides, names = [*found], [name for name, _ in found.values()]
        self.stride = self.strides[-1]
        self.stages = speed_up_depthwise(create_feature_extractor(network, names))
        widths = WIDTHS[-len(found) :]
        pairs = zip((channels for _, channels in found.values()), widths, strict=True)
        self.laterals = nn.ModuleList(nn.Sequential(*conv_norm(a, b, 1)) for a, b in pairs)
        usual = models.get_model_weights(BACKBONE).DEFAULT.transforms()
        self.register_buffer("mean", 255 * torch.tensor(usual.mean)[:, None, None], False)
        self.register_buffer("std", 255 * torch.tensor(usual.std)[:, None, None], False)

    def forward(self, image):
        features = self.stages((image - self.mean) / self.std).values()
        return [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]

    def train(self, mode=True):
        """Set the mode, but keep batch norms with frozen statistics in eval mode."""
        super().train(mode)
        for module in self.stages.modules() if BACKBONE_NORMS == "frozen" else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@torch.no_grad()
def stages(network, side=64):
    """{stride, 2 or 4 to 32: (name of its last node, channels)} of a classification network."""
    names = [name for name in get_graph_node_names(network)[1] if name != "x"]
    outputs = create_feature_extractor(network, names).eval()(torch.zeros(1, 3, side, side))
    found = {}
    for name, x in outputs.items():
        if torch.is_tensor(x) and x.ndim == 4 and 1 < x.shape[2] == x.shape[3] < side:
            found[side // x.shape[2]] = name, x.shape[1]
    if [*found] not in ([2, 4, 8, 16, 32], [4, 8, 16, 32]):
        expected = "a network with stages at strides 4, 8, 16 and 32"
        raise SettingError(f"backbone: expected {expected}, found {BACKBONE} with {[*found]}")
    if len(found) > len(WIDTHS):
        strides = f"each stride of {BACKBONE} ({', '.join(map(str, found))})"
        expected = f"{len(found)} numbers or more, one for {strides}"
        raise SettingError(f"widths: expected {expected}, found {len(WIDTHS)}")
    return found


def start(network):
    """Load the weights of the backbone; called once when a run starts."""
    if not BACKBONE_WEIGHTS:
        return
    own = network.encoder.stages.state_dict()
    state = backbone_weights()
    needed = [key for key in own if not key.endswith("num_batches_tracked")]
    wrong = [k for k in needed if k not in state or state[k].shape != own[k].shape]
    if wrong:
        expected = f"the weights of {BACKBONE}"
        fits = f"a file that fits in {len(needed) - len(wrong)} of {len(needed)} tensors"
        found = f"{fits}, not in {wrong[0]}"
        raise SettingError(f"backbone-weights: expected {expected}, found {found}")
    if not all(state[key].isfinite().all() for key in needed):
        raise SettingError("backbone-weights: expected finite weights, found others")
    network.encoder.stages.load_state_dict({key: state[key] for key in needed}, strict=False)


def backbone_weights():
    """The state dict of the backbone, from a file or downloaded; raises SettingError."""
    if BACKBONE_WEIGHTS == "DEFAULT":
        try:
            return models.get_model(BACKBONE, weights="DEFAULT").state_dict()
        except (OSError, RuntimeError) as error:  # no internet, a full disk, a broken download
            raise SettingError(
                f"backbone-weights: the download failed ({one_line(error)}); give a file with a "
                f'state dict of torchvision\'s {BACKBONE}, or "" to train from scratch'
            ) from error
    path = Path(os.path.expanduser(BACKBONE_WEIGHTS))
    if not path.is_file():
        raise SettingError(f"backbone-weights: expected a file, found no such file {path}")
    try:
        state = load(path)
    except UserError as error:
        raise SettingError(f"backbone-weights: {error}") from error
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise SettingError(f"backbone-weights: expected a state dict in {path}, found another file")
    return state


class Network(nn.Module):
    """Shape: image (B, 3, H, W) in [0, 255] -> {"seg": (B, 1, H, W) logits, "bbox": (B, 4) xyxy in
    [0, 1], "bin": (B,) logits}; H and W multiples of 32.
    """

    def __init__(self):
        super().__init__()
        self.encoder = Backbone()
        self.stride = self.encoder.stride
        self.rate_factors = {"encoder.stages": BACKBONE_RATE}
        self.seg = Decoder(WIDTHS[-len(self.encoder.strides) :], UNITS, self.encoder.strides[0])
        self.bbox = BoxHead(WIDTHS[-2])
        self.bin = ClassHead(WIDTHS[-1] + WIDTHS[-2], DROPOUT)

    def forward(self, image):
        if self.training:
            return self.decode(self.encoder(image))
        plain, flipped = (self.decode(self.encoder(view)) for view in (image, image.flip(3)))
        return {name: (plain[name] + TASKS[name].mirror(flipped[name])) / 2 for name in plain}

    def decode(self, features):
        """The outputs from the features that the tasks share."""
        levels, deepest = self.seg.levels(features), features[-1]
        seg = self.seg.logits(levels[-1])
        bbox, attention = self.bbox.box_and_attention(levels[0])  # at stride 16
        return {
            "seg": seg,
            "bbox": bbox,
            "bin": self.bin((deepest, foreground_weights(seg, deepest)), (levels[0], attention)),
        }


# ---- losses and metrics: the first task chooses the best epoch ----
TASKS = {
    "seg": SEG,
    "bbox": BBOX,
    "bin": BIN,
}


def weighting():
    """A new loss weighting."""
    return FixedWeights(LOSS_WEIGHTS)


def augmentation():
    """A new augmentation of images and targets."""
    return Augment(TASKS, DEGREES, SCALE, STRETCH, SHIFT, COLOUR, ERASE)


if __name__ == "__main__":
    engine.main(__file__)
