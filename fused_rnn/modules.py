"""The modules: torch.nn's own, with another forward."""

# No annotations from __future__: inspect.signature is to show types, not strings.
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.types import Device

from fused_rnn.layers.cell import Cell
from fused_rnn.layers.dropin import Layers
from fused_rnn.layers.proxy import rebuild
from fused_rnn.layers.signatures import constructor, like

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "safe_globals"]


class LSTM(Layers[tuple[Tensor, Tensor], tuple[PackedSequence, PackedSequence]]):
    r"""Apply a multi-layer long short-term memory (LSTM) to an input sequence: a drop-in for
    :class:`torch.nn.LSTM`.

    Arguments, inputs, outputs, parameters, initial values and errors are those of
    :class:`torch.nn.LSTM`, and state_dicts go both ways. What no kernel takes runs
    ``torch.nn.LSTM``'s own forward; :func:`fused_rnn.explain` tells which ran.

    Beyond :class:`torch.nn.LSTM`: gradients of gradients, :func:`torch.func.vmap` and forward-mode
    AD work for every dtype, a packed sequence is checked like any other input, and a parametrized
    weight is computed once per call. The keyword-only arguments below are ours; :meth:`step` runs
    one step, :meth:`gates` tells what the gates did.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size:
            see :class:`torch.nn.LSTM`
        learn_initial_state: whether there are parameters ``h0``
            :math:`(D * \text{num\_layers}, 1, H_{out})` and ``c0``
            :math:`(D * \text{num\_layers}, 1, H_{cell})`, zeros at first, to begin with where no
            state is given, and to begin anew with after a reset. Default: ``False``
        recompute: whether the forward pass keeps only inputs and outputs, from which the backward
            pass makes all else once more: less memory for a second forward, with the same gradients
            to the bit. May be set on a layer at any time. After Chen et al. 2016
            (arXiv:1604.06174). Default: ``False``
        recurrent_dropout: probability with which a unit of h is not heard by the next step, by one
            mask for all steps of a sequence, in training mode. After Gal and Ghahramani 2016
            (arXiv:1512.05287). Default: ``0.0``
        zoneout: probability with which a unit keeps its old value in a step, or a pair, for h and
            for c. After Krueger et al. 2017 (arXiv:1606.01305). Default: ``0.0``
        layer_norm, norm_eps: whether what each product gives, and c where it is shown, are
            normalised, with gains ``ln_ih_l[k]``, ``ln_hh_l[k]`` and ``ln_c_l[k]``; and what is
            added to variances. After Ba et al. 2016 (arXiv:1607.06450). Default: ``False``, 1e-5
        recurrent_activation: of the gates: ``"sigmoid"``, ``"hard_sigmoid"`` (Keras 3's,
            relu6(x + 3) / 6), or ``("hard_sigmoid", alpha, beta)``. Default: ``"sigmoid"``
        activation: of the candidate and of c: ``"tanh"`` or ``"relu"``. Default: ``"tanh"``
        use_peepholes: whether the gates see c, by weights ``peephole_l[k]``
            :math:`(3 * H_{cell})` of i, f and o. After Gers and Schmidhuber 2000.
            Default: ``False``
        input_forget: whether the input gate is one minus the forget gate; the weights then have the
            gates f, g and o. After Greff et al. 2017 (arXiv:1503.04069). Default: ``False``
        cell_clip, proj_clip: c and the projection are clipped to plus and minus this at each step.
            Default: ``None``
        num_heads: the recurrent weight is block-diagonal, with ``weight_hh_l[k]`` of shape
            :math:`(k, 4 * H_{cell} / k, H_{out} / k)`. Default: ``1``

    Inputs: input, (h_0, c_0), lengths, resets, return_states
        * **input**: tensor of shape :math:`(L, H_{in})`, :math:`(L, N, H_{in})`, or
          :math:`(N, L, H_{in})` when ``batch_first=True``, or a
          :class:`~torch.nn.utils.rnn.PackedSequence`
        * **h_0**, **c_0**: tensors of shape :math:`(D * \text{num\_layers}, N, H_{out})` and
          :math:`(D * \text{num\_layers}, N, H_{cell})`, without :math:`N` for unbatched input.
          Default to zeros.
        * **lengths**: integers of shape :math:`(N)`, or :math:`()` for unbatched input, on any
          device and in any order: how many steps of each sequence count, from 0 on. What is past
          them has no influence. Outputs there are zero; final states are those at the end, or the
          initial ones of a sequence without steps; the reverse direction begins at each sequence's
          own end. Default: ``None``, for all steps
        * **resets**: booleans in the layout of **input**, :math:`(L, N)`, :math:`(N, L)` when
          ``batch_first=True``, or :math:`(L)`: where true, a sequence begins anew with this step.
          The state before it is the learned initial one, or zeros, and never :math:`h_0, c_0`. The
          reverse direction too carries nothing across that border: it begins anew with the step
          before. Default: ``None``
        * **return_states**: whether to return the states of every step. Default: ``False``

    Outputs: output, (h_n, c_n)[, (h, c)]
        * **output**: :math:`(L, D * H_{out})`, :math:`(L, N, D * H_{out})`, or
          :math:`(N, L, D * H_{out})` when ``batch_first=True``, or a packed sequence
        * **h_n**, **c_n**: the final states, in the shapes of the initial ones
        * **h**, **c**: with ``return_states=True`` what every step of the scan left, of shapes
          :math:`(L, D * \text{num\_layers}, N, H_{out})` and
          :math:`(L, D * \text{num\_layers}, N, H_{cell})`, without :math:`N` for unbatched input;
          packed sequences with those of each element for a packed one

    Raises:
        TypeError: if lengths or resets are no tensors of integers and booleans, or are given with a
            packed sequence.
        ValueError: if their shapes are others, or a length is negative or larger than :math:`L`.

    .. note::
        Lengths and resets on a GPU are not read by the host, which need not wait: a wrong length
        then fails an assertion on the device. On the CPU, or with a projection, they are read.

    Examples::

        >>> rnn = fused_rnn.LSTM(10, 20, 2)
        >>> input = torch.randn(5, 3, 10)
        >>> h0 = torch.randn(2, 3, 20)
        >>> c0 = torch.randn(2, 3, 20)
        >>> output, (hn, cn) = rnn(input, (h0, c0))
        >>> output.shape
        torch.Size([5, 3, 20])
        >>> output, (hn, cn) = rnn(input, lengths=torch.tensor([2, 5, 0]))
        >>> output[2:, 0].any()
        tensor(False)
        >>> episodes = torch.rand(5, 3) < 0.5
        >>> output, (hn, cn), (h, c) = rnn(input, resets=episodes, return_states=True)
        >>> c.shape
        torch.Size([5, 2, 3, 20])
    """

    _torch = nn.LSTM

    @constructor(nn.LSTM.__init__, Layers)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        norm_eps: float = 1e-5,
        recurrent_activation: str | tuple[str, float, float] = "sigmoid",
        activation: str = "tanh",
        use_peepholes: bool = False,
        input_forget: bool = False,
        cell_clip: float | None = None,
        proj_clip: float | None = None,
        num_heads: int = 1,
    ) -> None:
        """See the class."""

    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def _states(self, hx: Any) -> tuple[Tensor | None, Tensor | None] | None:
        if hx is None:
            return None, None
        if not isinstance(hx, (tuple, list)) or len(hx) != 2:
            return None
        h, c = hx
        return (h, c) if isinstance(h, Tensor) and isinstance(c, Tensor) else None


