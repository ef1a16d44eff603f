"""bf16 where the hardware has it, fp32 where it would be emulated."""

import torch

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
    """A context that computes in bf16, which needs no loss scaling, where that is native."""
    return torch.autocast(device.type, torch.bfloat16, enabled=native_bf16(device))
