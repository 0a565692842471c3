"""Padded sequences with marks, which tell of each step where its state comes from.

Lengths and resets decide how many rows a packed batch has, and reading them waits for a GPU and
breaks a graph. Marks are a tensor of a fixed shape instead, made by torch's operators on the device
of the data. Kernels that know them scan the padded batch as it is; for the others it is packed
here, where reading is free: on the CPU, or when a graph runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fused_rnn.backends import (
    ANEW,
    BEGINS,
    DEAD,
    GOES_ON,
    AnyInputs,
    Backend,
    Marked,
    VariantInputs,
    reference,
)
from fused_rnn.scans.segments import Segments, cut

__all__ = ["Results", "backward", "forward", "mark", "takes_marks"]

# y (T, N, R), h_n (N, R), c_n (N, H) | None, what to save, every step's c (T, N, H) | None.
Results = tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...], Tensor | None]


def mark(
    lengths: Tensor | None, resets: Tensor | None, steps: int, n: int, reverse: bool, like: Tensor
) -> Tensor:
    """Return the marks (T, N) of one direction, uint8, on the device of ``like``.

    Args:
        lengths: (N,) integers; None where every sequence has all steps
        resets: (T, N) booleans; None without resets
        steps: T
        n: N
        reverse: whether each sequence is scanned from its last step to its first
        like: a tensor on the device
    """
    times = torch.arange(steps, device=like.device).unsqueeze(1)
    last = steps - 1 if lengths is None else lengths.to(torch.int64) - 1
    marks = torch.full((steps, n), GOES_ON, dtype=torch.uint8, device=like.device)
    if reverse:
        if resets is not None:
            # Where time begins anew, a scan in reverse has come to an end: the next one begins.
            marks = marks.masked_fill(resets.roll(-1, 0), ANEW)
        marks = marks.masked_fill(times == last, BEGINS)
    else:
        marks = marks.masked_fill(times == 0, BEGINS)
        if resets is not None:
            marks = marks.masked_fill(resets, ANEW)
    return marks if lengths is None else marks.masked_fill(times > last, DEAD)


def takes_marks(backend: Backend | None, device: torch.device, projected: bool) -> bool:
    """Return whether a backend scans by marks itself, so that nothing has to be packed."""
    ask = getattr(backend, "takes_marks", None)
    return ask is not None and ask(device, projected)


def forward(
    backend: Backend,
    cell: str,
    inputs: AnyInputs,
    marked: Marked,
    reverse: bool,
    training: bool,
    every_c: bool,
) -> Results:
    """Run one layer in one direction over padded data on a backend, as its ``forward`` does.

    What is to be saved has the sizes that it has without marks.
    """
    if _by_marks(backend, inputs):
        return backend.marked_forward(cell, inputs, marked, reverse, training, every_c)
    rows = _Rows(inputs, marked, reverse)
    scan = cell, rows.inputs, rows.batch_sizes, reverse
    c_n: Tensor | None
    c: Tensor | None = None
    if every_c:
        y, h_n, c_n, saved, c = backend.scan_states(*scan, training)
    else:
        y, h_n, c_n, saved = backend.forward(*scan, training)
    if training:
        saved = tuple(map(_padded, saved, backend.saved(cell, inputs)))
    h_n = rows.end(h_n, inputs.h0)
    c_n = c_n if c_n is None else rows.end(c_n, inputs.c0)
    return rows.unpack(y), h_n, c_n, saved, c if c is None else rows.unpack(c)


def backward(
    backend: Backend,
    cell: str,
    inputs: AnyInputs,
    marked: Marked,
    reverse: bool,
    y: Tensor,
    saved: tuple[Tensor, ...],
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    needs: tuple[bool, ...],
    dc: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of Inputs and of the state after a reset, None where not needed.

    Args:
        saved: what :func:`forward` gave, or nothing
        needs: for each of Inputs, then for ``marked.h`` and ``marked.c``
    """
    operands = cell, inputs, marked, reverse
    if not saved and backend is not reference:  # which saves nothing ever
        saved = forward(backend, *operands, True, dc is not None)[3]
    if _by_marks(backend, inputs):
        return backend.marked_backward(*operands, y, saved, dy, dh_n, dc_n, needs, dc)
    rows = _Rows(inputs, marked, reverse)
    saved = tuple(map(_unpadded, saved, backend.saved(cell, rows.inputs)))
    y = rows.pack(y)
    dy, dc = (d if d is None else rows.pack(d) for d in (dy, dc))
    ends = [d if d is None else rows.begin_at_ends(d) for d in (dh_n, dc_n)]
    # What begins anew has the gradients of the state after a reset.
    wanted = needs[0], needs[1] or needs[-2], needs[2] or needs[-1], *needs[3:-2]
    more = () if dc is None else (dc,)
    found = backend.backward(
        cell, rows.inputs, rows.batch_sizes, reverse, y, saved, dy, *ends, wanted, *more
    )
    dx, dh0, dc0, *weights = found
    dh0, dh = (None, None) if dh0 is None else rows.gathered(dh0, dh_n)
    dc0, dc = (None, None) if dc0 is None else rows.gathered(dc0, dc_n)
    found = dx if dx is None else rows.unpack(dx), dh0, dc0, *weights, dh, dc
    return tuple(d if need else None for d, need in zip(found, needs, strict=True))


