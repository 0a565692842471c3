"""The modules among all else that torch does with modules."""

import copy
import io
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint

import fused_rnn
from tests.twins import (
    CELLS,
    LAYERS,
    MODULES,
    assert_same,
    example,
    first,
    gradients,
    leaves,
    outcome,
    twins,
)


def hidden_weight(name):
    return "weight_hh" if name in CELLS else "weight_hh_l0"


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


@pytest.mark.parametrize("name", MODULES)
def test_tensor_subclasses_stay_what_they_are(name):
    class Tagged(torch.Tensor):
        pass

    theirs, ours = twins(name, 3, 4)
    x = example(name).as_subclass(Tagged)
    expected, found = theirs(x), ours(x)
    assert [type(t) for t in leaves(found)] == [type(t) for t in leaves(expected)]
    torch.testing.assert_close(leaves(found), leaves(expected))


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
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
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
