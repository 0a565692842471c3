"""The node's ops as they were once, for programs that were exported then.

Their results were a list of what backends save, which code generators for C++ do not take. They are
made of the ops of today, with all that those know of autograd, transforms and tracers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_rnn.graph.node import OPERANDS
from fused_rnn.graph.running import fixed

__all__: list[str] = []

torch.library.define(
    "fused_rnn::scan",
    f"({OPERANDS}, bool training) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor[] saved)",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "fused_rnn::scan_backward",
    f"({OPERANDS}, Tensor y, Tensor[] saved, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, "
    f"bool[] needs) -> ({', '.join(['Tensor'] * 10)})",
    tags=torch.Tag.pt2_compliant_tag,
)


def _forward(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    y, h_n, c_n, c, *saved = torch.ops.fused_rnn.layer_forward(*operands)
    return y, h_n, c_n, c, saved if operands[-1] else []


def _backward(*operands: Any) -> tuple[Tensor, ...]:
    *scan, y, saved, dy, dh_n, dc_n, dc, needs = operands
    return torch.ops.fused_rnn.layer_backward(
        *scan, y, *fixed(tuple(saved), y), dy, dh_n, dc_n, dc, needs
    )


torch.library.impl("fused_rnn::scan", "CompositeImplicitAutograd", _forward)
torch.library.impl("fused_rnn::scan_backward", "CompositeImplicitAutograd", _backward)