class GRU(Layers[Tensor, PackedSequence]):
    r"""Apply a multi-layer gated recurrent unit (GRU) to an input sequence: a drop-in for
    :class:`torch.nn.GRU`.

    Arguments, inputs, outputs, parameters, initial values and errors are those of
    :class:`torch.nn.GRU`, and state_dicts go both ways. What no kernel takes runs
    ``torch.nn.GRU``'s own forward; :func:`fused_rnn.explain` tells which ran.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional:
            see :class:`torch.nn.GRU`
        learn_initial_state, recompute, recurrent_dropout: see :class:`LSTM`
        zoneout: see :class:`LSTM`; one probability
        layer_norm, norm_eps, recurrent_activation, activation, num_heads: see :class:`LSTM`
        reset_after: whether the reset gate applies to what the recurrent product gives, as in
            :class:`torch.nn.GRU`, or, as in Cho et al. 2014 (arXiv:1406.1078), to what it takes;
            with ``layer_norm`` the candidate then has a norm of its own, as in Ba et al. 2016, and
            by default one is of all three. Default: ``True``

    Inputs: input, h_0, lengths, resets, return_states
        * **input**: tensor of shape :math:`(L, H_{in})`, :math:`(L, N, H_{in})`, or
          :math:`(N, L, H_{in})` when ``batch_first=True``, or a
          :class:`~torch.nn.utils.rnn.PackedSequence`
        * **h_0**: tensor of shape :math:`(D * \text{num\_layers}, N, H_{out})`, without :math:`N`
          for unbatched input. Defaults to zeros.
        * **lengths**, **resets**, **return_states**: see :class:`LSTM`

    Outputs: output, h_n[, h]
        * **output**: :math:`(L, D * H_{out})`, :math:`(L, N, D * H_{out})`, or
          :math:`(N, L, D * H_{out})` when ``batch_first=True``, or a packed sequence
        * **h_n**: the final state, in the shape of the initial one
        * **h**: with ``return_states=True`` the states of every step, as for :class:`LSTM`

    Examples::

        >>> rnn = fused_rnn.GRU(10, 20, 2)
        >>> input = torch.randn(5, 3, 10)
        >>> h0 = torch.randn(2, 3, 20)
        >>> output, hn = rnn(input, h0)
        >>> hn.shape
        torch.Size([2, 3, 20])
    """

    _torch = nn.GRU

    @constructor(nn.GRU.__init__, Layers)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        norm_eps: float = 1e-5,
        reset_after: bool = True,
        recurrent_activation: str | tuple[str, float, float] = "sigmoid",
        activation: str = "tanh",
        num_heads: int = 1,
    ) -> None:
        """See the class."""


