"""Checks a wheel as somebody would use it: a fresh environment, and no compiler anywhere.

    python -m tests.check_wheel dist/fused_rnn-*.whl

The environment takes torch from that of the Python that runs this, and nothing else is installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

# The oldest glibc on which torch's own wheels run.
TORCHS_GLIBC = (2, 28)

PROGRAM = """
import pathlib, sys
import torch
import fused_rnn

assert pathlib.Path(fused_rnn.__file__).is_relative_to(sys.prefix), fused_rnn.__file__
layer = fused_rnn.LSTM(3, 5, num_layers=2, bidirectional=True)
oracle = torch.nn.LSTM(3, 5, num_layers=2, bidirectional=True)
oracle.load_state_dict(layer.state_dict())
inputs = [torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
outputs = []
with fused_rnn.use_backend("native"):
    for module, x in zip((layer, oracle), inputs):
        output, _ = module(x.requires_grad_())
        output.square().sum().backward()
        outputs.append(output)
torch.testing.assert_close(*outputs)
torch.testing.assert_close(*(x.grad for x in inputs))
print(f"wheel: forward and backward agree with torch.nn under torch {torch.__version__}")
"""


def main() -> int:
    """Check the wheel that the command line names; return the exit status."""
    (wheel,) = (Path(name).resolve() for name in sys.argv[1:])
    problem = wrong_tag(wheel) or wrong_content(wheel)
    if problem:
        print(f"{wheel.name}: {problem}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder) / "venv", wheel)
        # No PATH: neither a compiler nor anything else is found by name.
        for arguments in (["-m", "fused_rnn"], ["-c", PROGRAM]):
            status = subprocess.run([python, *arguments], cwd=folder, env={"PATH": ""}).returncode
            if status != 0:
                return status
    return 0


def wrong_tag(wheel: Path) -> str | None:
    """Return what is wrong with a wheel's name, or None."""
    tag = re.fullmatch(r"[\w.]+-[\w.]+-cp310-abi3-([\w.]+)\.whl", wheel.name)
    if tag is None:
        return "it is not for every Python from 3.10 on"
    glibc = [(int(a), int(b)) for a, b in re.findall(r"manylinux_(\d+)_(\d+)_", tag[1])]
    if not glibc:
        return "it has no manylinux tag"
    # The CUDA runtime has a glibc of its own to ask for.
    has_cuda = "fused_rnn/_C_cuda.abi3.so" in zipfile.ZipFile(wheel).namelist()
    if min(glibc) > TORCHS_GLIBC and not has_cuda:
        return f"it asks for glibc {min(glibc)}, torch for {TORCHS_GLIBC} alone"
    return None


def wrong_content(wheel: Path) -> str | None:
    """Return what is missing in a wheel or does not belong there, or None."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = Path(__file__).parents[1]
    sources = {p.relative_to(package).as_posix() for p in (package / "fused_rnn").rglob("*.py")}
    wanted = {*sources, "fused_rnn/py.typed", "fused_rnn/_C.abi3.so"}
    modules = {name for name in names if name.endswith((".py", ".so", ".typed"))}
    others = modules - wanted - {"fused_rnn/_C_cuda.abi3.so"}
    if wanted - names or others:
        return f"it lacks {sorted(wanted - names)} and has {sorted(others)} besides"
    if not any(name.endswith("/licenses/LICENSE") for name in names):
        return "it has no licence"
    return None


def environment(folder: Path, wheel: Path) -> Path:
    """Make an environment of the wheel and of this Python's torch; return its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps",
         "--no-index", wheel.resolve()],
        check=True, cwd=folder,
        # On whose path the project would count as installed.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    # A path in a .pth file is not searched for more of them: the project itself stays out.
    (site / "torch.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


if __name__ == "__main__":
    sys.exit(main())
