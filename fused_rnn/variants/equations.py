"""The variants' equations in plain torch: the specification that their kernels are checked against.

Each stands where it changes the plain cell of ``cells.py``, in the order of a step: what the
products give (recurrent dropout, heads, layer norm), what the gates make of it (activations,
peepholes, the coupled gate, the reset before the product), what becomes of the new state (clips,
layer norm of c, zoneout).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from fused_rnn.cells import CELLS, Cell, GruGates, LstmGates, RnnGates, State
from fused_rnn.variants.names import Variant, variant_of
from fused_rnn.variants.philox import KEEP_C, KEEP_H, keeps_old

__all__ = ["Extra", "VariantWeights", "cell_of", "extra_sizes"]


class Extra(NamedTuple):
    """The parameters that a plain cell has not, in the order in which ``extra`` has them."""

    ln_ih: Tensor | None = None  # (G*H,): the gain of the input product's norm; its bias is b_ih
    ln_hh: Tensor | None = None  # (G*H,): and of the recurrent product's, whose bias is b_hh
    ln_c: Tensor | None = None  # (H,): of c, LSTM only
    ln_c_bias: Tensor | None = None  # (H,)
    peephole: Tensor | None = None  # (3*H,): of i, f and o; (2*H,) without i where that is coupled


class VariantWeights(NamedTuple):
    """What a variant's step takes beside its input and its state."""

    w_ih: Tensor  # (G*H, I)
    w_hh: Tensor  # (G*H, R), or (k, G*H/k, R/k) of k heads
    b_ih: Tensor | None = None  # (G*H,)
    b_hh: Tensor | None = None  # (G*H,)
    w_hr: Tensor | None = None  # (R, H)
    extra: Tensor | None = None  # (E,): the members of Extra one after the other
    mask: Tensor | None = None  # (N, R), 0 and 1: recurrent dropout's; None: none is dropped
    draws: Tensor | None = None  # (N, 3): zoneout's, see philox.py; None: the expectation
    step: int = 0  # of which draws tell the mask


def extra_sizes(v: Variant) -> dict[str, int]:
    """Return how many times H numbers each of a variant's own parameters has, by name."""
    sizes: dict[str, int] = {}
    if v.layer_norm is not None:
        sizes |= {"ln_ih": v.gates, "ln_hh": v.gates}
        sizes |= {"ln_c": 1, "ln_c_bias": 1} if v.cell == "lstm" else {}
    if v.use_peepholes:
        sizes["peephole"] = v.gates - 1
    return sizes


def _extra(v: Variant, w: VariantWeights) -> Extra:
    if w.extra is None:
        return Extra()
    sizes = extra_sizes(v)
    units = w.extra.shape[0] // sum(sizes.values())
    parts = w.extra.split([units * size for size in sizes.values()])
    return Extra(**dict(zip(sizes, parts, strict=True)))


def _sigmoid(v: Variant, a: Tensor) -> Tensor:
    kind, alpha, beta = v.recurrent_activation
    if kind == "sigmoid":
        return torch.sigmoid(a)
    # Of relu, whose gradient is zero at the kink, as that of Keras' and of torch's hardsigmoid.
    return 1 - torch.relu(1 - torch.relu(alpha * a + beta))


def _tanh(v: Variant, a: Tensor) -> Tensor:
    return torch.tanh(a) if v.activation == "tanh" else torch.relu(a)


def _clipped(a: Tensor, limit: float) -> Tensor:
    # No gradient from the limit on: of a value there nothing tells whether it was clipped.
    return torch.where(a.abs() < limit, a, a.detach().clamp(-limit, limit))


