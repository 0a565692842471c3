"""Train an LSTM on several processes, which torchrun starts, and print how the error falls.

The task is the adding problem: of a long sequence of numbers two are marked, and their sum is
wanted at the end, so that the network has to carry the first over many steps (Hochreiter and
Schmidhuber, "Long short-term memory", 1997). Each process has its own part of every batch;
afterwards all of them hold the same weights.

    torchrun --nproc-per-node 2 examples/ddp.py
    torchrun --nproc-per-node 2 examples/ddp.py --sharded

With ``--sharded`` the weights, their gradients and the optimiser's state lie spread over the
processes, which gather them for a moment where they are used.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fused_rnn


class Adder(nn.Module):
    """A recurrent layer, and a number from its final state."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = fused_rnn.LSTM(2, hidden)  # the only line that is not torch's
        self.sum = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, 1) sums for (T, N, 2) numbers and marks."""
        _, (h_n, _) = self.rnn(x)
        return self.sum(h_n[-1])


def problems(length: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return x (T, N, 2), numbers and marks, and the sums (N, 1) of the two marked ones."""
    numbers = torch.rand(length, batch, device=device)
    marks = torch.zeros_like(numbers)
    half = length // 2
    for begin, end in ((0, half), (half, length)):
        marks.scatter_(0, torch.randint(begin, end, (1, batch), device=device), 1)
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)[:, None]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--sharded", action="store_true", help="spread the weights too (FSDP)")
    for name, default, text in (
        ("updates", 800, "updates of the weights"),
        ("length", 40, "steps of a sequence"),
        ("batch", 128, "sequences of an update, of all processes together"),
        ("hidden", 64, "size of the recurrent layer"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    return parser.parse_args(arguments)


def spread(model: nn.Module, sharded: bool, device: torch.device) -> nn.Module:
    """Return the model as every process trains it, beginning with the same weights."""
    model = model.to(device)
    if not sharded:
        return DistributedDataParallel(model)
    # A larger model would have fully_shard called on each of its parts first.
    return fully_shard(model, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))


def train(options: argparse.Namespace, device: torch.device) -> None:
    """Train, and have the first process print a table."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)  # the same weights everywhere ...
    model = spread(Adder(options.hidden), options.sharded, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    torch.manual_seed(2 + rank)  # ... and other data
    if rank == 0:
        print(f"{world} processes on {device.type}, 0.167 is what guessing the mean scores")
        print(f"{'updates':>8} {'squared error':>14} {'sequences/s':>12}")
    since, every = time.perf_counter(), max(1, options.updates // 8)
    errors: list[Tensor] = []
    for update in range(1, options.updates + 1):
        x, target = problems(options.length, options.batch // world, device)
        error = (model(x) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        errors.append(error.detach())
        if update % every == 0:
            mean = torch.stack(errors).mean() / world
            dist.all_reduce(mean)
            now = time.perf_counter()
            if rank == 0:
                speed = every * options.batch / (now - since)
                print(f"{update:8} {mean.item():14.4f} {speed:12.0f}", flush=True)
            since, errors = now, []


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the other processes, train, and leave."""
    options = parse(arguments)
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator().type
        device = torch.device(kind, int(os.environ["LOCAL_RANK"]))
        torch.accelerator.set_device_index(device.index)
    else:
        device = torch.device("cpu")
    dist.init_process_group()
    train(options, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
