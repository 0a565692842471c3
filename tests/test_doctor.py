"""The doctor: a sound installation passes, and what is wrong with an unsound one is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_rnn
from fused_rnn import __main__ as doctor
from fused_rnn.backends import BACKENDS, Inputs, native, reference, tuned
from fused_rnn.backends.measured import Entry, Table, kind_of
from fused_rnn.cells import CELLS

NOT_BUILT = native.available() or (torch.cuda.is_available() and native.cuda_missing()) or None
needs_native = pytest.mark.skipif(NOT_BUILT is not None, reason=f"native: {NOT_BUILT}")


@pytest.fixture(autouse=True)
def default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FUSED_RNN_BACKEND", "FUSED_RNN_SIMD", "FUSED_RNN_TUNED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def examine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, dict[str, Any]]]]:
    """Yield a function that examines one backend with one cell and dtype."""
    real = dict(BACKENDS)  # put back in this order, which is that of the choice

    def run(backend: Any, dtype: torch.dtype = torch.float32) -> tuple[int, dict[str, Any]]:
        BACKENDS.clear()
        BACKENDS[backend.name] = backend
        monkeypatch.setattr(doctor, "LIMITS", {dtype: doctor.LIMITS[dtype]})
        monkeypatch.setattr(doctor, "CELLS", {"lstm": CELLS["lstm"]})
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        status = doctor.main(["--json"])
        return status, json.loads(capsys.readouterr().out, parse_constant=pytest.fail)

    yield run
    BACKENDS.clear()
    BACKENDS.update(real)


def backend(**changes: Any) -> SimpleNamespace:
    """Return a sound backend with kernels of its own, but for the changes."""
    sound = {
        "name": "fake",
        "checks_operands": False,
        "available": lambda: None,
        "supports": lambda problem: None,
        "forward": reference.forward,
        "backward": reference.backward,
    }
    return SimpleNamespace(**(sound | changes))


def scaled_forward(factor: float) -> Callable[..., Any]:
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
        y, *others = reference.forward(*args)
        return y * factor, *others

    return forward


def wrong_bias_gradient(factor: float) -> Callable[..., Any]:
    def backward(*args: Any) -> tuple[Tensor | None, ...]:
        gradients = Inputs(*reference.backward(*args))
        return gradients._replace(b_hh=gradients.b_hh * factor)

    return backward


@needs_native
def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fused_rnn"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "All is well."
    for name in ("native", "reference"):
        for cell in CELLS:
            for dtype in ("float64", "float32", "float16", "bfloat16"):
                found = [line for line in lines if line.split()[:4] == [name, "cpu", cell, dtype]]
                assert len(found) == 1
                assert found[0].endswith(" ok")


@needs_native
def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["well"] is True
    assert found["problems"] == []
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["fused_rnn"] == fused_rnn.__version__
    assert found["backends"] == fused_rnn.available_backends()
    assert found["compiled"]["SIMD level"] == native.simd_level()
    assert found["threads"]["torch uses"] == str(torch.get_num_threads())
    on_cpu = [c for c in found["checks"] if c["device"] == "cpu" and c["backend"] == "native"]
    assert len(on_cpu) == len(CELLS) * len(doctor.LIMITS)
    assert all(c["well"] and 0 < c["forward"] <= c["limit"] for c in on_cpu)
    assert all(0 < c["backward"] <= c["limit"] for c in on_cpu)


@pytest.mark.parametrize("dtype", doctor.LIMITS)
def test_a_sound_backend(examine: Callable[..., Any], dtype: torch.dtype) -> None:
    status, found = examine(backend(), dtype)
    assert (status, found["problems"]) == (0, [])


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float64, 1 + 1e-12), (torch.float32, 1 + 1e-5), (torch.float16, 1.01)],
)
@pytest.mark.parametrize("half", ["forward", "backward"])
def test_a_wrong_backend(
    examine: Callable[..., Any], dtype: torch.dtype, factor: float, half: str
) -> None:
    wrong = {"forward": scaled_forward, "backward": wrong_bias_gradient}[half](factor)
    status, found = examine(backend(**{half: wrong}), dtype)
    assert status == 1
    (check,) = found["checks"]
    assert check[half] > check["limit"]
    assert not check["well"]
    name = str(dtype).removeprefix("torch.")
    assert found["problems"] == [f"fake on cpu, lstm in {name}: does not agree with the reference"]


def test_only_the_projection_is_wrong(examine: Callable[..., Any]) -> None:
    def forward(cell: str, inputs: Inputs, *args: Any) -> Any:
        return scaled_forward(1.0 if inputs.w_hr is None else 1.1)(cell, inputs, *args)

    assert examine(backend(forward=forward))[0] == 1


def test_only_inference_is_wrong(examine: Callable[..., Any]) -> None:
    def forward(*args: Any) -> Any:
        return scaled_forward(1.0 if args[-1] else 1.1)(*args)

    assert examine(backend(forward=forward))[0] == 1


def test_only_ragged_data_is_wrong(examine: Callable[..., Any]) -> None:
    def forward(cell: str, inputs: Inputs, batch_sizes: Tensor | None, *args: Any) -> Any:
        return scaled_forward(1.0 if batch_sizes is None else 1.1)(cell, inputs, batch_sizes, *args)

    assert examine(backend(forward=forward))[0] == 1


def test_not_finite(examine: Callable[..., Any]) -> None:
    status, found = examine(backend(forward=scaled_forward(float("nan"))))
    assert status == 1
    assert found["checks"][0]["forward"] is None


def test_not_finite_in_one_of_several_problems(examine: Callable[..., Any]) -> None:
    def forward(cell: str, inputs: Inputs, batch_sizes: Tensor | None, *args: Any) -> Any:
        factor = float("nan") if batch_sizes is None and inputs.w_hr is None else 1.0
        return scaled_forward(factor)(cell, inputs, batch_sizes, *args)

    assert examine(backend(forward=forward))[0] == 1


def test_raising_and_refusing(
    examine: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def forward(*args: Any) -> None:
        raise RuntimeError("out of luck")

    status, found = examine(backend(forward=forward))
    assert status == 1
    assert found["problems"] == ["fake on cpu, lstm in float32: RuntimeError: out of luck"]
    status, found = examine(backend(supports=lambda problem: f"not {problem.dtype}"))
    assert status == 0
    assert found["checks"][0]["refusal"] == "not torch.float32"
    assert doctor.main([]) == 0
    assert "refused: not torch.float32" in capsys.readouterr().out


def test_no_kernels(examine: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    status, found = examine(backend(available=lambda: "not built"))
    assert status == 1
    assert found["checks"] == []
    assert "fake: not built" in found["problems"][0]
    assert doctor.main([]) == 1
    out = capsys.readouterr().out
    assert "All is well." not in out
    assert out.splitlines()[-1] == f"problem: {found['problems'][0]}"


def test_settings(examine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSED_RNN_BACKEND", "nativ")
    status, found = examine(backend())
    assert status == 1
    assert found["problems"] == ["FUSED_RNN_BACKEND is 'nativ', which is not a backend"]
    monkeypatch.setenv("FUSED_RNN_BACKEND", "torch")
    monkeypatch.setenv("FUSED_RNN_SIMD", "avx512")
    monkeypatch.setattr(doctor, "_simd_level", lambda: "portable")
    status, found = examine(backend())
    assert found["problems"] == ["FUSED_RNN_SIMD asks for 'avx512', but portable runs"]
    monkeypatch.setenv("FUSED_RNN_SIMD", "portable")
    assert examine(backend())[0] == 0


def test_a_tuned_file(
    examine: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("FUSED_RNN_TUNED", str(path))
    (problem,) = examine(backend())[1]["problems"]
    assert problem.startswith("FUSED_RNN_TUNED: ")
    assert "No such file" in problem
    path.write_text("{}")
    (problem,) = examine(backend())[1]["problems"]
    assert problem.endswith("is JSON, but not what fused_rnn.tune.save writes")
    Table().write(path)
    (problem,) = examine(backend())[1]["problems"]
    assert problem.endswith("is of a device that is here, with these versions")
    kind = kind_of(doctor.EXAMPLE)
    Table([Entry(tuned.here(torch.device("cpu")), kind, 1, 1, {"torch": 1.0})]).write(path)
    status, found = examine(backend())
    assert (status, found["problems"]) == (0, [])
    assert found["settings"]["FUSED_RNN_TUNED"] == str(path)


@needs_native
def test_an_unknown_simd_level_is_one_problem() -> None:
    environment = {**os.environ, "FUSED_RNN_SIMD": "avx9"}
    done = subprocess.run(
        [sys.executable, "-m", "fused_rnn", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    (problem,) = found["problems"]
    assert problem.startswith("FUSED_RNN_SIMD is 'avx9', which is no SIMD level.")
    assert found["compiled"]["SIMD level"] == problem
    assert "native" not in {c["backend"] for c in found["checks"] if c["device"] == "cpu"}
    assert all(c["well"] for c in found["checks"])


@pytest.mark.parametrize(("cuda", "gpus"), [("12.8", 0), ("12.8", 1), (None, 0)])
def test_no_gpu_under_a_torch_built_for_them(
    cuda: str | None, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: "H100")
    devices = doctor._installation()["devices"]
    if gpus:
        assert devices["cuda:0"] == "H100, sm_90"
    assert ("cuda" in devices) == (cuda is not None and not gpus)
    if "cuda" in devices:
        assert "no GPU is seen, though torch is built for CUDA" in devices["cuda"]


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--jsn"])
    assert stop.value.code == 2
    assert "--jsn" in capsys.readouterr().err
