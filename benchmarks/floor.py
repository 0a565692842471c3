"""What persistent forwards could reach: ``python -m benchmarks.floor``, on a GPU.

For each case, microseconds of a step: the exchange of h between the blocks of the same grid without
arithmetic; the products without the exchange; both without gates; and the scan itself, with its
input product outside. The last column is the scan over the exchange alone, which no other way of
counting can beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_rnn import command
from fused_rnn.backends import Inputs, native
from fused_rnn.cells import CELLS

_WIDTHS = (128, 256, 512, 768, 1024, 1536)
_BATCHES = (1, 8, 16, 64)
_T = 1024
_REPEATS = 20


class Row(NamedTuple):
    """Microseconds of a step of one case."""

    cell: str
    H: int
    N: int
    exchange: float
    products: float
    both: float
    scan: float
    plan: str

    @property
    def over_floor(self) -> float:
        """How many times the exchange alone the scan takes."""
        return self.scan / self.exchange


def rows(
    device: torch.device,
    seconds: Callable[[Callable[[], Any]], float],
    ops: Any,
    cases: Sequence[tuple[str, int, int]],
    T: int = _T,
) -> Iterator[Row]:
    """Measure each (cell, H, N) that has a plan; ``seconds`` times a call."""
    for cell, H, N in cases:
        like = torch.empty(0, device=device, dtype=torch.float16)
        plan = ops.persistent_plan(like, cell, T, N, H, 0, False)
        if not plan.startswith("persistent"):
            continue
        floor = partial(ops.persistent_floor, like, cell, T, N, H)
        exchange, products, both = (
            seconds(partial(floor, *parts)) * 1e6 / T
            for parts in ((True, False), (False, True), (True, True))
        )
        scan = _scan(device, seconds, cell, T, N, H)
        yield Row(cell, H, N, exchange, products, both, scan, plan)


def _scan(
    device: torch.device, seconds: Callable[..., float], cell: str, T: int, N: int, H: int
) -> float:
    """Return what a step of an inference takes, less what the product with the inputs does."""
    G = CELLS[cell].gates

    def draw(*size: int) -> Tensor:
        return (torch.rand(size, device=device) * 2 - 1).mul_(H**-0.5).half()

    # A single input: its product is next to nothing, but writes all gates as any other.
    x, weights = draw(T, N, 1), (draw(G * H, 1), draw(G * H, H), draw(G * H), draw(G * H))
    c0 = draw(N, H) if CELLS[cell].has_cell_state else None
    inputs = Inputs(x, draw(N, H), c0, *weights, None)
    whole = seconds(lambda: native.forward(cell, inputs, None, False, False))
    product = seconds(lambda: x.view(T * N, 1).float() @ weights[0].t().float())
    return max(whole - product, 0.0) * 1e6 / T


def text(found: Sequence[Row]) -> str:
    """Return a table."""
    lines = ["cell      H     N  exchange  products    both    scan  over exchange  plan"]
    for r in found:
        times = f"{r.exchange:8.2f}  {r.products:8.2f}  {r.both:6.2f}  {r.scan:6.2f}"
        lines.append(f"{r.cell:<5} {r.H:5} {r.N:5}  {times}  {r.over_floor:12.2f}x  {r.plan}")
    return "\n".join(lines)


def _event_seconds(call: Callable[[], Any]) -> float:
    for _ in range(3):
        call()
    times = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def main() -> int:
    """Print the table; return the exit status."""
    reason = native.cuda_missing() if torch.cuda.is_available() else "there is no CUDA device"
    if reason is not None:
        print(f"The floor is a GPU's: {reason}.")
        return 1
    cases = [(cell, H, N) for cell in ("lstm", "gru") for H in _WIDTHS for N in _BATCHES]
    found = list(rows(torch.device("cuda"), _event_seconds, torch.ops.fused_rnn, cases))
    print(text(found) if found else "No case has a plan: is FUSED_RNN_PERSISTENT=1 set?")
    return 0 if found else 1


if __name__ == "__main__":
    command.run(main)
