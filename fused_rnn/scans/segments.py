"""A batch cut into segments: sequences of different lengths, and sequences that begin anew.

A segment is a stretch of one sequence that is scanned without a break: from the sequence's first
step, or from a reset, to the next reset or the sequence's end. No two segments share a state, so to
a kernel they are sequences of their own. Packed longest first, as
:class:`torch.nn.utils.rnn.PackedSequence` packs sequences, all of them run at once on any backend:
nothing is masked, and what is past a sequence's end is never computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_batchedtensor, is_functorch_wrapped_tensor
from torch.nn.functional import embedding

__all__ = [
    "Segments",
    "check_lengths",
    "check_resets",
    "check_within",
    "cut",
    "on_device",
    "read",
    "unwrapped",
    "vmapped",
]


class Segments(NamedTuple):
    """How the S segments of a batch are packed, longest first.

    Without a step in the whole batch there is no segment, and what is packed is dense: one step of
    no sequences. The last two are for each direction, D in all.
    """

    steps: int  # T
    count: int  # type: ignore[assignment]  # S; it hides tuple.count
    batch_sizes: Tensor | None  # int64 on the CPU: how many segments have a first step, a second...
    times: Tensor  # (rows,): which step each packed row is of
    members: Tensor  # (rows,): and of which sequence
    origins: Tensor  # (D, S): the sequence whose given state a segment begins with, or N for none
    finals: Tensor  # (D, N): the segment a sequence ends in; S + n where sequence n has no step

    def pack(self, x: Tensor) -> Tensor:
        """Return the rows (rows, I) of x (T, N, I); (1, 0, I) without segments."""
        if not self.count:
            return x[:1, :0]
        # A transposed batch is read as it lies in memory: its rows need not be copied twice.
        if not x.is_contiguous() and x.transpose(0, 1).is_contiguous():
            return _take(x.transpose(0, 1).flatten(0, 1), self.members * self.steps + self.times)
        return _take(x.flatten(0, 1), self._places(x.shape[1]))

    def unpack(self, y: Tensor, n: int) -> Tensor:
        """Return y as (T, N, ...), zero where a sequence has no step.

        Args:
            y: (rows, ...); (1, 0, ...) without segments
            n: N
        """
        if not self.count:
            y = y.flatten(0, 1)
        total, places = self.steps * n, self._places(n)
        shape = (self.steps, n, *y.shape[1:])
        y = y.flatten(1)
        if len(places) < total:
            return y.new_zeros(total, y.shape[1]).index_copy(0, places, y).view(shape)
        sources = torch.empty_like(places)
        sources[places] = torch.arange(total, device=places.device)
        return _take(y, sources).view(shape)

    def begin(self, given: Tensor, anew: Tensor) -> Tensor:
        """Return the initial states of the segments (K, S, R).

        Args:
            given: (K, N, R), the initial states of the sequences; K directions of layers
            anew: (K, 1, R), the state after a reset
        """
        n = given.shape[1]
        picked = _pick(given, self.origins.clamp(max=max(n - 1, 0)))
        fresh = (self.origins == n).repeat(len(given) // len(self.origins), 1)
        # Not one more row to pick from: an embedding's backward adds up in the dtype of the table,
        # which in half precision takes in no more than a few hundred resets.
        return torch.where(fresh.unsqueeze(2), anew, picked)

    def end(self, final: Tensor, given: Tensor) -> Tensor:
        """Return the final states of the sequences (K, N, R), given those of the segments."""
        return _pick(torch.cat([final, given], 1), self.finals)

    def _places(self, n: int) -> Tensor:
        return self.times * n + self.members


def _take(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a table (M, R)."""
    # An embedding is an index_select whose backward is parallel and deterministic.
    return table[rows] if table.is_complex() else embedding(rows, table)


