"""A GPU played by the host: the CUDA paths of the bench, on CPU tensors, as the native backend.

Importing it is enough, in a process of its own: what a first run on a GPU does goes through here,
and none of it dies of a typo there.
"""

from __future__ import annotations

from typing import Any

import torch

from fused_rnn import backends
from fused_rnn.backends import native
from fused_rnn.backends.native import persistent, planned
from fused_rnn.cells import CELLS
from tests.native.simt.library import stepwise

# As many blocks as a small problem takes, and none that could be told from a real device's.
DEVICE = 90, 4, 227 * 1024, [4, 2, 1, 0]


def ops() -> Any:
    """Return the bench's ops."""
    return torch.ops.fused_rnn_bench


def install(replace: Any = setattr) -> None:
    """Have the native backend run on the bench; ``replace`` as setattr, or monkeypatch's."""
    torch.ops.load_library(stepwise())
    bench = ops()
    for cell in (*CELLS, native._BOTH):
        forward, backward = (getattr(bench, f"{cell}_{way}").default for way in _PASSES)
        replace(native, "_FORWARD", {**native._FORWARD, cell: forward})
        replace(native, "_BACKWARD", {**native._BACKWARD, cell: backward})
    bench.make_device(*DEVICE)
    replace(persistent, "ops", ops)
    replace(native, "ways", planned.names)
    backends._forget()


_PASSES = ("forward", "backward")
