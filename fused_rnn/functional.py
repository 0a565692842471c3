"""The recurrent layers and cells as functions: layers, directions, dropout and packing over scans.

For models that keep their weights themselves. :mod:`fused_rnn.modules` has the same with
parameters and with torch.nn's argument checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fused_rnn.backends import torch_ran, transforms
from fused_rnn.graph.compiled import run_stack_in_graph
from fused_rnn.layers.options import Options, Steps
from fused_rnn.scans.autocast import recast
from fused_rnn.scans.checks import (
    Row,
    Stack,
    check_batch_sizes,
    check_bool,
    check_weights,
    foreign,
    misfit,
)
from fused_rnn.scans.stack import (
    CELL_MISFIT,
    outside_the_graph,
    run_cell,
    run_stack,
    torch_cell,
    torch_stack,
)

__all__ = ["gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]


@overload
def lstm(
    input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: Sequence[Sequence[Tensor]], *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[False] = False,
    initial_state: tuple[Tensor, Tensor] | None = None, recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...  # fmt: skip
@overload
def lstm(
    input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: Sequence[Sequence[Tensor]], *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[True],
    initial_state: tuple[Tensor, Tensor] | None = None, recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]: ...  # fmt: skip
@overload
def lstm(
    input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: Sequence[Sequence[Tensor]], *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: bool,
    initial_state: tuple[Tensor, Tensor] | None = None, recompute: bool = False,
) -> tuple[Any, ...]: ...  # fmt: skip
def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    initial_state: tuple[Tensor, Tensor] | None = None,
    recompute: bool = False,
) -> tuple[Any, ...]:
    r"""Apply a multi-layer long short-term memory (LSTM) to an input sequence.

    See :class:`torch.nn.LSTM` for the equations. The number of layers, their sizes, biases and
    projections follow from the weights.

    Args:
        input: the input sequence, or the data of a
            :class:`~torch.nn.utils.rnn.PackedSequence`
        hx: the initial hidden and cell state; ``None`` for zeros
        weights: ``(w_ih, w_hh[, b_ih, b_hh][, w_hr])`` for each layer and direction, as in the
            ``all_weights`` of a module
        bidirectional: whether the weights come in pairs, one for each direction. Default: ``False``
        dropout: probability of an element being zeroed between layers. Default: 0
        training: whether dropout is applied. Default: ``False``
        batch_first: whether ``input`` and output are :math:`(N, T, \cdot)` instead of
            :math:`(T, N, \cdot)`. Default: ``False``
        batch_sizes: the ``batch_sizes`` of a packed sequence. Default: ``None``
        lengths, resets, return_states: see :class:`fused_rnn.LSTM`
        initial_state: what stands in for zeros where ``hx`` is ``None``, and after a reset.
            Default: ``None``
        recompute: whether backward makes what it needs by another forward, instead of keeping it;
            without effect where torch.nn's own forward runs. Default: ``False``

    Shape:
        - input: :math:`(T, N, I)`, or :math:`(\sum \text{batch\_sizes}, I)` for packed data
        - hx: :math:`(L \cdot D, N, R)` and :math:`(L \cdot D, N, H)` for :math:`L` layers and
          :math:`D` directions, where :math:`R` is the projected size or :math:`H`; in the order
          of the packed data
        - initial_state: :math:`(L \cdot D, 1, R)` and :math:`(L \cdot D, 1, H)`
        - output: :math:`(T, N, D \cdot R)`, or :math:`(\sum \text{batch\_sizes}, D \cdot R)`,
          and the final states in the shapes of ``hx``

    Raises:
        RuntimeError: if the operands do not fit together.
        TypeError: if an argument is of another type: weights that are no rows of tensors, say.
        TypeError, ValueError: if lengths or resets are not what they should be.

    Examples::

        >>> rnn = torch.nn.LSTM(10, 20, num_layers=2)
        >>> input = torch.randn(5, 3, 10)
        >>> output, (hn, cn) = fused_rnn.functional.lstm(input, None, rnn.all_weights)
        >>> output.shape
        torch.Size([5, 3, 20])
    """
    h0, c0 = (None, None) if hx is None else _pair("lstm", hx)
    if (h0 is None) != (c0 is None):
        raise RuntimeError("lstm: expected two initial states or none, got one")
    options = _options(
        lengths, resets, return_states, recompute, initial_state, batch_first, batch_sizes
    )
    output, h_n, c_n, steps = _checked_stack(
        "lstm", input, h0, c0, weights, bidirectional, dropout, training, batch_first, batch_sizes,
        options,
    )  # fmt: skip
    return (output, (h_n, c_n)) if steps is None else (output, (h_n, c_n), steps)


@overload
def gru(
    input: Tensor, hx: Tensor | None, weights: Sequence[Sequence[Tensor]], *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[False] = False,
    initial_state: Tensor | None = None, recompute: bool = False,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def gru(
    input: Tensor, hx: Tensor | None, weights: Sequence[Sequence[Tensor]], *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[True],
    initial_state: Tensor | None = None, recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip
@overload
def gru(
    input: Tensor, hx: Tensor | None, weights: Sequence[Sequence[Tensor]], *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: bool,
    initial_state: Tensor | None = None, recompute: bool = False,
) -> tuple[Any, ...]: ...  # fmt: skip
def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    initial_state: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Any, ...]:
    r"""Apply a multi-layer gated recurrent unit (GRU) to an input sequence.

    See :class:`torch.nn.GRU` for the equations and :func:`lstm` for the arguments; the state is one
    tensor, and there are no projections.

    Examples::

        >>> rnn = torch.nn.GRU(10, 20, bidirectional=True)
        >>> input = torch.randn(5, 3, 10)
        >>> output, hn = fused_rnn.functional.gru(
        ...     input, None, rnn.all_weights, bidirectional=True
        ... )
        >>> output.shape
        torch.Size([5, 3, 40])
    """
    options = _options(
        lengths, resets, return_states, recompute, initial_state, batch_first, batch_sizes
    )
    output, h_n, _, steps = _checked_stack(
        "gru", input, hx, None, weights, bidirectional, dropout, training, batch_first, batch_sizes,
        options,
    )  # fmt: skip
    return (output, h_n) if steps is None else (output, h_n, steps[0])


@overload
def rnn(
    input: Tensor, hx: Tensor | None, weights: Sequence[Sequence[Tensor]],
    nonlinearity: Literal["tanh", "relu"] = "tanh", *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[False] = False,
    initial_state: Tensor | None = None, recompute: bool = False,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
@overload
def rnn(
    input: Tensor, hx: Tensor | None, weights: Sequence[Sequence[Tensor]],
    nonlinearity: Literal["tanh", "relu"] = "tanh", *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: Literal[True],
    initial_state: Tensor | None = None, recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]: ...  # fmt: skip
@overload
def rnn(
    input: Tensor, hx: Tensor | None, weights: Sequence[Sequence[Tensor]],
    nonlinearity: Literal["tanh", "relu"] = "tanh", *,
    bidirectional: bool = False, dropout: float = 0.0, training: bool = False,
    batch_first: bool = False, batch_sizes: Tensor | None = None, lengths: Tensor | None = None,
    resets: Tensor | None = None, return_states: bool,
    initial_state: Tensor | None = None, recompute: bool = False,
) -> tuple[Any, ...]: ...  # fmt: skip
def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    *,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_states: bool = False,
    initial_state: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Any, ...]:
    r"""Apply a multi-layer plain recurrent network, with tanh or ReLU, to an input sequence.

    See :class:`torch.nn.RNN` for the equations and :func:`lstm` for the arguments; the state is one
    tensor, and there are no projections.

    Args:
        nonlinearity: ``'tanh'`` or ``'relu'``. Default: ``'tanh'``

    Examples::

        >>> rnn = torch.nn.RNN(10, 20, nonlinearity="relu")
        >>> input = torch.randn(5, 3, 10)
        >>> output, hn = fused_rnn.functional.rnn(input, None, rnn.all_weights, "relu")
    """
    options = _options(
        lengths, resets, return_states, recompute, initial_state, batch_first, batch_sizes
    )
    output, h_n, _, steps = _checked_stack(
        _rnn_name(nonlinearity), input, hx, None, weights, bidirectional, dropout, training,
        batch_first, batch_sizes, options,
    )  # fmt: skip
    return (output, h_n) if steps is None else (output, h_n, steps[0])


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Apply one step of a long short-term memory.

    See :class:`torch.nn.LSTMCell` for the equations.

    Shape:
        - input: :math:`(N, I)`
        - hx, and the result: hidden and cell state, each :math:`(N, H)`
        - w_ih, w_hh: :math:`(4H, I)` and :math:`(4H, H)`; b_ih, b_hh: :math:`(4H)`

    Examples::

        >>> cell = torch.nn.LSTMCell(10, 20)
        >>> hx = torch.zeros(3, 20), torch.zeros(3, 20)
        >>> h, c = fused_rnn.functional.lstm_cell(torch.randn(3, 10), hx, *cell.parameters())
    """
    h, c = _pair("lstm_cell", hx)
    return _checked_cell("lstm", input, h, c, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    r"""Apply one step of a gated recurrent unit.

    See :class:`torch.nn.GRUCell` for the equations.

    Shape:
        - input: :math:`(N, I)`
        - hx, and the result: :math:`(N, H)`
        - w_ih, w_hh: :math:`(3H, I)` and :math:`(3H, H)`; b_ih, b_hh: :math:`(3H)`

    Examples::

        >>> cell = torch.nn.GRUCell(10, 20)
        >>> h = fused_rnn.functional.gru_cell(
        ...     torch.randn(3, 10), torch.zeros(3, 20), *cell.parameters()
        ... )
    """
    return _checked_cell("gru", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
) -> Tensor:
    r"""Apply one step of a plain recurrent network, with tanh or ReLU.

    See :class:`torch.nn.RNNCell` for the equations.

    Shape:
        - input: :math:`(N, I)`
        - hx, and the result: :math:`(N, H)`
        - w_ih, w_hh: :math:`(H, I)` and :math:`(H, H)`; b_ih, b_hh: :math:`(H)`

    Examples::

        >>> cell = torch.nn.RNNCell(10, 20)
        >>> h = fused_rnn.functional.rnn_cell(
        ...     torch.randn(3, 10), torch.zeros(3, 20), *cell.parameters()
        ... )
    """
    name = _rnn_name(nonlinearity)
    return _checked_cell(name, input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def _pair(name: str, hx: Any) -> Sequence[Any]:
    if not isinstance(hx, (tuple, list)) or len(hx) != 2:
        given = f"{len(hx)} of them" if isinstance(hx, (tuple, list)) else type(hx).__name__
        raise TypeError(f"{name}: hx should be two tensors, (h_0, c_0), got: {given}")
    return hx


class _Asked(NamedTuple):
    """What a call asks for beyond torch.nn."""

    options: Options
    kernels_only: bool  # whether torch.nn's own forward cannot do without what is asked for


def _options(
    lengths: Tensor | None,
    resets: Tensor | None,
    return_states: bool,
    recompute: bool,
    initial_state: Any,
    batch_first: bool,
    batch_sizes: Tensor | None,
) -> _Asked | None:
    """Return what is asked for beyond torch.nn, or None."""
    check_bool("return_states", return_states)
    check_bool("recompute", recompute)
    cut = lengths is not None or resets is not None
    if not (cut or return_states or recompute or initial_state is not None):
        return None
    if cut and batch_sizes is not None:
        raise TypeError(
            "lengths and resets go with a padded tensor, got: batch_sizes, which are lengths"
        )
    h, c = initial_state if isinstance(initial_state, (tuple, list)) else (initial_state, None)
    options = Options(lengths, resets, return_states, recompute, (h, c), batch_first)
    return _Asked(options, cut or return_states)


def _begun(
    options: Options, stack: Stack, x: Tensor, h0: Tensor | None, c0: Tensor | None, n: int
) -> tuple[Tensor | None, Tensor | None]:
    """Return the initial states, which the options may have where the call has none."""
    h, c = options.anew(stack, x)
    if h0 is not None or h is None:
        return h0, c0
    return h.expand(-1, n, -1), c if c is None else c.expand(-1, n, -1)


def _rnn_name(nonlinearity: str) -> str:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return f"rnn_{nonlinearity}"


def _checked_cell(
    cell: str, x: Tensor, h: Tensor, c: Tensor | None, *weights: Any
) -> tuple[Tensor, Any]:
    if torch.compiler.is_compiling():
        return torch_cell(cell, x, h, c, *weights)
    state = run_cell(cell, x, h, c, *weights)
    if state is None:
        state = torch_cell(cell, x, h, c, *weights)
        torch_ran(CELL_MISFIT)
    return state


def _checked_stack(
    cell: str,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    rows: Sequence[Row],
    bidirectional: bool,
    dropout: float,
    training: bool,
    batch_first: bool,
    batch_sizes: Tensor | None,
    asked: _Asked | None,
) -> tuple[Tensor, Tensor, Tensor | None, Steps | None]:
    run: Callable[..., Any]
    n: Any
    result: Any
    compiling = torch.compiler.is_compiling()
    for name, option in (
        ("bidirectional", bidirectional),
        ("training", training),
        ("batch_first", batch_first),
    ):
        check_bool(name, option)
    stack = Stack.of(cell, rows, bidirectional)
    if not isinstance(x, Tensor):
        hint = ", whose data and batch_sizes serve" if isinstance(x, PackedSequence) else ""
        raise TypeError(f"{cell}: input should be a tensor, got: {type(x).__name__}{hint}")
    for state in (h0, c0):
        if state is not None and not isinstance(state, Tensor):
            raise TypeError(f"{cell}: hx should be a tensor, got: {type(state).__name__}")
    if x.dim() != (3 if batch_sizes is None else 2):
        raise RuntimeError(
            f"{cell}: the input should be 3-D, or 2-D with batch_sizes, got {x.dim()}-D"
        )
    given, batch_first = x, batch_first and batch_sizes is None
    if batch_first:
        x = x.transpose(0, 1)
    reason = foreign(x, h0, c0, rows)
    options = None if asked is None else asked.options
    kernels_only = asked is not None and asked.kernels_only
    if compiling and batch_sizes is not None:
        reason = "sizes of batches are not known to a graph"
    if reason is None:
        n = x.shape[1] if batch_sizes is None else check_batch_sizes(x, batch_sizes)[0]
        any_dtype = transforms.active() == transforms.AUTOCAST
        check_weights(stack, rows, any_dtype)
        if h0 is not None and h0.dim() == 3 and h0.shape[0] != len(rows):
            raise RuntimeError(
                f"{cell}: hx has {h0.shape[0]} states and weights has {len(rows)} rows; there "
                "should be one of each for each layer and direction"
            )
        mistake = misfit(stack, x, h0, c0, n, rows[0][0], any_dtype)
        if mistake is not None:
            raise RuntimeError(f"{cell}: {mistake}")
        run = run_stack_in_graph if compiling else run_stack
        if options is not None:
            run = options.run
        if any_dtype:
            run = partial(recast, run)
        result = run(stack, x, h0, c0, rows, batch_sizes, n, dropout, training)
        if isinstance(result, str):
            reason = result
    if reason is not None:
        if compiling and not transforms.exporting():
            return outside_the_graph(
                _checked_stack, cell, given, h0, c0, rows, bidirectional, dropout, training,
                batch_first, batch_sizes, asked,
            )  # fmt: skip
        if compiling and kernels_only:
            raise RuntimeError(
                f"{cell}: lengths, resets and the states of every step of these operands cannot be "
                f"exported: {reason}"
            )
        n = x.shape[1] if batch_sizes is None else batch_sizes[0]
        if options is not None:
            h0, c0 = _begun(options, stack, x, h0, c0, n)
        result = torch_stack(stack, x, h0, c0, rows, batch_sizes, n, dropout, training)
        torch_ran(reason)
        if options is not None and kernels_only:
            options.check_ran()
    y, h_n, c_n = result
    steps = None if options is None else options.steps
    return y.transpose(0, 1) if batch_first else y, h_n, c_n, steps