class RNN(Layers[Tensor, PackedSequence]):
    r"""Apply a multi-layer plain recurrent network, with tanh or ReLU, to an input sequence: a
    drop-in for :class:`torch.nn.RNN`.

    Arguments, inputs, outputs, parameters, initial values and errors are those of
    :class:`torch.nn.RNN`, and state_dicts go both ways. What no kernel takes runs
    ``torch.nn.RNN``'s own forward; :func:`fused_rnn.explain` tells which ran.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first: see
            :class:`torch.nn.RNN`
        dropout, bidirectional: see :class:`torch.nn.RNN`
        learn_initial_state, recompute, recurrent_dropout, zoneout, layer_norm, norm_eps, num_heads:
            see :class:`LSTM`; zoneout is one probability

    Inputs: input, h_0, lengths, resets, return_states
        as in :class:`GRU`

    Outputs: output, h_n[, h]
        as in :class:`GRU`

    Examples::

        >>> rnn = fused_rnn.RNN(10, 20, nonlinearity="relu", batch_first=True)
        >>> output, hn = rnn(torch.randn(3, 5, 10))
        >>> output.shape
        torch.Size([3, 5, 20])
    """

    _torch = nn.RNN

    @constructor(nn.RNN.__init__, Layers)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        learn_initial_state: bool = False,
        recompute: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        norm_eps: float = 1e-5,
        num_heads: int = 1,
    ) -> None:
        """See the class."""


