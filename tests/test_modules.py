"""The modules against torch.nn's: construction, parameters, what forward and backward compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fused_rnn
from tests.conftest import EACH_BACKEND
from tests.twins import (
    CELLS,
    CONFIGURED,
    LAYERS,
    assert_same,
    leaves,
    outcome,
    sequences,
    states,
    twins,
)


@pytest.fixture(params=EACH_BACKEND)
def chosen(request):
    """Each backend by name, so that nothing else can have run."""
    with fused_rnn.use_backend(request.param):
        yield request.param


CONSTRUCTIONS = [
    (LAYERS, (3, 4), {}),
    (
        LAYERS,
        (3, 4, 2),
        {"bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True},
    ),
    (LAYERS, (3, 4), {"bidirectional": 1}),
    (LAYERS, (True, 4), {}),
    (LAYERS, (3, 4), {"dtype": torch.float64, "device": "cpu"}),
    (LAYERS, (3, 4), {"dropout": 0.5}),
    (LAYERS, (3, 4), {"dropout": 1, "num_layers": 2}),
    (["LSTM", "GRU"], (3, 4, 2, True, True, 0.25, True), {}),
    (["RNN"], (3, 4, 2, "relu", False), {}),
    (["RNN"], (3, 4), {"nonlinearity": "relu"}),
    (["LSTM"], (3, 4), {"proj_size": 2, "num_layers": 2}),
    (CELLS, (3, 4), {}),
    (CELLS, (3, 4, False), {}),
    (CELLS, (0, 4), {}),
    (["RNNCell"], (3, 4, True, "relu"), {}),
    (["LSTMCell", "GRUCell"], (3, 4), {"dtype": torch.float64}),
]


@pytest.mark.parametrize(
    ("name", "args", "kwargs"), [(n, a, k) for names, a, k in CONSTRUCTIONS for n in names]
)
def test_construction(name, args, kwargs):
    made = []
    for source in (nn, fused_rnn):
        torch.manual_seed(3)
        kind, module, warned = outcome(lambda source=source: getattr(source, name)(*args, **kwargs))
        assert kind == "returned"
        made.append((module, warned, torch.rand(3)))
    (theirs, their_warnings, their_next), (ours, our_warnings, our_next) = made

    assert repr(ours) == repr(theirs)
    assert our_warnings == their_warnings
    # The weights were drawn alike, and as many numbers.
    torch.testing.assert_close(our_next, their_next, rtol=0, atol=0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    attributes = {k: v for k, v in vars(theirs).items() if not k.startswith("_")}
    assert {k: v for k, v in vars(ours).items() if not k.startswith("_")} == attributes
    assert ours.__constants__ == theirs.__constants__


def test_reset_parameters_draws_like_torch():
    theirs, ours = twins("GRU", 3, 4, 2)
    for module in (theirs, ours):
        torch.manual_seed(5)
        module.reset_parameters()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_reset_parameters_of_a_subclass_is_called():
    class Zeros(fused_rnn.LSTM):
        def reset_parameters(self):
            for p in self.parameters():
                nn.init.zeros_(p)

    assert all(not p.any() for p in Zeros(3, 4, 2).parameters())


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_parameters_are_torchs(layer, options):
    theirs, ours = twins(layer, 3, 4, **options)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    assert [len(row) for row in ours.all_weights] == [len(row) for row in theirs.all_weights]
    assert list(ours.buffers()) == list(ours.children()) == []
    assert ours.flatten_parameters() is None


@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_state_dicts_go_both_ways(layer, options):
    theirs, _ = twins(layer, 3, 4, **options)
    ours = getattr(fused_rnn, layer)(3, 4, **options)
    assert not any(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    back = getattr(nn, layer)(3, 4, **options)
    back.load_state_dict(ours.state_dict())
    torch.testing.assert_close(back.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def check(theirs, ours, input, hx=None):
    """Compare outputs, and the gradients of everything that can have one."""
    results = []
    for module in (theirs, ours):
        x, s = clone(input), clone(hx)
        output = module(x, s)
        torch.manual_seed(11)
        sum((t * torch.randn_like(t)).sum() for t in leaves(output)).backward()
        gradients = [t.grad for t in leaves((x, *([] if s is None else [s])))]
        results.append((output, gradients + [p.grad for p in module.parameters()]))
    (expected, expected_gradients), (found, gradients) = results
    assert_same(expected, found)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert_same(theirs(input, hx), ours(input, hx))


def clone(value):
    if isinstance(value, PackedSequence):
        return value._replace(data=clone(value.data))
    if isinstance(value, (tuple, list)):
        return type(value)(clone(t) for t in value)
    return None if value is None else value.detach().clone().requires_grad_()


def batched(module, t, n):
    sizes = ((n, t) if module.batch_first else (t, n)) + (module.input_size,)
    return torch.randn(*sizes, device=module.weight_ih_l0.device)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
class TestLayers:
    """Each configuration on each kind of input."""

    @pytest.mark.parametrize(("t", "n"), [(5, 3), (1, 1), (4, 1), (1, 3)])
    def test_batched(self, chosen, device, layer, options, given, t, n):
        theirs, ours = twins(layer, 3, 4, device=device, **options)
        check(theirs, ours, batched(ours, t, n), states(ours, n) if given else None)

    def test_unbatched(self, chosen, device, layer, options, given):
        theirs, ours = twins(layer, 3, 4, device=device, **options)
        x = torch.randn(5, 3, device=device)
        check(theirs, ours, x, states(ours, None) if given else None)

    @pytest.mark.parametrize("lengths", [(5, 4, 4, 1), (2, 5, 1, 5, 3), (3,)])
    def test_packed(self, chosen, device, layer, options, given, lengths):
        theirs, ours = twins(layer, 3, 4, device=device, **options)
        in_order = lengths == tuple(sorted(lengths)[::-1])
        packed = sequences(lengths, 3, in_order, device)
        check(theirs, ours, packed, states(ours, len(lengths)) if given else None)

    def test_empty_batch(self, chosen, device, layer, options, given):
        theirs, ours = twins(layer, 3, 4, device=device, **options)
        check(theirs, ours, batched(ours, 5, 0), states(ours, 0) if given else None)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(chosen, device, layer, dtype):
    theirs, ours = twins(layer, 3, 4, 2, bidirectional=True, dtype=dtype, device=device)
    x = torch.randn(5, 2, 3, dtype=dtype, device=device)
    tolerance = {} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.02}
    assert_same(theirs(x), ours(x), **tolerance)


def dense(hx):
    """Return states as cuDNN wants them."""
    return tuple(map(dense, hx)) if isinstance(hx, tuple) else hx.contiguous()


@pytest.mark.parametrize("layer", LAYERS)
def test_states_of_odd_layouts(chosen, device, layer):
    theirs, ours = twins(layer, 3, 4, 2, device=device)
    x = torch.randn(5, 3, 3, device=device)
    for make in (
        lambda: torch.randn(1, 1, 4, device=device).expand(2, 3, 4),
        lambda: torch.randn(2, 1, 4, device=device).expand(2, 3, 4),
        lambda: torch.randn(4, 3, 2, device=device).permute(2, 1, 0),
        lambda: torch.randn(2, 3, 8, device=device)[..., ::2],
    ):
        hx = (make(), make()) if layer == "LSTM" else make()
        assert_same(theirs(x, hx if device == "cpu" else dense(hx)), ours(x, hx))
    if layer == "LSTM":
        hx = list(torch.randn(2, 2, 3, 4, device=device))
        assert_same(theirs(x, hx), ours(x, hx))


@pytest.mark.parametrize("layer", LAYERS)
def test_inputs_of_odd_layouts(chosen, device, layer):
    theirs, ours = twins(layer, 3, 4, batch_first=True, device=device)
    for x in (
        torch.randn(3, 5, 2, device=device).transpose(1, 2).transpose(0, 2),
        torch.randn(1, 5, 3, device=device).expand(2, 5, 3),
        torch.randn(2, 5, 6, device=device)[..., 1::2],
        torch.randn(2, 9, 3, device=device)[:, ::2],
    ):
        before = x.clone()
        assert_same(theirs(x), ours(x))
        torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_output_and_state_share_no_storage(chosen, device, layer):
    _, ours = twins(layer, 3, 4, bidirectional=True, device=device)
    tensors = leaves(ours(torch.randn(1, 1, 3, device=device)))
    assert len({t.untyped_storage().data_ptr() for t in tensors}) == len(tensors)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_follows_the_seed(chosen, layer, p, packed):
    theirs, ours = twins(layer, 3, 8, 3, dropout=p, bidirectional=True, batch_first=True)
    input = sequences((2, 5, 3), 3, False) if packed else torch.randn(4, 5, 3)
    for training in (True, False):
        found = []
        for module in (theirs, ours):
            module.train(training)
            torch.manual_seed(13)
            found.append((module(input), torch.rand(2)))
        assert_same(*found)


def test_dropout_may_be_changed(chosen):
    theirs, ours = twins("GRU", 3, 8, 2)
    x = torch.randn(5, 2, 3)
    for module in (theirs, ours):
        module.dropout = 0.5
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    assert_same(expected, ours(x))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [None, 0, 1, 3])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
def test_cells(chosen, device, name, bias, n, given):
    theirs, ours = twins(name, 3, 4, bias, device=device)
    lead = () if n is None else (n,)
    h, c = torch.randn(2, *lead, 4, device=device)
    hx = ((h, c) if name == "LSTMCell" else h) if given else None
    check(theirs, ours, torch.randn(*lead, 3, device=device), hx)


@pytest.mark.parametrize("name", CELLS)
def test_cells_with_one_operand_to_train(chosen, device, name):
    theirs, ours = twins(name, 3, 4, device=device)
    x = torch.randn(2, 3, device=device)
    h, c = (torch.randn(2, 4, device=device) for _ in range(2))
    hx = (h, c) if name == "LSTMCell" else h
    theirs.requires_grad_(False)
    ours.requires_grad_(False)
    for a, b in [*zip(theirs.parameters(), ours.parameters(), strict=True), (x, x), (h, h), (c, c)]:
        if a is c and name != "LSTMCell":
            continue
        found = []
        for module, operand in ((theirs, a), (ours, b)):
            operand.requires_grad_()
            found.append(torch.autograd.grad(leaves(module(x, hx))[0].sum(), operand))
            operand.requires_grad_(False)
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", CELLS)
def test_cells_of_odd_layouts(chosen, device, name):
    theirs, ours = twins(name, 3, 4, device=device)
    x = torch.randn(3, 5, device=device).t()[:, :3]
    h = torch.randn(1, 4, device=device).expand(5, 4)
    hx = [h, torch.randn(4, 5, device=device).t()] if name == "LSTMCell" else h
    assert_same(theirs(x, hx), ours(x, hx))


def test_relu_cell(chosen, device):
    theirs, ours = twins("RNNCell", 3, 4, nonlinearity="relu", device=device)
    check(theirs, ours, torch.randn(2, 3, device=device), torch.randn(2, 4, device=device))


@pytest.mark.parametrize("name", CELLS)
def test_cells_without_features(name):
    theirs, ours = twins(name, 0, 4)
    assert_same(theirs(torch.randn(2, 0)), ours(torch.randn(2, 0)))


@pytest.mark.parametrize("layer", LAYERS)
def test_complex_numbers_run_as_in_torch(layer):
    theirs, ours = twins(layer, 3, 4, dtype=torch.complex64)
    x = torch.randn(5, 2, 3, dtype=torch.complex64)
    for module in (theirs, ours):
        module(x)[0].abs().sum().backward()
    assert_same(theirs(x), ours(x))
    torch.testing.assert_close(ours.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_in_use_are_the_present_ones(chosen, device, layer):
    theirs, ours = twins(layer, 3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device)

    def scale(module):
        with torch.no_grad():
            module.weight_hh_l0.mul_(0.5)

    def swap_data(module):
        module.weight_ih_l0.data = module.weight_ih_l0.data * 2

    def assign(module):
        module.bias_ih_l0 = nn.Parameter(module.bias_ih_l0.detach() + 1)

    def replace_by_tensor(module):
        weight = module._parameters.pop("weight_hh_l0")
        module.weight_hh_l0 = weight.detach() * 3

    def from_vector(module):
        vector = nn.utils.parameters_to_vector(module.parameters())
        nn.utils.vector_to_parameters(vector * 0.5, module.parameters())

    def write_into_the_list(module):
        module._flat_weights[3] = module._flat_weights[3].detach() + 1

    # What was written into the list holds until a weight is replaced by its name.
    changes = scale, write_into_the_list, swap_data, assign, from_vector, replace_by_tensor
    for change in changes:
        before = ours(x)[0]
        change(theirs)
        change(ours)
        assert_same(theirs(x), ours(x))
        assert not torch.equal(before, ours(x)[0]), change


@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_in_the_list_alone(layer):
    theirs, ours = twins(layer, 3, 4, 2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    for module in (theirs, ours):
        module._flat_weights[5] = torch.full_like(module.weight_hh_l0_reverse, 0.5).requires_grad_()
        module(x)[0].sum().backward()
        assert module.weight_hh_l0_reverse.grad is None
    assert_same(theirs(x), ours(x))
    torch.testing.assert_close(ours._flat_weights[5].grad, theirs._flat_weights[5].grad)
    # What is given for a call counts more than what the list has.
    given = {name: torch.ones_like(p) for name, p in ours.named_parameters()}
    call = torch.func.functional_call
    assert_same(call(theirs, given, (x,)), call(ours, given, (x,)))


def test_strided_weights(chosen, device):
    theirs, ours = twins("GRU", 12, 4, device=device)
    for module in (theirs, ours):
        weight = copy.deepcopy(module.weight_ih_l0.detach())
        del module._parameters["weight_ih_l0"]
        module.weight_ih_l0 = weight.t().contiguous().t()
    x = torch.randn(5, 2, 12, device=device)
    assert_same(theirs(x), ours(x))