def _normed(v: Variant, a: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """Normalise what a product gave, if norms are on; add its bias."""
    if v.layer_norm is not None and gain is not None:
        return layer_norm(a, gain.shape, gain, bias, v.layer_norm)
    return a if bias is None else a + bias


def _recurrent(v: Variant, h: Tensor, w_hh: Tensor, first: int, last: int) -> Tensor:
    """Return what the past says to the gates from ``first`` to ``last`` (..., gates*H)."""
    if v.num_heads == 1:
        units = w_hh.shape[0] // v.gates
        return linear(h, w_hh[first * units : last * units])
    # A head's rows are its units of each gate: they come as (..., head, gate, unit).
    heads = w_hh.unflatten(1, (v.gates, -1))[:, first:last]
    said = torch.einsum("...kr,kgur->...gku", h.unflatten(-1, (v.num_heads, -1)), heads)
    return said.flatten(-3)


def _heard(v: Variant, h: Tensor, w: VariantWeights) -> Tensor:
    """Return h as the recurrent product gets it: recurrent dropout leaves the state as it is."""
    return h if w.mask is None else h * w.mask / (1 - v.recurrent_dropout)


def _products(v: Variant, x: Tensor, h: Tensor, w: VariantWeights) -> tuple[Tensor, Tensor]:
    """Return what the input says and what the past says (..., G*H)."""
    extra = _extra(v, w)
    from_x = _normed(v, linear(x, w.w_ih), extra.ln_ih, w.b_ih)
    heard = _recurrent(v, _heard(v, h, w), w.w_hh, 0, v.gates)
    return from_x, _normed(v, heard, extra.ln_hh, w.b_hh)


def lstm_gates(v: Variant, x: Tensor, state: State, w: VariantWeights) -> LstmGates:
    """Return the gates of a long short-term memory."""
    from_x, from_h = _products(v, x, state.h, w)
    *a_i, a_f, a_g, a_o = (from_x + from_h).chunk(v.gates, -1)
    peephole = _extra(v, w).peephole
    if peephole is not None:
        *p_i, p_f, p_o = peephole.chunk(v.gates - 1)
        assert state.c is not None
        a_i = [a + p * state.c for a, p in zip(a_i, p_i, strict=True)]
        a_f = a_f + p_f * state.c
    f, g = _sigmoid(v, a_f), _tanh(v, a_g)
    i = 1 - f if v.input_forget else _sigmoid(v, a_i[0])
    if peephole is not None:  # the output gate sees the new cell state
        a_o = a_o + p_o * _new_c(v, LstmGates(i, f, g, a_o), state)
    return LstmGates(i, f, g, _sigmoid(v, a_o))


def _new_c(v: Variant, gates: LstmGates, state: State) -> Tensor:
    assert state.c is not None
    c = gates.forget * state.c + gates.input * gates.candidate
    return c if v.cell_clip is None else _clipped(c, v.cell_clip)


def lstm(v: Variant, x: Tensor, state: State, w: VariantWeights) -> State:
    """Apply one step of a long short-term memory."""
    gates, extra = lstm_gates(v, x, state, w), _extra(v, w)
    c = _new_c(v, gates, state)
    h = gates.output * _tanh(v, _normed(v, c, extra.ln_c, extra.ln_c_bias))
    if w.w_hr is not None:
        h = linear(h, w.w_hr)
    if v.proj_clip is not None:
        h = _clipped(h, v.proj_clip)
    return _zoned(v, state, State(h, c), w)


def gru_gates(v: Variant, x: Tensor, state: State, w: VariantWeights) -> GruGates:
    """Return the gates of a gated recurrent unit, which resets before the product or after it."""
    extra = _extra(v, w)
    if v.reset_after:
        from_x, from_h = _products(v, x, state.h, w)
        x_r, x_z, x_n = from_x.chunk(3, -1)
        h_r, h_z, h_n = from_h.chunk(3, -1)
        r = _sigmoid(v, x_r + h_r)
        return GruGates(r, _sigmoid(v, x_z + h_z), _tanh(v, x_n + r * h_n))
    from_x = _normed(v, linear(x, w.w_ih), extra.ln_ih, w.b_ih)
    x_r, x_z, x_n = from_x.chunk(3, -1)
    heard, units = _heard(v, state.h, w), x_r.shape[-1]
    # Two products, each with a norm of its own.
    gain, gain_n = (None, None) if extra.ln_hh is None else extra.ln_hh.split((2 * units, units))
    bias, bias_n = (None, None) if w.b_hh is None else w.b_hh.split((2 * units, units))
    h_r, h_z = _normed(v, _recurrent(v, heard, w.w_hh, 0, 2), gain, bias).chunk(2, -1)
    r, z = _sigmoid(v, x_r + h_r), _sigmoid(v, x_z + h_z)
    h_n = _normed(v, _recurrent(v, r * heard, w.w_hh, 2, 3), gain_n, bias_n)
    return GruGates(r, z, _tanh(v, x_n + h_n))


def gru(v: Variant, x: Tensor, state: State, w: VariantWeights) -> State:
    """Apply one step of a gated recurrent unit."""
    _, z, n = gru_gates(v, x, state, w)
    return _zoned(v, state, State((1 - z) * n + z * state.h, None), w)


def rnn_gates(v: Variant, x: Tensor, state: State, w: VariantWeights) -> RnnGates:
    """Return the new state of the plain recurrent network, before zoneout."""
    from_x, from_h = _products(v, x, state.h, w)
    a = from_x + from_h
    return RnnGates(torch.tanh(a) if v.cell == "rnn_tanh" else torch.relu(a))


def rnn(v: Variant, x: Tensor, state: State, w: VariantWeights) -> State:
    """Apply one step of the plain recurrent network."""
    return _zoned(v, state, State(rnn_gates(v, x, state, w).hidden, None), w)


def _zoned(v: Variant, old: State, new: State, w: VariantWeights) -> State:
    """Return the new state, but for the units that keep their old one."""
    p_h, p_c = v.zoneout
    h, c = new
    if p_h:
        h = _between(old.h, h, p_h, w, KEEP_H)
    if p_c and old.c is not None and c is not None:
        c = _between(old.c, c, p_c, w, KEEP_C)
    return State(h, c)


def _between(old: Tensor, new: Tensor, p: float, w: VariantWeights, which: int) -> Tensor:
    if w.draws is None:
        return p * old + (1 - p) * new
    return torch.where(keeps_old(w.draws, w.step, new.shape[-1], p, which), old, new)


_STEPS: dict[str, tuple[Callable[..., State], Callable[..., LstmGates | GruGates | RnnGates]]] = {
    "lstm": (lstm, lstm_gates),
    "gru": (gru, gru_gates),
    "rnn_tanh": (rnn, rnn_gates),
    "rnn_relu": (rnn, rnn_gates),
}


@lru_cache(maxsize=1024)
def _composed(name: str) -> Cell:
    v = variant_of(name)
    if v is None:
        return CELLS[name]
    step, gates = _STEPS[v.cell]
    plain = CELLS[v.cell]
    return Cell(name, v.gates, plain.has_cell_state, partial(step, v), partial(gates, v))


def cell_of(name: str) -> Cell:
    """Return the row of the table of cells for a plain cell's name, or make one for a variant's.

    A variant's ``step`` and ``gates_of`` take :class:`VariantWeights`, and the latter all of the
    state where a plain one's takes h.
    """
    # Not by what TorchDynamo takes for a constant: it would forget where the table's rows are.
    return CELLS[name] if name in CELLS else _of_variant(name)


def _of_variant(name: str) -> Cell:
    return _composed(name)


_of_variant._dynamo_marked_constant = True  # type: ignore[attr-defined]