class LSTMCell(Cell, nn.LSTMCell):
    r"""A long short-term memory (LSTM) cell: a drop-in for :class:`torch.nn.LSTMCell`.

    Arguments, inputs, outputs, parameters, initial values and errors are those of
    :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: see :class:`torch.nn.LSTMCell`
        zoneout, layer_norm, norm_eps, recurrent_activation, activation:
            see :class:`LSTM`, of which the cell is one step; parameters are named without a layer,
            ``ln_hh``, say
        use_peepholes, input_forget, cell_clip, num_heads: see :class:`LSTM`
        recurrent_dropout: see :class:`LSTM`; a call in training mode then takes ``mask``

    Inputs: input, (h_0, c_0), mask
        - **input**: :math:`(N, H_{in})` or :math:`(H_{in})`
        - **h_0**, **c_0**: :math:`(N, H_{out})` or :math:`(H_{out})`. Default to zeros.
        - **mask**: zeros and ones in the shape of **h_0**, the same for all steps of a sequence:
          what :meth:`recurrent_mask` draws. Default: ``None``, with which a cell with
          ``recurrent_dropout`` raises in training mode

    Outputs: (h_1, c_1)
        - **h_1**, **c_1**: the next states, in the shapes of the initial ones

    Examples::

        >>> rnn = fused_rnn.LSTMCell(10, 20)
        >>> input = torch.randn(2, 3, 10)
        >>> hx = cx = torch.zeros(3, 20)
        >>> for x in input:
        ...     hx, cx = rnn(x, (hx, cx))
    """

    _torch = nn.LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        layer_norm: bool = False,
        norm_eps: float = 1e-5,
        recurrent_activation: str | tuple[str, float, float] = "sigmoid",
        activation: str = "tanh",
        use_peepholes: bool = False,
        input_forget: bool = False,
        cell_clip: float | None = None,
        num_heads: int = 1,
    ) -> None:
        """See the class."""
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._vary(
            "lstm",
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
            recurrent_activation=recurrent_activation,
            activation=activation,
            use_peepholes=use_peepholes,
            input_forget=input_forget,
            cell_clip=cell_clip,
            num_heads=num_heads,
        )

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        # By name, as in all cells; but torch.onnx.export(dynamo=False) gives all defaults by place.
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run one step."""
        if self._variants is not None or mask is not None:
            return self._run_varied(input, hx, mask)
        if torch.compiler.is_compiling():
            return self._in_graph(input, hx)
        state: Any = None
        if hx is None:
            state = self._step("lstm", input, None, None, True)
        elif isinstance(hx, (tuple, list)) and len(hx) == 2:
            state = self._step("lstm", input, hx[0], hx[1], False)
        return self._not_fitting(input, hx) if state is None else state

    if TYPE_CHECKING:  # torch.nn.Module's takes anything, and returns anything

        @like(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class GRUCell(Cell, nn.GRUCell):
    r"""A gated recurrent unit (GRU) cell: a drop-in for :class:`torch.nn.GRUCell`.

    Arguments, inputs, outputs, parameters, initial values and errors are those of
    :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: see :class:`torch.nn.GRUCell`
        zoneout, layer_norm, norm_eps, reset_after, recurrent_activation, activation, num_heads:
            see :class:`GRU`
        recurrent_dropout: see :class:`LSTMCell`

    Inputs: input, hidden, mask
        - **input**: :math:`(N, H_{in})` or :math:`(H_{in})`
        - **hidden**: :math:`(N, H_{out})` or :math:`(H_{out})`. Defaults to zeros.
        - **mask**: see :class:`LSTMCell`

    Outputs: h'
        - **h'**: the next state, in the shape of the initial one

    Examples::

        >>> rnn = fused_rnn.GRUCell(10, 20)
        >>> hx = rnn(torch.randn(3, 10), torch.zeros(3, 20))
    """

    _torch = nn.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        norm_eps: float = 1e-5,
        reset_after: bool = True,
        recurrent_activation: str | tuple[str, float, float] = "sigmoid",
        activation: str = "tanh",
        num_heads: int = 1,
    ) -> None:
        """See the class."""
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self._vary(
            "gru",
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
            reset_after=reset_after,
            recurrent_activation=recurrent_activation,
            activation=activation,
            num_heads=num_heads,
        )

    def forward(
        self, input: Tensor, hx: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Run one step."""
        if self._variants is not None or mask is not None:
            return self._run_varied(input, hx, mask)
        if torch.compiler.is_compiling():
            return self._in_graph(input, hx)
        state = self._step("gru", input, hx, None, hx is None)
        return self._not_fitting(input, hx) if state is None else state[0]

    if TYPE_CHECKING:  # torch.nn.Module's takes anything, and returns anything

        @like(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class RNNCell(Cell, nn.RNNCell):
    r"""A plain recurrent cell, with tanh or ReLU: a drop-in for :class:`torch.nn.RNNCell`.

    Arguments, inputs, outputs, parameters, initial values and errors are those of
    :class:`torch.nn.RNNCell`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: see :class:`torch.nn.RNNCell`
        zoneout, layer_norm, norm_eps, num_heads: see :class:`RNN`
        recurrent_dropout: see :class:`LSTMCell`

    Inputs: input, hidden, mask
        - **input**: :math:`(N, H_{in})` or :math:`(H_{in})`
        - **hidden**: :math:`(N, H_{out})` or :math:`(H_{out})`. Defaults to zeros.
        - **mask**: see :class:`LSTMCell`

    Outputs: h'
        - **h'**: the next state, in the shape of the initial one

    Examples::

        >>> rnn = fused_rnn.RNNCell(10, 20, nonlinearity="relu")
        >>> hx = rnn(torch.randn(3, 10), torch.zeros(3, 20))
    """

    _torch = nn.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        layer_norm: bool = False,
        norm_eps: float = 1e-5,
        num_heads: int = 1,
    ) -> None:
        """See the class."""
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype)
        self._vary(
            _RNN_CELLS.get(nonlinearity, "rnn_tanh"),
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            layer_norm=layer_norm,
            norm_eps=norm_eps,
            num_heads=num_heads,
        )

    def forward(
        self, input: Tensor, hx: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Run one step."""
        if self._variants is not None or mask is not None:
            return self._run_varied(input, hx, mask)
        if torch.compiler.is_compiling():
            return self._in_graph(input, hx)
        after = self._by_operator(input, hx)
        if after is not None:
            return after
        state = self._step(_RNN_CELLS.get(self.nonlinearity), input, hx, None, hx is None)
        return self._not_fitting(input, hx) if state is None else state[0]

    if TYPE_CHECKING:  # torch.nn.Module's takes anything, and returns anything

        @like(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


_RNN_CELLS = {"tanh": "rnn_tanh", "relu": "rnn_relu"}


# The classes that whole layers are loaded as; those with int8 weights come in from above.
loaded: list[type[nn.Module]] = [LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell]


def safe_globals() -> list[Callable[..., nn.Module]]:
    r"""Return what :func:`torch.load` has to trust to load whole layers with ``weights_only=True``.

    It is for :func:`torch.serialization.add_safe_globals` and
    :class:`torch.serialization.safe_globals`, together with the other classes of the model.

    Returns:
        the classes of the layers and cells, and the function that makes a layer anew

    Examples::

        >>> import io
        >>> torch.save(fused_rnn.GRU(4, 8), file := io.BytesIO())
        >>> _ = file.seek(0)
        >>> with torch.serialization.safe_globals(fused_rnn.safe_globals()):
        ...     torch.load(file, weights_only=True)
        GRU(4, 8)
    """
    return [*loaded, rebuild]
