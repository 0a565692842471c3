"""Two runs are equal to the last bit, and torch's switch for that finds nothing to refuse."""

import pytest
import torch

import fused_rnn
from tests.twins import CONFIGURED, LAYERS, leaves, sequences

CALLS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([2, 0, 5, 3])},
    "resets": {"resets": torch.eye(5, 4, dtype=torch.bool)},
    "states": {"return_states": True},
}


@pytest.fixture(autouse=True)
def _deterministic():
    # What torch leaves empty is filled with NaN then, so that reading it shows.
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(module, x, kwargs):
    """Return results and gradients of a call from equal seeds."""
    torch.manual_seed(2)
    module.zero_grad()
    x = x.detach().requires_grad_()
    results = leaves(module(x, **kwargs))
    sum((r * torch.randn_like(r)).sum() for r in results).backward()
    return [*results, x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("layer", "options"), CONFIGURED)
def test_two_runs_are_equal(layer, options, call, device):
    torch.manual_seed(1)
    module = getattr(fused_rnn, layer)(3, 4, **options).to(device)
    kwargs = {k: v.to(device) if torch.is_tensor(v) else v for k, v in CALLS[call].items()}
    x = torch.randn(5, 4, 3, device=device)
    if module.batch_first:
        x = x.transpose(0, 1)
        kwargs = {k: v.t() if k == "resets" else v for k, v in kwargs.items()}
    first_run, second_run = run(module, x, kwargs), run(module, x, kwargs)
    assert all(t.isfinite().all() for t in first_run)
    torch.testing.assert_close(first_run, second_run, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_many_threads_and_a_larger_problem(layer, device):
    torch.set_num_threads(2)
    module = getattr(fused_rnn, layer)(24, 40, 2, dropout=0.5).to(device)
    x = torch.randn(30, 17, 24, device=device)
    first_run, second_run = run(module, x, {}), run(module, x, {})
    assert all(t.isfinite().all() for t in first_run)
    torch.testing.assert_close(first_run, second_run, rtol=0, atol=0)


@pytest.mark.parametrize("layer", LAYERS)
def test_packed_sequences(layer, device):
    module = getattr(fused_rnn, layer)(3, 4, bidirectional=True).to(device)
    packed = sequences((2, 4, 1), 3, enforce_sorted=False, device=device)
    found = []
    for _ in range(2):
        module.zero_grad()
        results = leaves(module(packed))
        sum(r.pow(2).sum() for r in results).backward()
        found.append([*results, *(p.grad for p in module.parameters())])
    assert all(t.isfinite().all() for t in found[0])
    torch.testing.assert_close(*found, rtol=0, atol=0)
