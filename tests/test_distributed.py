"""Training on two processes: the gradients and the steps are those of one."""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import fused_rnn
from fused_rnn.backends import record
from tests.twins import LAYERS, first

WORLD = 2
ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "ddp.py"

pytestmark = [
    pytest.mark.skipif(
        not (dist.is_available() and dist.is_gloo_available()),
        reason="this torch was built without torch.distributed or gloo",
    ),
]


class Model(nn.Module):
    """Two recurrent modules: a layer, and the cell of it in a loop."""

    def __init__(self, layer):
        super().__init__()
        self.rnn = getattr(fused_rnn, layer)(3, 4, num_layers=2, bidirectional=True)
        self.cell = getattr(fused_rnn, f"{layer}Cell")(8, 5)

    def forward(self, x):
        y, state = self.rnn(x)[0], None
        for step in y:
            state = self.cell(step, state)
        return first(state)


def made(layer):
    torch.manual_seed(11)
    return Model(layer)


def batch(layer):
    """Return the input of all processes together."""
    return torch.randn(5, 2 * WORLD, 3, generator=torch.Generator().manual_seed(len(layer)))


def train(model, x, full):
    """Take two steps; return the gradients of both and the weights, whole ones."""
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        with record() as records:
            model(x).pow(2).mean().backward()
        seen += [full(p.grad) for p in model.parameters()]
        optimizer.step()
    return [*seen, *(full(p.detach()) for p in model.parameters())], {r.backend for r in records}


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(model.rnn, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=datetime.timedelta(minutes=2),
    )
    results = {}
    for layer in LAYERS:
        x = batch(layer).chunk(WORLD, 1)[rank]
        results[layer, "ddp"] = train(DistributedDataParallel(made(layer)), x, torch.clone)
        results[layer, "fsdp"] = train(sharded(made(layer)), x, lambda t: t.full_tensor())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("distributed")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def check_example(*options):
    sizes = ["--updates", "80", "--batch", "32", "--length", "6", "--hidden", "4"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for _ in range(3):
        done = subprocess.run(
            [*torchrun, "--nproc-per-node", str(WORLD), str(EXAMPLE), *sizes, *options],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        # On busy cores a thread of gloo's may still hold a tensor as Python ends, wait for Python
        # to let it go, and be ended by it, which aborts the process. It does with torch.nn too.
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    header, names, *rows = done.stdout.splitlines()
    assert header.startswith("2 processes on cpu")
    assert names.split() == ["updates", "squared", "error", "sequences/s"]
    errors = [float(row.split()[1]) for row in rows]
    assert len(errors) == 8
    assert 0 < errors[-1] < errors[0] < 10


def test_the_example_runs_and_says_how_the_error_falls():
    check_example()


def test_the_example_runs_sharded_too():
    check_example("--sharded")


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("layer", LAYERS)
def test_two_processes_train_as_one(layer, way, results):
    expected, _ = train(made(layer), batch(layer), torch.clone)
    for found, backends in (of_rank[layer, way] for of_rank in results):
        torch.testing.assert_close(found, expected)
        # And not torch.nn, for a parameter that is none of its own; it has a plain RNN's steps.
        assert backends == ({"native", "torch"} if layer == "RNN" else {"native"})
