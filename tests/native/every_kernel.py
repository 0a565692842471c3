"""Small problems that reach every persistent kernel which is compiled, on the device that is asked.

    python -m tests.native.every_kernel

prints them for the GPU that is there. Which kernel a problem gets is the plan's choice, and hangs
on the device's facts: on another device the table is another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

from .plans import Problem

MEETINGS = ("memory", "cluster", "clusters")  # as enum Meeting counts
# How kernels multiply, and a dtype and whether TF32 is allowed, for it; float16 is as bfloat16.
PRODUCTS = {"half": ("bfloat16", False), "tf32": ("float32", True), "float32": ("float32", False)}
CELLS = ("lstm", "gru", "rnn_tanh")  # which have kernels of their own; a ReLU's is a branch of one

T = 4  # a plan does not hang on it, as long as there is something to keep for the next step
# One less than multiples of 8: with the last block's units, and the depth, padded.
WIDTHS = (*range(7, 320, 8), *range(327, 1180, 24), *range(1199, 2300, 64))
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 32, 40, 64, 80, 128, 192, 256, 512, 1024)


class Kernel(NamedTuple):
    """A compiled kernel; forward there is one for each cell."""

    backward: bool
    meeting: str
    shape: int
    product: str

    def __str__(self) -> str:
        way = "backward" if self.backward else "forward"
        return f"{way}, {self.meeting}, shape {self.shape}, {self.product}"


# (how blocks meet, the shape) of a problem's plan, as enum Meeting and kShapes count; or None.
Ask = Callable[[Problem], tuple[int, int] | None]


def compiled(ways: Callable[[bool], list[tuple[int, int]]]) -> set[Kernel]:
    """Return all kernels; ``ways`` gives what :func:`tests.native.plans.compiled` does."""
    return {
        Kernel(backward, MEETINGS[meeting], shape, kind)
        for backward in (False, True)
        for meeting, shape in ways(backward)
        for kind in PRODUCTS
    }


def problems() -> Iterator[tuple[str, Problem]]:
    """Yield how they multiply, and problems; of the same cost those of one direction first."""
    sizes = sorted(product(BATCHES, WIDTHS, (1, 2)), key=lambda s: (s[0] * s[1] ** 2 * s[2], s))
    for N, H, directions in sizes:
        for cell, (kind, (dtype, tf32)), backward in product(
            CELLS, PRODUCTS.items(), (False, True)
        ):
            yield kind, Problem(cell, dtype, H, N, T, backward, True, tf32, 0, directions)


def table(ask: Ask) -> dict[tuple[Kernel, str], Problem]:
    """Return the least problem for each kernel and cell that a plan of the device ever has."""
    found: dict[tuple[Kernel, str], Problem] = {}
    for kind, problem in problems():
        way = ask(problem)
        if way is not None:
            kernel = Kernel(problem.backward, MEETINGS[way[0]], way[1], kind)
            found.setdefault((kernel, problem.cell), problem)
    return found


def for_backward_any_cell(found: dict[tuple[Kernel, str], Problem]) -> dict[str, Problem]:
    """Return what is left to run, by a name: backward, one kernel has all cells."""
    chosen: dict[str, Problem] = {}
    for (kernel, cell), problem in found.items():
        chosen.setdefault(str(kernel) if kernel.backward else f"{kernel}, {cell}", problem)
    return chosen


@contextmanager
def asking(ops: Any, device: str) -> Iterator[Ask]:
    """Yield what asks a device for the meeting and the shape of a problem's plan."""
    import torch

    like = {
        name: torch.empty(0, dtype=getattr(torch, name), device=device)
        for name in ("bfloat16", "float32")
    }

    def ask(p: Problem) -> tuple[int, int] | None:
        ops.persistent_tf32(p.tf32)
        way = ops.persistent_kernel(like[p.dtype], p.cell, p.T, p.N, p.H, p.backward, p.directions)
        return (way[0], way[1]) if way else None

    before = ops.persistent_tf32(False)
    try:
        yield ask
    finally:
        ops.persistent_tf32(before)


def of_this_gpu() -> dict[str, Problem]:
    """Return the table of the current CUDA device, by its own plans."""
    import torch

    with asking(torch.ops.fused_rnn, "cuda") as ask:
        return for_backward_any_cell(table(ask))


def lines(found: dict[str, Problem]) -> Iterator[str]:
    """Yield the table as text."""
    for name in sorted(found):
        p = found[name]
        yield f"{name:44} {p.cell:8} {p.dtype:8} N {p.N:<4} H {p.H:<4} directions {p.directions}"


def main() -> int:
    """Print the table; return the exit status."""
    import torch

    from fused_rnn.backends import native

    reason = native.cuda_missing() if torch.cuda.is_available() else "there is no CUDA device"
    if reason is not None:
        print(f"The table is a GPU's: {reason}.")
        return 1
    print("\n".join(lines(of_this_gpu())))
    return 0


if __name__ == "__main__":
    from fused_rnn import command

    command.run(main)
