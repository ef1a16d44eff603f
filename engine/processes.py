"""One process or many: what torchrun sets in the environment, and sums over the processes."""

import os

import torch
import torch.distributed as dist

from engine.cli import UserError


class Processes:
    """This process among those of the run.

    Attributes:
        rank, size: number of this process, and of all.
        device: where this process computes.
    """

    def __init__(self, device_name):
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = self._device(device_name)
        if self.size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def _device(self, name):
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        if name is None:
            name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"--device: expected a usable device, found {name} ({reason})"
            ) from error
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    @property
    def is_first(self):
        """Whether this process writes the files and speaks."""
        return self.rank == 0

    def sum(self, tensor):
        """The tensor summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def close(self):
        """Leave the group of processes."""
        if self.size > 1:
            dist.destroy_process_group()
