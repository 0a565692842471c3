"""The modules among all else that torch does with modules."""

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from twins import CELLS, LAYERS, assert_same, leaves, outcome, sequences, states, twins

import fused_rnn

MODULES = [*LAYERS, *CELLS]


def example(name):
    return torch.randn(2, 3) if name in CELLS else torch.randn(5, 2, 3)


def first(output):
    return leaves(output)[0]


def hidden_weight(name):
    return "weight_hh" if name in CELLS else "weight_hh_l0"


class Model(nn.Module):
    """What a user's model looks like."""

    returns_a_pair: torch.jit.Final[bool]

    def __init__(self, source, name):
        super().__init__()
        self.returns_a_pair = name not in ("GRUCell", "RNNCell")
        self.before = nn.Linear(3, 3)
        self.rnn = getattr(source, name)(3, 4)
        self.after = nn.Linear(4, 2)

    def forward(self, x):
        output = self.rnn(self.before(x))
        return self.after(output[0] if self.returns_a_pair else output)


def models(name):
    made = []
    for source in (nn, fused_rnn):
        torch.manual_seed(3)
        made.append(Model(source, name))
    return made


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles(name):
    _, ours = twins(name, 3, 4)
    x = example(name)
    expected = ours(x)
    first(expected).sum().backward()
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    for twin in (
        copy.copy(ours),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(buffer, weights_only=False),
    ):
        assert type(twin) is type(ours)
        assert_same(expected, twin(x))
    separate = copy.deepcopy(ours)
    assert all(p.grad is None for p in separate.parameters())
    with torch.no_grad():
        getattr(separate, hidden_weight(name)).zero_()
    assert_same(expected, ours(x))


