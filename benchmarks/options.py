"""What torch.nn cannot do, against what its users do instead: resets, steps, recomputation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn

from .document import heading, write
from .peers import Settings
from .text import BOLD, Paint, duration, ratio
from .timing import Timing, time_interleaved

OURS = "fused_rnn"
_RESETS_BAR = 5.0  # times faster than the loop of LSTMCells
_RESET_SHARE = 1 / 64  # of all steps: an episode has 64 of them in the mean


@dataclass
class Row:
    """One comparison: ours and its peers, seconds of each, and bytes where they are the point."""

    name: str
    timings: dict[str, Timing]
    speedup: dict[str, float]  # of ours over each peer
    bar: dict[str, float] = field(default_factory=dict)  # the least that is asked over a peer
    kept_bytes: dict[str, int] = field(default_factory=dict)  # from forward to backward

    @property
    def met(self) -> bool:
        """Whether nothing falls short of its bar."""
        return all(self.speedup[peer] >= least for peer, least in self.bar.items())


def measure(settings: Settings) -> Iterator[Row]:
    """Measure row by row.

    Raises:
        AssertionError: if two peers' results differ.
    """
    small = settings.quick
    for cell in ("LSTM", "GRU"):
        bar = {f"torch.nn.{cell}Cell in a loop": _RESETS_BAR} if cell == "LSTM" else {}
        yield timed(*_resets(cell, 16 if small else 128, 64, 256, settings.device), settings, bar)
    for grad in (False, True):
        for n, h in ((1, 128), (32, 256)):
            with torch.set_grad_enabled(grad):
                yield timed(*_step(n, h, grad, settings.device), settings)
    yield _recompute(20 if small else 200, 32, 256, settings)


def run(
    settings: Settings,
    path: Path | None,
    measured: Callable[[Settings], Iterable[Row]] | None = None,
) -> bool:
    """Measure, print and write all rows; return whether all bars are met."""
    rows, paint = [], Paint(False)
    for row in (measured or measure)(settings):
        rows.append(row)
        print("\n".join(_lines(row, paint)), flush=True)
    if path is not None:
        found = [asdict(row) | {"met": row.met if row.bar else None} for row in rows]
        write(heading(settings) | {"rows": found}, path)
    return all(row.met for row in rows)


def timed(
    name: str,
    calls: Mapping[str, Callable[[], Any]],
    settings: Settings,
    bar: dict[str, float] | None = None,
    unlike: Collection[str] = (),
    atol: float = 1e-4,
) -> Row:
    """Time peers; compare the results of all but those that are ``unlike`` ours."""
    results = {peer: call() for peer, call in calls.items() if peer not in unlike}
    for peer, result in results.items():
        torch.testing.assert_close(
            result, results[OURS], rtol=1e-3, atol=atol, msg=lambda m, peer=peer: f"{peer}: {m}"
        )
    timings = time_interleaved(calls, settings.device, settings.seconds)
    ours = timings[OURS].median_s
    speedup = {peer: t.median_s / ours for peer, t in timings.items() if peer != OURS}
    return Row(name, timings, speedup, bar or {})


def _resets(
    name: str, steps: int, n: int, h: int, device: torch.device
) -> tuple[str, dict[str, Callable[[], Tensor]]]:
    """Return a training step over rollouts with resets, in one call and as a loop of cells."""
    layer = getattr(fused_rnn, name)(h, h, device=device)
    cell = getattr(nn, f"{name}Cell")(h, h, device=device)
    with torch.no_grad():
        for own, given in zip(cell.parameters(), layer.parameters(), strict=True):
            own.copy_(given)
    x = torch.randn(steps, n, h, device=device, requires_grad=True)
    resets = torch.rand(steps, n, device=device) < _RESET_SHARE

    def trained(y: Tensor, module: nn.Module) -> list[Tensor]:
        # Results of one scale, so that one tolerance suits all of them.
        gradients = torch.autograd.grad(y.square().mean(), [x, *module.parameters()])
        return [y.detach(), *(g / g.abs().max() for g in gradients)]

    def loop() -> Any:
        keep = (~resets).to(x.dtype).unsqueeze(-1)
        lstm, outputs = name == "LSTM", []
        state: Any = (x.new_zeros(n, h),) * 2 if lstm else x.new_zeros(n, h)
        for x_t, keep_t in zip(x.unbind(0), keep.unbind(0), strict=True):
            state = cell(x_t, tuple(s * keep_t for s in state) if lstm else state * keep_t)
            outputs.append(state[0] if lstm else state)
        return trained(torch.stack(outputs), cell)

    calls = {
        OURS: lambda: trained(layer(x, resets=resets)[0], layer),
        f"torch.nn.{name}Cell in a loop": loop,
    }
    return f"{name} with resets, training, T={steps} N={n} H={h}", calls


def _step(
    n: int, h: int, grad: bool, device: torch.device
) -> tuple[str, dict[str, Callable[[], Any]]]:
    """Return one step of a layer, and what does the same in torch.nn."""
    layer, theirs = fused_rnn.LSTM(h, h, device=device), nn.LSTM(h, h, device=device)
    theirs.load_state_dict(layer.state_dict())
    cell = nn.LSTMCell(h, h, device=device)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x = torch.randn(n, h, device=device)
    state = torch.randn(2, 1, n, h, device=device).unbind(0)
    hidden = tuple(s[0] for s in state)
    kind = "with gradients" if grad else "inference"
    calls = {
        OURS: lambda: layer.step(x, state)[0],
        "torch.nn.LSTMCell": lambda: cell(x, hidden)[0],
        "torch.nn.LSTM with T=1": lambda: theirs(x.unsqueeze(0), state)[0][0],
    }
    return f"LSTM step, {kind}, N={n} H={h}", calls


def _recompute(steps: int, n: int, h: int, settings: Settings) -> Row:
    """Return what a training step of a deep LSTM keeps and takes, recomputing and not."""
    model = fused_rnn.LSTM(h, h, num_layers=4, device=settings.device)
    theirs = nn.LSTM(h, h, num_layers=4, device=settings.device)
    theirs.load_state_dict(model.state_dict())
    x = torch.randn(steps, n, h, device=settings.device)

    def train(module: nn.Module, recompute: bool) -> Callable[[], list[Tensor]]:
        def call() -> list[Tensor]:
            model.recompute = recompute
            y = module(x)[0]
            gradients = torch.autograd.grad(y.square().mean(), list(module.parameters()))
            return [y.detach(), *(g / g.abs().max() for g in gradients)]

        return call

    peers = {OURS: (model, True), "without recompute": (model, False), "torch.nn": (theirs, False)}
    calls = {name: train(*peer) for name, peer in peers.items()}
    row = timed(
        f"LSTM of 4 layers with recompute, training, T={steps} N={n} H={h}", calls, settings
    )
    for name, (module, model.recompute) in peers.items():
        row.kept_bytes[name] = _kept(module, x)
    return row


def _kept(module: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps of a forward pass, parameters and input left out."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        results = module(x)  # alive to the end: no address comes up twice
    for known in (x, *module.parameters()):
        sizes.pop(known.untyped_storage().data_ptr(), None)
    del results
    return sum(sizes.values())


def _lines(row: Row, paint: Paint) -> list[str]:
    lines = [paint(row.name, BOLD)]
    for peer, timing in row.timings.items():
        text = f"  {peer:<32}{duration(timing.median_s):>10}  +-{timing.spread:<5.0%}"
        text += " " * 9 if peer == OURS else ratio(row.speedup[peer], 9, paint)
        if peer in row.kept_bytes:
            text += f"  {row.kept_bytes[peer] / 2**20:8.1f} MiB kept"
        if peer in row.bar:
            text += f"  asked {row.bar[peer]:.3g}x: {'met' if row.met else 'NOT MET'}"
        lines.append(text.rstrip())
    return lines
