"""return_states: h and c of every step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_packed_sequence

import fused_rnn
from fused_rnn.backends import native
from tests.layers.small import I, N, T, example, make
from tests.twins import CONFIGURED, LAYERS, leaves, states


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_states_of_every_step(layer, options, given):
    """What a call that ends at this step returns; in reverse, one that begins at it."""
    module = make(layer, **options)
    x = example(module)
    hx = states(module, N, torch.float64) if given else None
    y, after, steps = module(x, hx, return_states=True)
    torch.testing.assert_close([y, *leaves(after)], leaves(module(x, hx)))
    time = 1 if module.batch_first else 0
    d = 2 if module.bidirectional else 1
    assert type(steps) is type(after)
    if d == 1:
        for t in range(T):
            _, expected = module(x.narrow(time, 0, t + 1), hx)
            torch.testing.assert_close([s[t] for s in leaves(steps)], leaves(expected))
    elif module.num_layers == 1:  # with more, the first layer must have read all of the input
        for t in range(T):
            ahead = leaves(module(x.narrow(time, 0, t + 1), hx)[1])
            back = leaves(module(x.narrow(time, t, T - t), hx)[1])
            for found, a, b in zip(leaves(steps), ahead, back, strict=True):
                torch.testing.assert_close(found[t], torch.stack([a[0], b[1]]))
    else:
        top = leaves(steps)[0][:, -2:].transpose(1, 2).flatten(2)
        torch.testing.assert_close(top.transpose(0, 1) if module.batch_first else top, y)
        for found, last in zip(leaves(steps), leaves(after), strict=True):
            torch.testing.assert_close(found[-1, 0::2], last[0::2])
            torch.testing.assert_close(found[0, 1::2], last[1::2])


@pytest.mark.parametrize("layer", LAYERS)
def test_states_of_every_layout(layer):
    module = make(layer, num_layers=2, bidirectional=True)
    x = example(module)
    lengths = torch.tensor([2, 5, 4])
    _, _, steps = module(x, lengths=lengths, return_states=True)
    assert all(
        not s[length:, :, n].any() for s in leaves(steps) for n, length in enumerate(lengths)
    )
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    _, _, of_packed = module(packed, return_states=True)
    of_packed = of_packed if isinstance(of_packed, tuple) and layer == "LSTM" else (of_packed,)
    for found, expected in zip(of_packed, leaves(steps), strict=True):
        torch.testing.assert_close(pad_packed_sequence(found)[0], expected.transpose(1, 2))
    _, _, alone = module(x[:, 1], return_states=True)
    torch.testing.assert_close(leaves(alone), [s[:, :, 1] for s in leaves(steps)])


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_through_every_state(layer):
    module = make(layer, num_layers=2, bidirectional=True)

    def run(x):
        return tuple(leaves(module(x, lengths=torch.tensor([3, 0, 2]), return_states=True)[2]))

    x = torch.randn(3, N, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(lambda x: run(x)[-1], x, fast_mode=True)


@pytest.mark.skipif(native.available() is not None, reason="the kernels were not built")
def test_which_backend_knows_every_state():
    lstm, gru = make("LSTM"), make("GRU")
    x = example(lstm)
    for layer in (lstm, gru):
        rows = fused_rnn.explain(layer, x, return_states=True, lengths=torch.tensor([3, 0, 2]))
        assert [row.backend for row in rows] == ["native"]
    with fused_rnn.use_backend("torch"), pytest.raises(RuntimeError, match="every step's states"):
        gru(x, return_states=True)
