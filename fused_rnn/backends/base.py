"""What a backend is, and what it is asked: the operands of a scan and the problem they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "ANEW",
    "ANY_SIZE",
    "BEGINS",
    "DEAD",
    "GOES_ON",
    "AnyInputs",
    "Backend",
    "Inputs",
    "Marked",
    "Problem",
    "Selection",
    "VariantInputs",
    "inputs_of",
]

# T and N of a problem in a graph, which serves all of them.
ANY_SIZE = 0

# The marks of a padded batch's steps, which tell where a step takes its state from: none, as it is
# past its sequence's end; the step before it in the order of the scan; the initial state that was
# given; the state after a reset.
DEAD, GOES_ON, BEGINS, ANEW = range(4)


class Inputs(NamedTuple):
    """The operands of one layer in one direction: of one dtype, on one device, contiguous.

    Those of a single step may have any strides where the backend ``checks_operands``.
    """

    x: Tensor  # (T, N, I); (rows, I) with batch_sizes; (N, I) for a single step
    h0: Tensor  # (N, R), R = P or H
    c0: Tensor | None  # (N, H), LSTM only
    w_ih: Tensor  # (G*H, I)
    w_hh: Tensor  # (G*H, R)
    b_ih: Tensor | None  # (G*H,)
    b_hh: Tensor | None  # (G*H,)
    w_hr: Tensor | None  # (P, H), LSTM with a projection only


class VariantInputs(NamedTuple):
    """The operands of a variant of a cell: those of :class:`Inputs`, and what only variants have.

    Gradients are for all of them but the last two.
    """

    x: Tensor
    h0: Tensor
    c0: Tensor | None
    w_ih: Tensor
    w_hh: Tensor  # (G*H, R), or (k, G*H/k, R/k) of k heads
    b_ih: Tensor | None
    b_hh: Tensor | None
    w_hr: Tensor | None
    extra: Tensor | None  # (E,): the variant's own parameters, see variants.Extra
    mask: Tensor | None  # (N, R), 0 and 1: recurrent dropout's; None: none is dropped
    draws: Tensor | None  # (N, 3), int64: zoneout's, see variants.keeps_old; None: the expectation


AnyInputs = Inputs | VariantInputs


def inputs_of(tensors: Sequence[Tensor | None]) -> AnyInputs:
    """Return operands as what they are by their number."""
    kind: Any = Inputs if len(tensors) == len(Inputs._fields) else VariantInputs
    return kind(*tensors)


class Marked(NamedTuple):
    """What beside Inputs a scan of padded sequences takes: where their steps take states from.

    With a reverse scan, what has BEGINS is a sequence's last step, and what is ANEW comes before a
    reset. A sequence has at most one BEGINS, the first of its steps in the order of the scan.
    """

    marks: Tensor  # (T, N), uint8: DEAD, GOES_ON, BEGINS, ANEW
    h: Tensor | None  # (R,): the state after a reset; None: zeros
    c: Tensor | None  # (H,), LSTM only; None: zeros


class Problem(NamedTuple):
    """All that decides which backend runs; hashable, so that the decision is made once for each."""

    cell: str  # a key of cells.CELLS, or the name of a variant of one
    device: torch.device
    dtype: torch.dtype
    T: int
    N: int
    I: int  # noqa: E741 (the dims are named as in the equations)
    H: int
    P: int  # 0 without a projection
    ragged: bool  # packed data: sequences of different lengths
    training: bool  # grad mode is on and an operand needs a gradient
    transform: str | None  # what is being done to torch itself, see transforms.active
    states: bool = False  # the states of every step are asked for
    marked: bool = False  # padded, with marks: lengths and resets that nobody has read
    cut: bool = False  # packed here, by lengths and resets that were read
    recompute: bool = False  # backward makes anew what it needs
    # Of the stack that the layer is in; of a single step, which is in none, the width is 0.
    layers: int = 1
    directions: int = 1
    width: int = 0  # of the first layer's input
    stored: torch.dtype | None = None  # the weights', of a quantized layer; None: dtype
    stored_ih: torch.dtype | None = None  # of w_ih, where it is another than w_hh's


class Backend(Protocol):
    """One way to run a scan; a module of ``fused_rnn.backends`` is one.

    ``batch_sizes`` is None for dense data; for packed data it is an int64 CPU tensor of shape (T,),
    as in :class:`torch.nn.utils.rnn.PackedSequence`. With ``reverse`` each sequence is scanned from
    its own last step to its first; ``y`` stays in the order of time, and the final states are those
    after the last scanned step.
    """

    name: str
    # Whether forward checks ranks, sizes, dtypes and devices itself, and takes any strides.
    checks_operands: bool

    def available(self) -> str | None:
        """Return None, or the reason why nothing can run on this backend."""

    def supports(self, problem: Problem) -> str | None:
        """Return None, or the reason why this problem cannot."""

    def ways(self, problem: Problem, seconds: dict[str, float]) -> list[str]:
        """Return ways to run a problem that only a measurement can choose between, by name.

        ``seconds`` is what those took that were returned before; a call returns others, until there
        are none. Optional, and where it is there, so is the one below.
        """

    def way(self, name: str) -> Backend:
        """Return the backend that goes one of these ways, whose ``way_name`` it is.

        Raises:
            ValueError: if there is none of this name.
        """

    def forward(
        self,
        cell: str,
        inputs: AnyInputs,
        batch_sizes: Tensor | None,
        reverse: bool,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Return y (T, N, R) | (rows, R), h_n (N, R), c_n (N, H) | None, and what to save."""

    def step(
        self, cell: str, x: Tensor, h: Tensor, c: Tensor | None, *weights: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return h and c (N, H) after a step of x (N, I), as :meth:`forward` without training.

        ``weights`` are w_ih, w_hh, b_ih and b_hh. Optional: where it is there, it is faster.
        """

    def saved(self, cell: str, inputs: AnyInputs) -> tuple[Tensor, ...]:
        """Return empty tensors of the sizes and dtypes that a training forward saves.

        Sizes may be symbols here, and nothing is computed.
        """

    def backward(
        self,
        cell: str,
        inputs: AnyInputs,
        batch_sizes: Tensor | None,
        reverse: bool,
        y: Tensor,
        saved: tuple[Tensor, ...],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        needs: tuple[bool, ...],
        dc: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of Inputs, None where ``needs`` is False.

        ``dc``, of every step's c, comes only after :meth:`scan_states`.
        """

    def scan_states(
        self,
        cell: str,
        inputs: AnyInputs,
        batch_sizes: Tensor | None,
        reverse: bool,
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Do as :meth:`forward`, and return every step's c (T, N, H) | (rows, H) at the end.

        Optional: called only where ``supports()`` takes ``problem.states`` for a cell with a cell
        state.
        """

    def takes_both(self, problem: Problem) -> bool:
        """Return whether to scan both directions of a bidirectional layer at once.

        ``problem`` is that of either direction. Optional, and where it is there, so are the two
        below; their ``inputs`` are of the forward direction and of the reverse one, with the same
        x.
        """

    def forward_both(
        self,
        cell: str,
        inputs: tuple[Inputs, Inputs],
        batch_sizes: Tensor | None,
        training: bool,
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Return what :meth:`forward` does for the forward direction, and for the reverse one.

        What it saves is what :meth:`forward` saves: :meth:`backward` can follow for either alone.
        """

    def backward_both(
        self,
        cell: str,
        inputs: tuple[Inputs, Inputs],
        batch_sizes: Tensor | None,
        y: tuple[Tensor, Tensor],
        saved: tuple[tuple[Tensor, ...], tuple[Tensor, ...]],
        given: tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]],
        needs: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the forward direction's other seven operands, then of those
        of the reverse one; None where ``needs``, in the same order, is False.

        ``given`` are dy, dh_n and dc_n of either direction.
        """

    def takes_marks(self, device: torch.device, projected: bool) -> bool:
        """Return whether kernels scan padded sequences by their marks, so that nothing is packed.

        Optional, and where it is there, so are the two below.
        """

    def marked_forward(
        self,
        cell: str,
        inputs: AnyInputs,
        marked: Marked,
        reverse: bool,
        training: bool,
        every_c: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...], Tensor | None]:
        """Do as :meth:`forward`, and return every step's c (T, N, H) at the end, None if unasked.

        y is zero where there is no step; the final states are those after each sequence's last
        step, the initial ones where it has none. The host reads no mark.
        """

    def marked_backward(
        self,
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
        dc: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients in the order of Inputs, then of ``marked.h`` and ``marked.c``.

        None where ``needs``, in the same order, is False.
        """


class Selection(NamedTuple):
    """Which backend runs a problem, and why those before it do not."""

    backend: Backend | None  # None: torch's own operator
    refusals: dict[str, str]
