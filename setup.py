"""Builds the native modules; everything else stands in pyproject.toml."""

import os
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, setup

# A new environment of an older Python has one that cannot read pyproject.toml's licence.
if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"fused_rnn is built with setuptools 77 or newer, found {setuptools.__version__}: "
        "run `pip install --upgrade setuptools wheel ninja` first."
    )

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

sys.path.insert(0, str(Path(__file__).parent / "csrc" / "cuda"))
import nvcc

# One build serves every torch from 2.11 and every Python from 3.10 on.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
# contract: a product and a sum become one instruction; the others let vector code stay branch-free.
# No -ffast-math: NaN and infinity keep their meaning.
FLAGS = ["-O3", "-g0", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
# attributes: torch's stable classes are hidden in each library, and need not be in what holds them.
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi", "-Wno-unused-parameter", "-Wno-attributes"]
if os.environ.get("FUSED_RNN_WERROR"):
    WARNINGS.append("-Werror")
# Last, so that they count: -O1 for a quick build, --coverage.
MORE = os.environ.get("FUSED_RNN_CXXFLAGS", "").split()


CUDA_MODULE = "fused_rnn._C_cuda"


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
        for extension in self.extensions:
            if extension.name == CUDA_MODULE:
                self.compile_kernels(extension)
        super().build_extensions()

    def compile_kernels(self, extension: Extension) -> None:
        """Compile the .cu files here: BuildExtension would need a CUDA build of torch for them."""
        try:
            werror = "-Werror" in WARNINGS
            objects = nvcc.compile_objects(werror=werror)
            objects.append(nvcc.find_static_runtime(nvcc.find_toolkit()))
        except nvcc.CudaBuildError as error:
            without = len(self.extensions) > 1
            hint = "\nFUSED_RNN_CUDA=0 builds without the CUDA kernels." if without else ""
            sys.exit(f"fused_rnn: {error}{hint}")
        extension.extra_objects = [str(path) for path in objects]
        extension.depends = extension.extra_objects


# The longest to compile first. What this machine's architecture has not is left empty.
LEVELS = ("avx512", "avx2", "portable", "amx")


# Of layers with int8 weights, beside a level those with its registers and instructions for them.
QUANTIZED = {
    "avx512": ("avx512", "avx512_vnni"),
    "avx2": ("avx2", "avx_vnni"),
    "portable": ("portable",),
    "amx": (),
}


def levels() -> tuple[str, ...]:
    """Return the SIMD levels to build: all, or the one that FUSED_RNN_LEVEL names (make build)."""
    only = os.environ.get("FUSED_RNN_LEVEL", "")
    if only not in ("", *LEVELS):
        sys.exit(f"FUSED_RNN_LEVEL should be one of {', '.join(LEVELS)}, got {only!r}.")
    if only == "amx":
        return "avx512", "amx"  # what it does not take runs on the other
    return (only,) if only else LEVELS


CPU = CppExtension(
    "fused_rnn._C",
    [
        *(f"csrc/cpu/{run}_{level}.cpp" for level in levels() for run in ("forward", "backward")),
        *(f"csrc/cpu/variants/{level}.cpp" for level in levels() if level != "amx"),
        "csrc/cpu/variants/kernels.cpp",
        "csrc/variant_ops.cpp",
        *(f"csrc/cpu/quantized/{name}.cpp" for level in levels() for name in QUANTIZED[level]),
        "csrc/cpu/quantized/levels.cpp",
        "csrc/ops.cpp",
        "csrc/cpu/levels.cpp",
        "csrc/cpu/scratch.cpp",
        "csrc/single_threaded.cpp",
    ],
    extra_compile_args={"cxx": [*FLAGS, *WARNINGS, *DEFINES, *MORE]},
    extra_link_args=[flag for flag in MORE if flag == "--coverage"],
    py_limited_api=True,
)

CUDA = CppExtension(
    CUDA_MODULE,
    ["csrc/cuda/ops.cpp", "csrc/single_threaded.cpp"],
    include_dirs=[nvcc.INCLUDE],
    extra_compile_args={"cxx": [*FLAGS, *WARNINGS, *DEFINES]},
    libraries=["dl", "rt", "pthread"],
    # libtorch.so must stay among the libraries needed though nothing here is taken from it: under a
    # CUDA torch it brings the one that knows the current stream. The CUDA runtime linked in must
    # not be replaced by the one torch has loaded.
    extra_link_args=["-Wl,--exclude-libs,ALL", "-Wl,--no-as-needed", "-ltorch"],
    py_limited_api=True,
)


def without_cuda() -> str | None:
    """Return None where this torch and nvcc go together, or why not."""
    try:
        release = nvcc.find_toolkit().release
    except nvcc.CudaBuildError as error:
        return str(error)
    # The CUDA runtime linked in is the toolkit's: a newer one than torch's may need a newer driver.
    same = release.split(".")[0] == torch.version.cuda.split(".")[0]
    return None if same else f"nvcc is of CUDA {release}, torch of {torch.version.cuda}"


def extensions() -> list[Extension]:
    """Return what to build: FUSED_RNN_CUDA is 0, 1, only, or unset where torch and nvcc decide."""
    wanted = os.environ.get("FUSED_RNN_CUDA", "")
    if wanted not in ("", "0", "1", "only"):
        sys.exit(f"FUSED_RNN_CUDA should be 0, 1 or only, got {wanted!r}.")
    if wanted == "" and torch.version.cuda is not None:
        reason = without_cuda()
        if reason is None:
            return [CPU, CUDA]
        print(f"fused_rnn is built without CUDA kernels: {reason}", file=sys.stderr)
    return {"1": [CPU, CUDA], "only": [CUDA]}.get(wanted, [CPU])


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