@pytest.mark.parametrize("name", MODULES)
def test_functional_call(name):
    theirs, ours = twins(name, 3, 4)
    x = example(name)
    weights = {n: torch.randn_like(p, requires_grad=True) for n, p in ours.named_parameters()}
    before = ours(x)
    expected = functional_call(theirs, weights, (x,))
    found = functional_call(ours, weights, (x,))
    assert_same(expected, found)
    for output in (expected, found):
        first(output).sum().backward()
    assert_same(before, ours(x))
    skeleton = copy.deepcopy(ours).to("meta")
    assert_same(expected, functional_call(skeleton, weights, (x,)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_parametrized_weight_is_computed_once_per_call(name):
    class Counting(nn.Module):
        calls = 0

        def forward(self, weight):
            self.calls += 1
            return weight * 2

    theirs, ours = twins(name, 3, 4, 2)
    counters = []
    for module in (theirs, ours):
        counters.append(Counting())
        parametrize.register_parametrization(module, "weight_hh_l0", counters[-1])
    x = example(name)
    counters[1].calls = 0
    found = ours(x)
    assert counters[1].calls == 1
    assert_same(theirs(x), found)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm(name, norm):
    x = example(name)
    results = []
    for module in twins(name, 3, 4):
        norm(module, hidden_weight(name))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            output = module(x)
            first(output).pow(2).sum().backward()
            optimizer.step()
        results.append((output, list(module.parameters())))
    assert_same(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("name", MODULES)
def test_spectral_norm_and_pruning(name):
    x = example(name)
    results = []
    for module in twins(name, 3, 4):
        torch.manual_seed(1)
        parametrizations.spectral_norm(module, hidden_weight(name))
        module.eval()
        weight = hidden_weight(name).replace("hh", "ih")
        prune.l1_unstructured(module, weight, amount=0.5)
        results.append(module(x))
    assert_same(*results)


def test_tied_weights():
    results = []
    for module in twins("GRU", 4, 4, 2):
        module.weight_hh_l1 = module.weight_hh_l0
        module.weight_ih_l1 = module.weight_ih_l0
        module(torch.ones(5, 2, 4))[0].sum().backward()
        assert len(list(module.parameters())) == 6
        results.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*results)


def test_a_layer_called_twice_adds_its_gradients():
    results = []
    for module in twins("LSTM", 3, 4):
        x = torch.ones(5, 2, 3)
        y, state = module(x)
        z, _ = module(x, state)
        (y.sum() + z.sum()).backward()
        results.append([p.grad for p in module.parameters()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", MODULES)
def test_meta_device(name):
    with torch.device("meta"):
        theirs, ours = twins(name, 3, 4)
        x = example(name)
    expected, found = theirs(x), ours(x)
    assert [t.shape for t in leaves(found)] == [t.shape for t in leaves(expected)]
    assert all(t.is_meta for t in leaves(found))
    first(found).sum().backward()
    loaded = getattr(fused_rnn, name)(3, 4)
    ours.load_state_dict(loaded.state_dict(), assign=True)
    x = example(name)
    assert_same(loaded(x), ours(x))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(name, reentrant):
    _, ours = twins(name, 3, 4)
    x = example(name).requires_grad_()
    plain = ours(x)
    first(plain).sum().backward()
    expected = [x.grad, *(p.grad for p in ours.parameters())]
    x.grad = None
    ours.zero_grad()
    output = checkpoint(ours, x, use_reentrant=reentrant)
    first(output).sum().backward()
    torch.testing.assert_close(leaves(output), leaves(plain))
    torch.testing.assert_close([x.grad, *(p.grad for p in ours.parameters())], expected)


@pytest.mark.parametrize("name", MODULES)
def test_hooks(name):
    seen = []
    for module in twins(name, 3, 4):
        calls = []
        module.register_forward_pre_hook(lambda m, args, calls=calls: calls.append(len(args)))
        module.register_forward_hook(
            lambda m, args, output, calls=calls: calls.append([t.shape for t in leaves(output)])
        )
        module.register_full_backward_hook(
            lambda m, given, wanted, calls=calls: calls.append(
                [None if g is None else g.shape for g in (*given, *wanted)]
            )
        )
        module._register_state_dict_hook(lambda m, state, *_, calls=calls: calls.append(len(state)))
        first(module(example(name).requires_grad_())).sum().backward()
        module.state_dict()
        seen.append(calls)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTMCell"])
def test_threads(name):
    _, ours = twins(name, 3, 4)
    inputs = [example(name) for _ in range(8)]
    expected = [gradients(ours, x) for x in inputs]
    start = threading.Barrier(2)

    def work(part):
        start.wait()
        for _ in range(5):
            for k in part:
                torch.testing.assert_close(gradients(ours, inputs[k]), expected[k])

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, range(0, 8, 2)), pool.submit(work, range(1, 8, 2))]:
            done.result()


def gradients(module, x):
    output = first(module(x))
    return [output, *torch.autograd.grad(output.pow(2).sum(), list(module.parameters()))]


@pytest.mark.parametrize("name", MODULES)
def test_fx_takes_a_module_as_a_leaf(name):
    _, model = models(name)
    traced = torch.fx.symbolic_trace(model)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["before", "rnn", "after"]
    assert traced.rnn is model.rnn
    x = example(name)
    torch.testing.assert_close(traced(x), model(x))


def test_fx_with_a_state():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.LSTM(3, 4)

        def forward(self, x, h, c):
            y, (h, c) = self.rnn(x, (h, c))
            return y, h, c

    model = Stateful()
    x, (h, c) = example("LSTM"), states(model.rnn, 2)
    assert_same(model(x, h, c), torch.fx.symbolic_trace(model)(x, h, c))


@pytest.mark.parametrize("name", MODULES)
def test_compile(name):
    torch.compiler.reset()
    _, model = models(name)
    compiled = torch.compile(model, backend="eager", fullgraph=name in CELLS)
    x = example(name)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    found = gradients(compiled, x)
    torch.testing.assert_close(found, gradients(model, x))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("strict", [True, False])
def test_export(name, strict):
    _, model = models(name)
    x = example(name)
    exported = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), model(x))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(name):
    _, model = models(name)
    x = example(name)
    expected = model(x)
    torch.testing.assert_close(torch.jit.trace(model, (x,))(x), expected)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_leaves_a_subclass_to_its_own_forward():
    class Doubled(fused_rnn.GRU):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    module = Doubled(3, 4)
    assert module.__prepare_scriptable__() is module


@pytest.mark.parametrize("name", MODULES)
def test_an_ensemble_by_vmap(name):
    members = [getattr(fused_rnn, name)(3, 4) for _ in range(3)]
    weights, buffers = stack_module_state(members)
    x = example(name)

    def run(w, b, x):
        return functional_call(members[0], (w, b), (x,))

    found = vmap(run, (0, 0, None))(weights, buffers, x)
    for k, member in enumerate(members):
        torch.testing.assert_close([t[k] for t in leaves(found)], leaves(member(x)))


@pytest.mark.parametrize("name", MODULES)
def test_gradients_per_sample(name):
    _, ours = twins(name, 3, 4)
    x = torch.randn(4, *example(name).shape)
    weights = {n: p.detach() for n, p in ours.named_parameters()}

    def loss(weights, x):
        return first(functional_call(ours, weights, (x,))).pow(2).sum()

    found = vmap(grad(loss), (None, 0))(weights, x)
    for k in range(len(x)):
        expected = torch.autograd.grad(first(ours(x[k])).pow(2).sum(), list(ours.parameters()))
        torch.testing.assert_close([found[n][k] for n in weights], list(expected))


