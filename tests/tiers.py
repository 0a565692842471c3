"""Which tests are the core tier, and which want the cores to themselves.

``--core`` (make test) takes of each test's parameters a few combinations in place of the product:
each value of each parameter, and each pair of values of two parameters, at least once. That is
where faults of parametrised code are: one wrong value, or two that do not go together. The rest of
the product is the full tier (make test-all), which is also what pytest runs unless it is told
otherwise. :data:`CORE` says for which tests it is more or less than pairs, and why.

A test is named by its file below tests/, and where that is too wide by "file::test"; the narrower
name counts.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, TypeVar

import pytest

Entry = TypeVar("Entry")
NONE, EACH_VALUE, PAIRS, TRIPLES, ALL = 0, 1, 2, 3, 99


class Rule(NamedTuple):
    """How many parameters are combined in core, and why."""

    strength: int
    reason: str


_SIMULATED = "simulated: every compiled shape once (in each test's own loop), by small problems"
_TRACED = "seconds to trace or compile; the same numbers are tested in pairs without a graph"
_LATE = "what cannot be is skipped as it runs, and would take pairs from what can"
_OPCHECK = "seconds each, and what it looks at does not depend on the sizes"

_LARGE = "tens of GiB of a GPU's memory"
_REFERENCE = "a path of its own where ragged, reverse and projected meet"

_CUDA = "backends/native/cuda"

CORE = {
    "backends/test_kernels.py::test_kernel_is_the_reference": Rule(TRIPLES, _REFERENCE),
    f"{_CUDA}/test_stepwise.py::test_kernel_is_the_reference": Rule(TRIPLES, _REFERENCE),
    f"{_CUDA}/test_persistent_path.py::test_kernel_is_the_reference": Rule(TRIPLES, _REFERENCE),
    f"{_CUDA}/test_persistent_backward.py": Rule(EACH_VALUE, _SIMULATED),
    f"{_CUDA}/test_persistent_backward.py::test_gradients": Rule(
        PAIRS, "a kernel for each cell and type"
    ),
    f"{_CUDA}/test_persistent_forward.py": Rule(EACH_VALUE, _SIMULATED),
    f"{_CUDA}/test_persistent_forward.py::test_forward": Rule(
        PAIRS, "a kernel for each cell and type"
    ),
    f"{_CUDA}/test_gpu.py::test_more_than_two_to_the_31_gates": Rule(NONE, _LARGE),
    f"{_CUDA}/test_gpu.py::test_a_step_of_more_than_two_to_the_31_gates": Rule(NONE, _LARGE),
    "test_cells.py::test_step_is_that_of_torch": Rule(ALL, _LATE),
    f"{_CUDA}/test_both_directions.py::test_one_after_the_other_where_the_launch_is_refused": Rule(
        ALL, _LATE
    ),
    f"{_CUDA}/test_both_directions.py::test_opcheck": Rule(EACH_VALUE, _OPCHECK),
    "graph/test_node.py::test_opcheck": Rule(EACH_VALUE, _OPCHECK),
    "graph/test_node.py::test_opcheck_of_marks": Rule(EACH_VALUE, _OPCHECK),
    "graph/test_cpp.py::test_inductor_with_a_wrapper_of_cpp": Rule(
        NONE, "a minute to compile; test_no_op_returns_a_list has what that code generator lacks"
    ),
    "graph/test_cpp.py::test_inductor_with_a_wrapper_of_cpp_on_the_reference": Rule(
        NONE, "a minute to compile, of the same ops"
    ),
    "graph/test_cpp.py::test_a_package_runs_in_python": Rule(NONE, "minutes to compile"),
    "graph/test_cpp.py::test_a_package_runs_without_python": Rule(NONE, "minutes to compile"),
    "graph/test_quantized.py::test_opcheck": Rule(EACH_VALUE, _OPCHECK),
    "graph/test_quantized.py::test_compiled_to_one_graph": Rule(EACH_VALUE, _TRACED),
    "graph/test_quantized.py::test_bfloat16_in_onnx": Rule(
        NONE, "seconds to export; as float layers are, which test_onnx.py has"
    ),
    "graph/test_earlier.py::test_opcheck": Rule(EACH_VALUE, _OPCHECK),
    "backends/native/test_ops.py::test_opcheck": Rule(EACH_VALUE, _OPCHECK),
    "backends/native/test_ops.py::test_opcheck_of_strided_operands": Rule(EACH_VALUE, _OPCHECK),
    "backends/native/test_ops.py::test_opcheck_of_half_types": Rule(EACH_VALUE, _OPCHECK),
    "backends/native/test_ops.py::test_opcheck_of_a_single_step": Rule(EACH_VALUE, _OPCHECK),
    f"{_CUDA}/test_marked.py::test_opcheck": Rule(EACH_VALUE, _OPCHECK),
    "graph/test_compile_options.py": Rule(EACH_VALUE, _TRACED),
    "graph/test_compile_options.py::test_inductor": Rule(
        NONE, "half a minute; test_compile has one"
    ),
    "graph/test_compile.py": Rule(EACH_VALUE, _TRACED),
    "backends/test_transforms_options.py": Rule(EACH_VALUE, "gradients of gradients in float64"),
    "backends/native/test_tiles.py": Rule(
        EACH_VALUE, "the model of the registers takes a millisecond for some tens of products"
    ),
    "graph/test_onnx.py": Rule(EACH_VALUE, "seconds to export, by two exporters"),
    "backends/native/test_tiles.py::test_registers_are_the_reference": Rule(
        PAIRS, "the registers themselves are fast"
    ),
    "backends/native/test_team.py": Rule(EACH_VALUE, "alone on all cores; a team knows no cell"),
    "backends/native/test_math.py::test_within_three_units_in_the_last_place": Rule(
        EACH_VALUE, "each function and each level; millions of numbers each"
    ),
    "backends/triton/test_kernels.py::test_two_runs_are_bit_equal": Rule(
        EACH_VALUE, "the interpreter runs one program after another: little can differ"
    ),
    "backends/triton/test_kernels.py::test_operands_stand_anywhere_in_their_storage": Rule(
        EACH_VALUE, "half a second each in the interpreter, and pointers are taken in one place"
    ),
    "backends/triton/test_compile.py::test_each_kernel_fits_at_its_largest": Rule(
        EACH_VALUE, "seconds each, and kernels of a type are alike on each GPU"
    ),
    "backends/triton/test_compile.py::test_no_kernel_spills": Rule(
        NONE, "minutes for each GPU; test_each_kernel_fits_at_its_largest has each at its largest"
    ),
    "backends/triton/test_compile.py::test_types_that_differ_in_width_alone": Rule(
        NONE, "half a minute each, of the same kernels"
    ),
    "benchmarks/test_gpu.py::test_all_of_it_on_a_stand_in": Rule(
        NONE, "a minute and a half of processes; test_the_most_telling_on_a_stand_in has most parts"
    ),
    "variants/test_layers.py::test_compiled": Rule(EACH_VALUE, _TRACED),
    "test_distributed.py::test_the_example_runs_sharded_too": Rule(
        NONE, "four Pythons; test_two_processes_train_as_one has sharded layers"
    ),
    "test_examples_options.py::"
    "test_long_range_dependencies_are_learned_by_lstm_and_gru_alone": Rule(
        NONE, "trains three models; test_examples_options.py runs the same script briefly"
    ),
}

# One at a time, without other tests beside them.
APART = {
    "test_threads.py": "counts the threads that work",
    "backends/native/test_team.py": "wants every member of a team to be running",
    "test_distributed.py": "starts processes that wait for each other",
    "benchmarks/test_benchmarks.py": "judges whether the machine is quiet",
    "benchmarks/test_options.py": "runs timed loops",
    "benchmarks/test_quantized.py": "runs timed loops",
}


def entry(item: pytest.Item, table: dict[str, Entry]) -> Entry | None:
    """Return what a table says of a test, or None."""
    file = Path(item.path).as_posix().rpartition("/tests/")[2]
    name = getattr(item, "originalname", item.name)
    return table.get(f"{file}::{name}", table.get(file))


def points_of(items: list[pytest.Item]) -> list[tuple[int, ...]]:
    """Return for each item its value of each parameter, as the value's identity.

    Parameters that always change together are one. (``callspec.indices`` counts combinations.)
    """
    names = sorted(items[0].callspec.params)
    columns = {}
    for name in names:
        numbers: dict[int, int] = {}
        values = [id(item.callspec.params[name]) for item in items]
        columns[tuple(numbers.setdefault(value, len(numbers)) for value in values)] = name
    return list(zip(*columns, strict=True)) if columns else [()] * len(items)


def covering(points: list[tuple[int, ...]], strength: int) -> list[int]:
    """Return positions of points that have every combination of ``strength`` values there is.

    Greedy: the point with the most combinations that are still missing, the first of several.
    """
    bits: dict[tuple[object, ...], int] = {}
    sets = []
    for point in points:
        mask = 0
        for axes in combinations(range(len(point)), min(strength, len(point))):
            key = (axes, tuple(point[axis] for axis in axes))
            mask |= 1 << bits.setdefault(key, len(bits))
        sets.append(mask)
    missing, chosen = (1 << len(bits)) - 1, []
    while missing:
        best = max(range(len(sets)), key=lambda i: (sets[i] & missing).bit_count())
        chosen.append(best)
        missing &= ~sets[best]
    return sorted(chosen)


_NO_PARAMETERS = SimpleNamespace(params={})


def is_skipped(item: pytest.Item) -> bool:
    """Return whether it is known now that a test will be skipped.

    By a mark of its own or of one of its parameters; or since its module's ``cannot_be``, a
    function of a test's parameters, says of their values that they do not go together.
    """
    cannot_be = getattr(getattr(item, "module", None), "cannot_be", None)
    if cannot_be is not None and cannot_be(**getattr(item, "callspec", _NO_PARAMETERS).params):
        return True
    conditions = [mark.args for mark in item.iter_markers("skipif")]
    assert all(len(args) == 1 and not isinstance(args[0], str) for args in conditions), item.nodeid
    return any(args[0] for args in conditions) or item.get_closest_marker("skip") is not None


def strength_of(item: pytest.Item) -> int:
    """Return how many parameters of a test are combined in core; NONE where it is not in core."""
    rule = entry(item, CORE)
    return PAIRS if rule is None else rule.strength


def choose(items: list[pytest.Item], *, core: bool) -> set[pytest.Item]:
    """Return the items of a tier.

    Of what is skipped, in either, one of each test: it says why, thousands say no more and take a
    quarter of a minute.
    """
    tests: dict[tuple[object, ...], list[pytest.Item]] = defaultdict(list)
    kept, skipped = set(), {}
    for item in items:
        if is_skipped(item):
            skipped.setdefault((item.parent, getattr(item, "originalname", item.name)), item)
        elif core and hasattr(item, "callspec"):
            tests[(item.parent, item.originalname, *sorted(item.callspec.params))].append(item)
        elif not core or strength_of(item) > NONE:
            kept.add(item)
    for group in tests.values():
        strength = strength_of(group[0])
        if strength > NONE:
            kept.update(group[i] for i in covering(points_of(group), strength))
    return kept | set(skipped.values())
