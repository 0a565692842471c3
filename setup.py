"""Builds the native modules; everything else stands in pyproject.toml."""

import os
import sys

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    sys.exit(
        "fused_rnn is compiled against the torch you use: install torch 2.11 or newer first, then "
        "run `pip install --no-build-isolation .` (plain `pip install .` cannot see your torch)."
    )

if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 11):
    sys.exit(f"fused_rnn needs torch 2.11 or newer, found {torch.__version__}.")

# One build serves every torch from 2.11 and every Python from 3.10 on.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# contract: a product and a sum become one instruction; the others let vector code stay branch-free.
# No -ffast-math: NaN and infinity keep their meaning.
FLAGS = ["-O3", "-g0", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter"]
if os.environ.get("FUSED_RNN_WERROR"):
    WARNINGS.append("-Werror")


class Build(BuildExtension):
    """Compiles with ninja; says in one sentence what is missing where that fails."""

    def build_extensions(self) -> None:
        from shutil import which

        compiler = os.environ.get("CXX", "c++")
        if which(compiler.split()[0]) is None:
            sys.exit(
                f"fused_rnn needs a C++17 compiler, and {compiler!r} was not found: "
                "install g++ or clang++, or name one with the CXX environment variable."
            )
        super().build_extensions()


CPU_SOURCES = [
    "csrc/ops.cpp",
    "csrc/cpu/levels.cpp",
    "csrc/cpu/scratch.cpp",
    "csrc/cpu/level_avx512.cpp",
    "csrc/cpu/level_avx2.cpp",
    "csrc/cpu/level_portable.cpp",
]

setup(
    ext_modules=[
        CppExtension(
            "fused_rnn._C",
            CPU_SOURCES,
            extra_compile_args={"cxx": [*FLAGS, *WARNINGS, *DEFINES]},
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