def _pick(states: Tensor, of_direction: Tensor) -> Tensor:
    """Return for each direction of each layer the states (K, M, R) at its indices (D, S)."""
    k, m, _ = states.shape
    indices = of_direction.repeat(k // len(of_direction), 1)
    places = indices + m * torch.arange(k, device=states.device).unsqueeze(1)
    return _take(states.flatten(0, 1), places.flatten()).view(*indices.shape, states.shape[2])


def check_lengths(lengths: Tensor, n: int | None) -> Tensor:
    """Return lengths as (N,) int64, checked but for their values.

    Args:
        lengths: (N,) integers, or a single one for unbatched input
        n: the number of sequences; None for unbatched input

    Raises:
        TypeError: if they are no tensor of integers.
        ValueError: if their shape is another.
    """
    expected = "lengths should be a tensor of integers"
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{expected}, got: {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"{expected}, got: {lengths.dtype}")
    shape = () if n is None else (n,)
    if lengths.shape != shape:
        raise ValueError(f"lengths should have shape {shape}, got: {tuple(lengths.shape)}")
    return lengths.to(torch.int64).view(-1)


def check_resets(resets: Tensor, steps: int, n: int | None, batch_first: bool) -> Tensor:
    """Return resets as (T, N), checked.

    Args:
        resets: booleans, (T, N), (N, T) with ``batch_first``, (T,) for unbatched input
        steps: T
        n: N; None for unbatched input
        batch_first: whether the batch comes first

    Raises:
        TypeError: if they are no tensor of booleans.
        ValueError: if their shape is another.
    """
    expected = "resets should be a tensor of booleans"
    if not isinstance(resets, Tensor):
        raise TypeError(f"{expected}, got: {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise TypeError(f"{expected}, got: {resets.dtype}")
    shape = (steps,) if n is None else (n, steps) if batch_first else (steps, n)
    if resets.shape != shape:
        raise ValueError(f"resets should have shape {shape}, got: {tuple(resets.shape)}")
    if n is None:
        return resets.unsqueeze(1)
    return resets.t() if batch_first else resets


def on_device(t: Tensor | None, device: torch.device) -> Tensor | None:
    """Return a tensor there, without waiting for the device where it comes from the CPU."""
    return t if t is None else t.to(device, non_blocking=t.device.type == "cpu")


def read(lengths: Tensor | None, resets: Tensor | None, steps: int) -> tuple[Tensor | None, ...]:
    """Return lengths (N,) and resets (T, N) on the CPU, which waits for a GPU.

    Raises:
        ValueError: if a length is negative, or larger than ``steps``.
    """
    lengths, resets = (t if t is None else t.cpu() for t in (lengths, resets))
    if lengths is not None:
        check_within(lengths, steps)
    return lengths, resets


def check_within(lengths: Tensor, steps: int) -> None:
    """Check the values of lengths on the CPU.

    Raises:
        ValueError: if one is negative, or larger than ``steps``.
    """
    wrong = (lengths < 0) | (lengths > steps)
    if wrong.any():
        which = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"lengths should be from 0 to {steps}, the number of steps, "
            f"got: {int(lengths[which])} at index {', '.join(map(str, which))}"
        )


def vmapped(t: Tensor) -> bool:
    """Return whether vmap batches a tensor, on top of other transforms or under them."""
    while is_functorch_wrapped_tensor(t):
        if is_batchedtensor(t):
            return True
        t = get_unwrapped(t)
    return False


def unwrapped(t: Tensor) -> Tensor:
    """Return a tensor as it was before any transform of torch.func, all of a batch at once."""
    while is_functorch_wrapped_tensor(t):
        t = get_unwrapped(t)
    return t


def cut(
    lengths: Tensor | None,
    resets: Tensor | None,
    steps: int,
    n: int,
    directions: int,
    device: torch.device,
) -> Segments:
    """Cut a batch into segments.

    Args:
        lengths: (N,) int64 on the CPU; None where every sequence has all steps
        resets: (T, N) bool on the CPU; None without resets
        steps: T
        n: N
        directions: 2 for a forward and a reverse one
        device: where the rows are
    """
    with torch.device("cpu"):  # whatever the default is where this is called
        segments = _cut(lengths, resets, steps, n, directions)
    # Not pinned: the copies are taken before the calls return, and nothing waits for the device.
    indices = (t.to(device, non_blocking=True) for t in segments[3:])
    return Segments(*segments[:3], *indices)


def _cut(
    lengths: Tensor | None, resets: Tensor | None, steps: int, n: int, directions: int
) -> Segments:
    ends = torch.full((n,), steps) if lengths is None else lengths
    begins = torch.zeros(n, steps, dtype=torch.bool)
    if resets is not None:
        begins |= resets.t()
    anew = begins[:, 0].clone()  # a reset before the first step: the given state is not used
    begins[:, 0] = True
    begins &= torch.arange(steps) < ends.unsqueeze(1)

    member, begin = begins.nonzero(as_tuple=True)  # sequence by sequence, in time's order
    first, last = begin == 0, torch.ones_like(begin, dtype=torch.bool)
    last[:-1] = member[1:] != member[:-1]
    end = torch.where(last, ends[member], begin.roll(-1))
    size, order = (end - begin).sort(descending=True, stable=True)
    count = len(order)
    longest = int(size[0]) if count else 0
    batch_sizes = count - size.bincount(minlength=longest + 1).cumsum(0)[:-1]

    # Of every packed row: its step within the segment, and the segment.
    inner = torch.arange(longest).repeat_interleave(batch_sizes)
    starts = batch_sizes.cumsum(0) - batch_sizes
    segment = order[torch.arange(len(inner)) - starts[inner]]
    member_of = member[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(count)
    origins = torch.stack(
        [
            torch.where((first & ~anew[member])[order], member_of, n),
            torch.where(last[order], member_of, n),
        ]
    )
    finals = (count + torch.arange(n)).repeat(2, 1)
    finals[0, member[last]] = rank[last]
    finals[1, member[first]] = rank[first]
    times = begin[segment] + inner
    return Segments(
        steps,
        count,
        batch_sizes if count else None,
        times,
        member[segment],
        origins[:directions],
        finals[:directions],
    )
