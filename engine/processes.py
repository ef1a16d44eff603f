"""One process or many, as torchrun starts them."""

import contextlib
import os
import sys

import torch
import torch.distributed as dist

from parts.errors import UserError, one_line

TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets for every process


class Processes:
    """The group of processes of a run; a context manager in which this process is a member.

    Args:
        environment: what torchrun has set; {} for a program that is always one process.

    Attributes:
        rank, size: the number of this process from 0, and the number of all.
        device: the device of this process; the CPU until `use` is called.
    """

    def __init__(self, environment=os.environ):
        self.size = int(environment.get("WORLD_SIZE") or 1)
        self.rank = int(environment.get("RANK") or 0) if self.size > 1 else 0
        self.local_rank = environment.get("LOCAL_RANK", 0)
        self.device = torch.device("cpu")
        missing = [name for name in TORCHRUN if not environment.get(name)]
        if self.size > 1 and missing:
            raise UserError(
                f"WORLD_SIZE={self.size} in the environment: expected {', '.join(TORCHRUN)} beside "
                f"it, found no {', '.join(missing)}; start with torchrun, or unset WORLD_SIZE"
            )

    def __enter__(self):
        if self.size > 1:  # gloo too, so that an exchange between CPUs never waits for a GPU
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return self

    def __exit__(self, kind, error, traceback):
        if self.size > 1:
            dist.destroy_process_group()

    def use(self, name):
        """Use a device: "cuda" is the GPU of this process; None is that GPU if any, else the CPU.

        Raises:
            UserError: there is no such device.
        """
        if name is None:
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda":
            name = f"cuda:{self.local_rank}"
        try:
            self.device = torch.device(name)
            # "meta" holds no numbers, "mps" none of the metrics' type
            torch.zeros(1, dtype=torch.float64, device=self.device).item()
        except (RuntimeError, AssertionError, TypeError, ImportError) as error:
            reason = one_line(error)[:200]
            raise UserError(
                f"--device: expected a usable device, found {name} ({reason})"
            ) from error
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.benchmark = True  # a run has batches of few shapes

    @property
    def is_first(self):
        """Whether this process writes the files and prints."""
        return self.rank == 0

    def sum(self, tensor):
        """The tensor, summed over all processes in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensors):
        """Give every process the tensors of the first one, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def max(self, *numbers):
        """Each integer's maximum over all processes, as a list; never waits for a GPU."""
        if self.size == 1:
            return list(numbers)
        numbers = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers.tolist()

    @contextlib.contextmanager
    def failing_together(self):
        """A block that, if it fails in any process, ends the run in all of them.

        The block itself must not communicate.

        Raises:
            UserError: in the first process, with the message of the lowest rank that failed.
            SystemExit: code 2 in the others.
        """
        message = None
        try:
            yield
        except UserError as error:
            if self.size == 1:
                raise
            message = str(error)
        if self.size > 1:
            messages = [None] * self.size
            dist.all_gather_object(messages, message)
            message = next(filter(None, messages), None)
            if message and self.is_first:
                raise UserError(message)
            if message:
                sys.exit(2)
