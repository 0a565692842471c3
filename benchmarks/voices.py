"""What int8 and bfloat16 weights change in a voice encoder's embeddings, on made-up voices.

    python -m benchmarks.voices WEIGHTS [--count 32] [--json PATH]

WEIGHTS is the ``pretrained.pt`` of the package Resemblyzer: an LSTM of three layers that reads mel
power spectra (not their logarithms), and a linear layer. The voices are pulses through formants, of
the package's loudness. Shown is the cosine of each embedding to that of the float32 model.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn
from fused_rnn import command

from .document import heading, write
from .peers import Settings

_RATE, _FRAME, _HOP, _BANDS, _FRAMES = 16000, 400, 160, 40, 160


def spectra(count: int) -> Tensor:
    """Return mel power spectra (count, frames, bands) of made-up voices."""
    filters, window = _mel_filters(), torch.hann_window(_FRAME, dtype=torch.float64)
    voices = torch.stack([_voice(torch.Generator().manual_seed(n)) for n in range(count)])
    spectrum = torch.stft(
        voices, _FRAME, _HOP, window=window, pad_mode="constant", return_complex=True
    )
    mel = filters @ spectrum.abs().square()
    return mel.transpose(1, 2)[:, :_FRAMES].float()


def _voice(generator: torch.Generator) -> Tensor:
    """Return a voice (samples,): a pitch that wanders, and a few vowels, one after the other."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    samples = _FRAMES * _HOP
    time = torch.arange(samples, dtype=torch.float64) / _RATE
    sway = (2 * torch.pi * between(1, 4) * time + between(0, 6)).sin()
    beats = (between(80, 260) * (1 + 0.15 * sway)).cumsum(0).div(_RATE).floor()
    pulses = beats.diff(prepend=torch.zeros(1, dtype=torch.float64))
    breath = torch.randn(samples, generator=generator, dtype=torch.float64)
    tract, vowels = between(0.85, 1.2), []
    for part in (pulses + 0.01 * breath).chunk(round(between(4, 9))):
        bands = ((between(250, 850), 60), (between(850, 2400), 90), (between(2300, 3200), 120),
                 (3600, 200))  # fmt: skip
        bins = torch.fft.rfftfreq(2 * len(part), 1 / _RATE, dtype=torch.float64)
        turn = torch.polar(torch.ones_like(bins), -2 * torch.pi * bins / _RATE)
        response = torch.ones_like(turn)
        for centre, width in bands:
            radius = torch.exp(torch.tensor(-torch.pi * width / _RATE)).item()
            angle = torch.tensor(2 * torch.pi * centre * tract / _RATE).cos().item()
            feedback = 2 * radius * angle, -radius * radius
            response *= (1 - sum(feedback)) / (1 - feedback[0] * turn - feedback[1] * turn * turn)
        filtered = torch.fft.irfft(torch.fft.rfft(part, 2 * len(part)) * response)[: len(part)]
        vowels.append(filtered * between(0.2, 1))
    voice = torch.cat(vowels)
    loudness = 10 ** (-30 / 20)
    return voice * loudness / voice.square().mean().sqrt()


def _mel_filters() -> Tensor:
    """Return triangles of equal area (bands, bins), on Slaney's scale."""
    step, start = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27, 15
    top = start + torch.log(torch.tensor(_RATE / 2 / 1000, dtype=torch.float64)) / step
    mels = torch.linspace(0, top.item(), _BANDS + 2, dtype=torch.float64)
    edges = torch.where(mels < start, mels * 200 / 3, 1000 * (step * (mels - start)).exp())
    bins = torch.linspace(0, _RATE / 2, _FRAME // 2 + 1, dtype=torch.float64)
    gaps, away = edges.diff().unsqueeze(1), edges.unsqueeze(1) - bins
    triangles = torch.minimum(-away[:-2] / gaps[:-1], away[2:] / gaps[1:]).clamp(min=0)
    return triangles * (2 / (edges[2:] - edges[:-2])).unsqueeze(1)


def encoder(weights: dict[str, Tensor]) -> tuple[nn.LSTM, nn.Linear]:
    """Return the layers that a checkpoint's weights belong to."""
    hidden = weights["lstm.weight_hh_l0"].shape[1]
    layers = nn.LSTM(_BANDS, hidden, 3, batch_first=True), nn.Linear(hidden, hidden)
    for layer, prefix in zip(layers, ("lstm.", "linear."), strict=True):
        own = {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}
        layer.load_state_dict(own)
    return layers


@torch.no_grad()
def cosines(lstm: nn.LSTM, linear: nn.Linear, x: Tensor) -> dict[str, Tensor]:
    """Return each way's cosines (count,) to the float32 model's embeddings."""

    def embed(layer: Any) -> Tensor:
        return nn.functional.normalize(linear(layer(x)[1][0][-1]).relu(), dim=1)

    ways: dict[str, Any] = {
        "fused_rnn int8": fused_rnn.quantize(copy.deepcopy(lstm)),
        "fused_rnn bfloat16 weights": fused_rnn.quantize(copy.deepcopy(lstm), dtype=torch.bfloat16),
    }
    dynamic = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if dynamic is not None:  # deprecated, and gone one day
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = dynamic(nn.Sequential(copy.deepcopy(lstm)), {nn.LSTM}, dtype=torch.qint8)
        ways["torch.ao int8"] = model[0]
    expected = embed(lstm)
    return {name: (embed(way) * expected).sum(1) for name, way in ways.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--count", type=int, default=32, help="of voices")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args(arguments)
    state = torch.load(given.weights, map_location="cpu", weights_only=True)["model_state"]
    found = cosines(*encoder(state), spectra(given.count))
    rows = {
        name: {"least": of.min().item(), "median": of.median().item()} for name, of in found.items()
    }
    for name, row in rows.items():
        print(f"{name:28}cosine {row['least']:.5f} at least, {row['median']:.5f} median")
    if given.json is not None:
        settings = Settings(torch.device("cpu"), torch.get_num_threads(), False, seconds=0)
        write(heading(settings) | {"voices": given.count, "cosines": rows}, given.json)


if __name__ == "__main__":
    command.run(main)
