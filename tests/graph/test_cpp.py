"""Graphs as C++: Inductor's wrapper, and packages of AOTInductor in a program without Python."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package, config
from torch.export import Dim, export

import fused_rnn
from fused_rnn.backends import native
from tests.graph.test_compile import _afresh, both_ways  # noqa: F401 (a fixture)
from tests.twins import LAYERS, leaves

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.skipif(native.available() is not None, reason="the native module was not built"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++"),
]
TORCH = Path(torch.__file__).parent


class EachLayer(torch.nn.Module):
    """All cells in one graph, as it takes a minute to compile."""

    def __init__(self):
        super().__init__()
        layers = [getattr(fused_rnn, layer)(3, 4, bidirectional=True) for layer in LAYERS]
        self.layers, self.lengths = torch.nn.ModuleList(layers), torch.tensor([5, 2])

    def forward(self, x):
        results = []
        for rnn in self.layers:
            results += [*rnn(x), *rnn(x, lengths=self.lengths, return_states=True)]
        return tuple(results)


def check_wrapper_of_cpp(backend):
    model, x = EachLayer(), torch.randn(5, 2, 3)
    with config.patch(cpp_wrapper=True), fused_rnn.use_backend(backend):
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(both_ways(compiled, x), both_ways(model, x))


def test_inductor_with_a_wrapper_of_cpp():
    check_wrapper_of_cpp("native")


def test_inductor_with_a_wrapper_of_cpp_on_the_reference():
    check_wrapper_of_cpp("reference")


PROGRAM = """
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <fstream>
#include <iterator>

torch::Tensor read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return torch::pickle_load({std::istreambuf_iterator<char>(file), {}}).toTensor();
}

int main(int, char** files) {
  if (dlopen(files[1], RTLD_LAZY | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error(dlerror());
  }
  torch::inductor::AOTIModelPackageLoader loader(files[2]);
  return torch::allclose(loader.run({read(files[3])})[0], read(files[4])) ? 0 : 2;
}
"""


def packaged(path, backend):
    """Return a package of a layer, an input, and what is expected of it, as Python has it."""
    model, dims = fused_rnn.LSTM(3, 4, num_layers=2, bidirectional=True).eval(), ("T", "N")
    sizes = {"input": {k: Dim(name, min=2) for k, name in enumerate(dims)}}
    with torch.no_grad(), fused_rnn.use_backend(backend):
        program = export(model, (torch.randn(5, 2, 3),), dynamic_shapes=sizes)
        x = torch.randn(7, 3, 3)
        expected = model(x)
        package = aoti_compile_and_package(program, package_path=str(path))
        torch.testing.assert_close(leaves(aoti_load_package(package)(x)), leaves(expected))
    ops = {str(node.target) for node in program.graph.nodes if "fused_rnn" in str(node.target)}
    return package, x, expected, ops


def test_a_package_runs_in_python(tmp_path):
    *_, ops = packaged(tmp_path / "model.pt2", None)
    assert ops == {"fused_rnn.layer_forward.default"}


def test_a_package_runs_without_python(tmp_path):
    package, x, expected, ops = packaged(tmp_path / "model.pt2", "native")
    assert ops == {"fused_rnn.lstm_forward.default"}
    source, binary = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(PROGRAM)
    for name, t in (("x", x), ("y", expected[0])):
        torch.save(t, tmp_path / name)
    compile_it = ["g++", "-std=c++20", str(source), "-o", str(binary), f"-L{TORCH}/lib"]
    compile_it += [f"-I{TORCH}/include", f"-I{TORCH}/include/torch/csrc/api/include"]
    compile_it += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
    subprocess.run([*compile_it, f"-Wl,-rpath,{TORCH}/lib"], check=True, timeout=600)
    module = Path(fused_rnn.__file__).parent / "_C.abi3.so"
    files = [str(path) for path in (module, package, tmp_path / "x", tmp_path / "y")]
    done = subprocess.run([str(binary), *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
