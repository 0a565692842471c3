"""The cosines of a voice encoder's embeddings, of weights made here that know no voices."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import voices

HIDDEN = 24


@pytest.fixture
def state():
    """A checkpoint's weights, large enough for the spectra to move the gates."""
    torch.manual_seed(0)
    layers = {"lstm.": nn.LSTM(40, HIDDEN, 3), "linear.": nn.Linear(HIDDEN, HIDDEN)}
    weights = {
        prefix + name: w.detach() * 3
        for prefix, layer in layers.items()
        for name, w in layer.state_dict().items()
    }
    return weights | {"similarity_weight": torch.ones(1)}  # of training alone


def test_spectra_are_of_each_voice_alone_and_of_the_loudness_asked_for():
    two, one = voices.spectra(2), voices.spectra(1)
    assert two.shape == (2, 160, 40)
    assert (two >= 0).all()
    torch.testing.assert_close(two[:1], one)
    assert nn.functional.cosine_similarity(*two.flatten(1), dim=0) < 0.9
    voice = voices._voice(torch.Generator().manual_seed(0))
    torch.testing.assert_close(20 * voice.square().mean().sqrt().log10().item(), -30.0)


def test_a_tone_is_in_the_band_around_it():
    filters = voices._mel_filters()
    assert filters.shape == (40, 201)
    # Each is a triangle over its neighbours' centres: they rise with the band, and none is empty.
    centres = (filters * torch.arange(201)).sum(1) / filters.sum(1)
    assert (centres.diff() > 0).all()
    time = torch.arange(400, dtype=torch.float64) / 16000
    spectrum = torch.fft.rfft((2 * torch.pi * 1000 * time).sin() * torch.hann_window(400)).abs()
    loudest = (filters @ spectrum.square()).argmax()
    assert abs(centres[loudest].item() * 40 - 1000) < 60


def test_the_layers_are_the_checkpoints(state):
    lstm, linear = voices.encoder(state)
    assert (lstm.num_layers, lstm.hidden_size, lstm.batch_first) == (3, HIDDEN, True)
    assert torch.equal(lstm.weight_hh_l2, state["lstm.weight_hh_l2"])
    assert torch.equal(linear.bias, state["linear.bias"])
    del state["lstm.weight_hh_l2"]
    with pytest.raises(RuntimeError, match="Missing key"):
        voices.encoder(state)


def test_cosines_are_written_and_shown(state, tmp_path, capsys):
    weights, result = tmp_path / "pretrained.pt", tmp_path / "result.json"
    torch.save({"model_state": state, "step": 1}, weights)
    voices.main([str(weights), "--count", "3", "--json", str(result)])
    shown = capsys.readouterr().out
    document = json.loads(result.read_text())
    assert document["voices"] == 3
    rows = document["cosines"]
    int8, bfloat16 = rows["fused_rnn int8"], rows["fused_rnn bfloat16 weights"]
    for row in (int8, bfloat16):
        assert 0.9 < row["least"] <= row["median"] < 1 + 1e-6
        assert f"{row['least']:.5f} at least, {row['median']:.5f} median" in shown
    assert 1 - bfloat16["least"] < 0.5 * (1 - int8["least"])