@pytest.mark.parametrize("name", MODULES)
def test_forward_mode_and_jacobians(name):
    _, ours = twins(name, 3, 4)
    x = example(name)
    tangent = torch.randn_like(x)

    def run(x):
        return first(ours(x))

    jacobian = jacrev(run)(x)
    _, found = jvp(run, (x,), (tangent,))
    torch.testing.assert_close(found, torch.tensordot(jacobian, tangent, dims=x.dim()))


def test_forward_mode_of_packed_sequences():
    _, ours = twins("LSTM", 3, 4, bidirectional=True)
    packed = sequences((2, 4, 1), 3, enforce_sorted=False)
    tangent = torch.randn_like(packed.data)

    def run(data):
        return ours(packed._replace(data=data))[0].data

    _, found = jvp(run, (packed.data,), (tangent,))
    jacobian = torch.autograd.functional.jacobian(run, packed.data)
    torch.testing.assert_close(found, torch.tensordot(jacobian, tangent, dims=2))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_torchs(name, dtype):
    theirs, ours = twins(name, 3, 4)
    x = example(name).to(dtype)
    results = []
    for module in (theirs, ours):
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x)
        first(output).float().sum().backward()
        results.append((output, [p.grad for p in module.parameters()]))
    assert_same(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize("name", MODULES)
def test_flops_are_counted_as_torchs(name):
    counts = []
    for model in models(name):
        with FlopCounterMode(display=False) as counter:
            model(example(name))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("name", MODULES)
def test_tensor_subclasses_stay_what_they_are(name):
    class Tagged(torch.Tensor):
        pass

    theirs, ours = twins(name, 3, 4)
    x = example(name).as_subclass(Tagged)
    expected, found = theirs(x), ours(x)
    assert [type(t) for t in leaves(found)] == [type(t) for t in leaves(expected)]
    torch.testing.assert_close(leaves(found), leaves(expected))


@pytest.mark.parametrize("name", MODULES)
def test_fake_tensors(name):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        _, model = models(name)
        output = model(example(name))
        output.sum().backward()
    assert isinstance(output, FakeTensor)


@pytest.mark.parametrize("name", LAYERS)
def test_data_parallel_replicas(name):
    _, ours = twins(name, 3, 4)
    x = example(name)
    replica = ours._replicate_for_data_parallel()
    for key, p in ours._parameters.items():
        setattr(replica, key, p.detach())
    torch.testing.assert_close(leaves(replica(x)), leaves(ours(x)))


def test_moving_keeps_the_parameters():
    ours = fused_rnn.GRU(3, 4)
    before = list(ours.parameters())
    ours.double()
    assert all(a is b for a, b in zip(ours.parameters(), before, strict=True))
    assert ours(torch.randn(5, 2, 3, dtype=torch.float64))[0].dtype == torch.float64
    with pytest.raises(TypeError):
        ours.to(torch.int64)


@pytest.mark.parametrize("name", MODULES)
def test_inference_mode(name):
    theirs, ours = twins(name, 3, 4)
    x = example(name)
    with torch.inference_mode():
        expected, found = theirs(x), ours(x)
        assert first(found).is_inference()
        torch.testing.assert_close(leaves(found), leaves(expected))


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_layers_keep_no_graph(name):
    _, ours = twins(name, 3, 4, 2)
    ours.requires_grad_(False)
    assert not any(t.requires_grad for t in leaves(ours(example(name))))
    ours.weight_hh_l1.requires_grad_()
    first(ours(example(name))).sum().backward()
    assert [n for n, p in ours.named_parameters() if p.grad is not None] == ["weight_hh_l1"]


@pytest.mark.parametrize("name", CELLS)
def test_sparse_input_and_weights_from_inference_mode(name):
    theirs, ours = twins(name, 3, 4)
    x = example(name)
    torch.testing.assert_close(ours(x.to_sparse()), theirs(x.to_sparse()))
    with torch.inference_mode():
        theirs, ours = twins(name, 3, 4)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", MODULES)
def test_views_with_a_pending_negation(name):
    _, ours = twins(name, 3, 4)
    x = torch.complex(example(name), example(name)).conj().imag
    assert x.is_neg()
    assert_same(ours(x.resolve_neg()), ours(x))


@pytest.mark.parametrize("name", LAYERS)
def test_nested_and_sparse_tensors_are_torchs_business(name):
    theirs, ours = twins(name, 3, 4)
    for x in (
        torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(3, 3)]),
        example(name).to_sparse(),
        example(name).to_mkldnn(),
    ):
        expected, found = outcome(lambda x=x: theirs(x)), outcome(lambda x=x: ours(x))
        assert found[:2] == expected[:2] == ("raised", expected[1])
        assert found[2] == expected[2]