def _by_marks(backend: Backend, inputs: AnyInputs) -> bool:
    # A transform may batch the marks, and sees the reference's operators only. Elsewhere it is not
    # one to be chosen for marks: it takes every step for every sequence.
    return backend is reference or takes_marks(backend, inputs.x.device, inputs.w_hr is not None)


class _Rows:
    """The live rows of padded operands, packed.

    Attributes:
        inputs: x (rows, I), h0 (S, R) and c0 (S, H) of the S segments, and the weights
        batch_sizes: of the packed rows; None where there are none: then x is (1, 0, I)
    """

    def __init__(self, inputs: AnyInputs, marked: Marked, reverse: bool) -> None:
        steps, self._n, _ = inputs.x.shape
        marks = marked.marks.cpu()
        resets = marks == ANEW
        if reverse:  # back to where a segment begins in time
            resets = torch.cat([torch.zeros_like(resets[:1]), resets[:-1]])
        lengths = (marks != DEAD).sum(0)
        segments = cut(lengths, resets, steps, self._n, 2, inputs.x.device)
        of_scan = slice(int(reverse), int(reverse) + 1)
        self._segments = segments._replace(
            origins=segments.origins[of_scan], finals=segments.finals[of_scan]
        )
        self.batch_sizes = segments.batch_sizes
        self.inputs = inputs._replace(
            x=self.pack(inputs.x),
            h0=self._begin(inputs.h0, marked.h),
            c0=None if inputs.c0 is None else self._begin(inputs.c0, marked.c),
        )
        if isinstance(inputs, VariantInputs):
            self.inputs = self.inputs._replace(**_noise_of(segments, inputs))

    def pack(self, t: Tensor) -> Tensor:
        """Return the rows of t (T, N, R)."""
        return self._segments.pack(t)

    def unpack(self, t: Tensor) -> Tensor:
        """Return rows as (T, N, R), zero where there is no step."""
        return self._segments.unpack(t, self._n)

    def _begin(self, given: Tensor, anew: Tensor | None) -> Tensor:
        anew = given.new_zeros(given.shape[1]) if anew is None else anew
        return self._segments.begin(given.unsqueeze(0), anew.view(1, 1, -1)).squeeze(0)

    def end(self, final: Tensor, given: Tensor) -> Tensor:
        """Return the final states of the sequences (N, R), given those of the segments (S, R)."""
        return self._segments.end(final.unsqueeze(0), given.unsqueeze(0)).squeeze(0)

    def begin_at_ends(self, d: Tensor) -> Tensor:
        """Return the gradients of the segments' final states, given those of the sequences'."""
        final, count = self._segments.finals[0], self._segments.count
        out = d.new_zeros(count, d.shape[1])
        out[final[final < count]] = d[final < count]
        return out

    def gathered(self, d: Tensor, d_n: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the gradients of the given states (N, R) and of the one after a reset (R,).

        Args:
            d: (S, R), of what the segments begin with
            d_n: (N, R), of the final states: of a sequence without a step, they are the given ones
        """
        origin, empty = self._segments.origins[0], self._segments.finals[0] >= len(d)
        out = d.new_zeros(self._n, d.shape[1])
        out[origin[origin < self._n]] = d[origin < self._n]
        if d_n is not None:
            out[empty] = d_n[empty]
        return out, d[origin == self._n].sum(0)


def _noise_of(segments: Segments, inputs: VariantInputs) -> dict[str, Tensor | None]:
    """Return the segments' mask and draws, given those of the sequences that they are parts of."""
    mask, draws = inputs.mask, inputs.draws
    whose, first = segments.members[: segments.count], segments.times[: segments.count]
    if draws is not None:
        draws = draws[whose]
        draws = torch.stack([draws[:, 0], draws[:, 1] + first, draws[:, 2]], 1)
    return {"mask": mask if mask is None else mask[whose], "draws": draws}


def _padded(t: Tensor, room: Tensor) -> Tensor:
    # A graph knows the sizes that there are without marks, and no others. Nobody reads the rest,
    # but two runs of an op shall give the same.
    flat, count = room.view(-1), t.numel()
    flat[:count], flat[count:] = t.reshape(-1), 0
    return room


def _unpadded(t: Tensor, like: Tensor) -> Tensor:
    return t.view(-1)[: like.numel()].view(like.shape)
