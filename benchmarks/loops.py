"""Variants of the cells as loops of torch's operators: what people write who have no such layer.

Written with some care: what the input says to the gates is one product for all steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardsigmoid, layer_norm, linear

__all__ = ["DRAWN", "LOOPS", "RATE", "loop"]

# From what the input says to the gates in a step, and the state before it, to the state after it.
Step = Callable[..., tuple[Tensor, ...]]


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _normed_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    w, gain = p["weight_hh_l0"], p["ln_hh_l0"]
    gates = x + layer_norm(linear(h, w), gain.shape, gain, p["bias_hh_l0"])
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    shown = layer_norm(c, c.shape[-1:], p["ln_c_l0"], p["ln_c_bias_l0"])
    return torch.sigmoid(o) * torch.tanh(shown), c


def _peeping_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    a_i, a_f, g, a_o = (x + linear(h, p["weight_hh_l0"], p["bias_hh_l0"])).chunk(4, -1)
    p_i, p_f, p_o = p["peephole_l0"].chunk(3)
    i, f = torch.sigmoid(a_i + p_i * c), torch.sigmoid(a_f + p_f * c)
    c = f * c + i * torch.tanh(g)
    return torch.sigmoid(a_o + p_o * c) * torch.tanh(c), c


def _clipped_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    i, f, g, o = (x + linear(h, p["weight_hh_l0"], p["bias_hh_l0"])).chunk(4, -1)
    c = (torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)).clamp(-3, 3)
    return torch.sigmoid(o) * torch.tanh(c), c


def _headed_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    w = p["weight_hh_l0"]
    heads = len(w)
    said = torch.bmm(h.unflatten(-1, (heads, -1)).transpose(0, 1), w.transpose(1, 2))
    said = said.unflatten(-1, (4, -1)).permute(1, 2, 0, 3).flatten(1)
    return _lstm(x + said + p["bias_hh_l0"], c)


def _zoned_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    after, c_after = _lstm(x + linear(h, p["weight_hh_l0"], p["bias_hh_l0"]), c)
    keeps_h, keeps_c = torch.rand_like(h) < RATE, torch.rand_like(c) < RATE
    return torch.where(keeps_h, h, after), torch.where(keeps_c, c, c_after)


def _dropping_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return _lstm(x + linear(h * p["mask"], p["weight_hh_l0"], p["bias_hh_l0"]), c)


def _hard_lstm(x: Tensor, h: Tensor, c: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    i, f, g, o = (x + linear(h, p["weight_hh_l0"], p["bias_hh_l0"])).chunk(4, -1)
    c = hardsigmoid(f) * c + hardsigmoid(i) * torch.tanh(g)
    return hardsigmoid(o) * torch.tanh(c), c


def _normed_gru(x: Tensor, h: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    w, gain = p["weight_hh_l0"], p["ln_hh_l0"]
    said = layer_norm(linear(h, w), gain.shape, gain, p["bias_hh_l0"])
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), said.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (h - n),)


def _resetting_gru(x: Tensor, h: Tensor, p: dict[str, Tensor]) -> tuple[Tensor, ...]:
    units = h.shape[-1]
    w, b = p["weight_hh_l0"], p["bias_hh_l0"]
    x_rz, x_n = x.split((2 * units, units), -1)
    r, z = torch.sigmoid(x_rz + linear(h, w[: 2 * units], b[: 2 * units])).chunk(2, -1)
    n = torch.tanh(x_n + linear(r * h, w[2 * units :], b[2 * units :]))
    return (n + z * (h - n),)


RATE = 0.1  # of what is drawn

# Those whose masks are drawn: their results are no other's.
DRAWN = "LSTM with zoneout", "LSTM with recurrent dropout"

LOOPS: dict[str, tuple[str, dict[str, Any], Step]] = {
    "LSTM with layer norm": ("LSTM", {"layer_norm": True}, _normed_lstm),
    "GRU with layer norm": ("GRU", {"layer_norm": True}, _normed_gru),
    "LSTM with zoneout": ("LSTM", {"zoneout": RATE}, _zoned_lstm),
    "LSTM with recurrent dropout": ("LSTM", {"recurrent_dropout": RATE}, _dropping_lstm),
    "LSTM with hard sigmoids": ("LSTM", {"recurrent_activation": "hard_sigmoid"}, _hard_lstm),
    "LSTM with peepholes": ("LSTM", {"use_peepholes": True}, _peeping_lstm),
    "LSTM with clipped c": ("LSTM", {"cell_clip": 3.0}, _clipped_lstm),
    "LSTM with 4 heads": ("LSTM", {"num_heads": 4}, _headed_lstm),
    "GRU that resets before": ("GRU", {"reset_after": False}, _resetting_gru),
}


def loop(step: Step, x: Tensor, parameters: dict[str, Tensor], cells: bool) -> Tensor:
    """Return the outputs (T, N, H) of one layer.

    Args:
        step: of ``LOOPS``, compiled or not
        parameters: of a layer, by name
        cells: whether there is a c
    """
    weight, bias = parameters["weight_ih_l0"], parameters["bias_ih_l0"]
    gain = parameters.get("ln_ih_l0")
    if gain is None:
        of_x = linear(x, weight, bias)
    else:
        of_x = layer_norm(linear(x, weight), gain.shape, gain, bias)
    units = len(bias) // (4 if cells else 3)
    state = (x.new_zeros(x.shape[1], units),) * (2 if cells else 1)
    outputs = []
    for of_step in of_x.unbind(0):
        state = step(of_step, *state, parameters)
        outputs.append(state[0])
    return torch.stack(outputs)
