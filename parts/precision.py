"""bf16 if the hardware has it, fp32 if it would be emulated."""

import torch
from torch import nn

# asked once, because the call would split a compiled graph; torch has no public name for it, and
# builds without oneDNN have none at all
CPU_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def native_bf16(device):
    """Whether the device multiplies bf16 matrices in hardware.

    On a CPU without AVX-512, bf16 products are 50 to 100 times slower than fp32 ones.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return CPU_BF16
    return True


def autocast(device):
    """A context that computes in bf16, which needs no loss scaling, if the hardware has it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device))


class StridedDepthwise(nn.Conv2d):
    """A depthwise convolution with a stride, in fp32 on a CPU.

    oneDNN has no fast bf16 gradient for its input: 119 ms instead of 9 ms in fp32 for 96 channels
    of 64 x 64, stride 2 and a batch of 16 (AMD EPYC, Zen 4).
    """

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def speed_up_depthwise(network):
    """Turn a network's strided depthwise convolutions into `StridedDepthwise`, in place."""
    for module in network.modules():
        is_depthwise = type(module) is nn.Conv2d and module.groups == module.in_channels > 1
        if is_depthwise and max(module.stride) > 1:
            module.__class__ = StridedDepthwise
    return network
