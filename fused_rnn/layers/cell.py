"""What makes a cell a drop-in: one step, by a kernel or torch.nn's own forward."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fused_rnn.backends import only_rules, transforms
from fused_rnn.cells import CELLS
from fused_rnn.layers.dropin import DropIn
from fused_rnn.layers.varied_cell import VariedCell
from fused_rnn.scans.checks import check_cell
from fused_rnn.scans.stack import CELL_MISFIT, TORCH_CELLS, run_cell

__all__ = ["Cell"]

# A plain cell's nonlinearity makes no difference to its sizes.
_CELLS: dict[type[nn.Module], str] = {
    nn.LSTMCell: "lstm",
    nn.GRUCell: "gru",
    nn.RNNCell: "rnn_tanh",
}


class Cell(VariedCell, DropIn, nn.RNNCellBase):
    """What LSTMCell, GRUCell and RNNCell have in common."""

    _torch: ClassVar[type[nn.Module]]

    def _step(
        self, cell: str | None, x: Any, h: Any, c: Any, zeros: bool
    ) -> tuple[Tensor, Tensor | None] | None:
        """Run a step from h and c, or from zeros; return None if it is torch.nn's business."""
        if cell is None or not isinstance(x, Tensor):
            return None
        rank = x.dim()
        if rank == 1:
            x = x.unsqueeze(0)
            if not zeros:
                if not isinstance(h, Tensor) or not (c is None or isinstance(c, Tensor)):
                    return None
                h, c = h.unsqueeze(0), c if c is None else c.unsqueeze(0)
        elif rank != 2:
            return None
        if zeros:
            h = x.new_zeros(x.shape[0], self.hidden_size)
            c = h if CELLS[cell].has_cell_state else None
        state = run_cell(cell, x, h, c, *self._weights())
        if rank == 1 and state is not None:
            h, c = state
            return h.squeeze(0), c if c is None else c.squeeze(0)
        return state

    def _by_operator(self, x: Any, h: Any) -> Tensor | None:
        """Run a step of a plain cell that trains by torch's operator, or return None.

        That is what :func:`run_cell` comes to if nobody has asked for something else; the way
        there takes a tenth of a short step.
        """
        if not isinstance(x, Tensor) or x.dim() != 2:
            return None
        if h is not None and not (isinstance(h, Tensor) and h.dim() == 2):
            return None
        w_ih, w_hh, b_ih, b_hh = self._weights()
        # The usual case by one look; where something else alone trains, the way there does as well.
        if w_ih is None or w_hh is None or not w_hh.requires_grad or not torch.is_grad_enabled():
            return None
        if not only_rules() or transforms.active() is not None:
            return None
        # The operator itself repeats a weight or a bias that has one row for many.
        size = self.hidden_size
        if w_hh.shape != (size, size) or w_ih.shape != (size, self.input_size):
            return None
        if b_ih is None or b_hh is None:
            if b_ih is not b_hh:
                return None
        elif not b_ih.shape == b_hh.shape == (size,):
            return None
        operator = TORCH_CELLS.get(f"rnn_{self.nonlinearity}")
        if operator is None:
            return None
        if h is None:
            h = x.new_zeros(x.shape[0], size)
        return operator(x, h, w_ih, w_hh, b_ih, b_hh)

    def _weights(self) -> tuple[Any, Any, Any, Any]:
        parameters = self._parameters
        try:
            return (
                parameters["weight_ih"],
                parameters["weight_hh"],
                parameters["bias_ih"],
                parameters["bias_hh"],
            )
        except KeyError:  # parametrized, or replaced by a plain tensor
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def _check_for_torch(self, input: Any, hx: Any) -> None:
        if not isinstance(input, Tensor) or input.dim() not in (1, 2):
            return
        name = self._torch.__name__
        if hx is None:
            states = []
        elif self._torch is not nn.LSTMCell:
            states = [("hidden", hx)]
        elif not isinstance(hx, (Tensor, tuple, list)):
            return
        elif isinstance(hx, Tensor) and input.dim() == 2:
            raise TypeError(f"{name}: Expected hx to be a pair of tensors, got one tensor")
        elif len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        else:
            states = [(f"hx[{i}]", state) for i, state in enumerate(hx)]
        if all(isinstance(s, Tensor) and s.dim() in (1, 2) for _, s in states):
            weights = self._weights()
            gates = CELLS[_CELLS[self._torch]].gates
            check_cell(name, gates, self.hidden_size, input, states, weights)

    def _in_graph(self, input: Any, hx: Any) -> Any:
        self._check_for_torch(input, hx)
        return self._torch.forward(self, input, hx)

    def _not_fitting(self, input: Any, hx: Any) -> Any:
        return self._by_torch(input, hx, CELL_MISFIT)
