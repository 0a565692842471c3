"""What the kernels take of a GPU: the compiler's report, the table, what fails against it."""

import pytest

from tests.native import check_cuda, resources
from tests.native.resources import Usage

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5plainPf' for 'sm_80'
ptxas info    : Function properties for _Z5plainPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers, 496 bytes cmem[0]
ptxas info    : Compile time = 24.851 ms
ptxas info    : Compiling entry function '_Z7spillerPf' for 'sm_80'
ptxas info    : Function properties for _Z7spillerPf
    880 bytes stack frame, 568 bytes spill stores, 640 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 884 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 136.728 ms
ptxas info    : Function properties for _Z6helperPf
    4 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


def test_the_compilers_report_is_read():
    assert resources.parse_ptxas(REPORT) == {
        "_Z5plainPf": Usage(30),
        "_Z7spillerPf": Usage(32, shared=1024, stack=884, spills=1208),
    }


def test_a_report_in_another_form_is_an_error():
    with pytest.raises(ValueError, match="in a form not known here"):
        resources.parse_ptxas(REPORT.replace("bytes stack frame", "B frame"))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "void fused_rnn::cuda::(anonymous namespace)::forward_step<fused_rnn::Lstm, "
            "fused_rnn::Half, 8>(fused_rnn::cuda::ForwardStep)",
            "forward_step<Lstm, Half, 8>",
        ),
        ("void f<fused_rnn::Rnn<true>, float, (int)1>(float*, long)", "f<Rnn<true>, float, 1>"),
        ("plain(float*)", "plain"),
        ("plain", "plain"),
    ],
)
def test_names_are_made_readable(name, short):
    assert resources.shorten(name) == short


@pytest.mark.parametrize("usage", [Usage(8), Usage(255, 49152, 16, 24), Usage(40, stack=8)])
def test_an_entry_is_read_as_it_was_written(usage):
    assert resources.parse_usage(str(usage)) == usage


def test_the_table_is_read_as_it_was_written():
    table = {
        "f<Rnn<true>, float, 4>": {"sm_80": Usage(40), "sm_90a": Usage(38, shared=1024)},
        "g": {"sm_80": Usage(168, stack=8, spills=24)},
    }
    text = resources.render(table, "13.0", ["sm_80", "sm_90a"])
    assert resources.parse_table(text) == ("13.0", table)


@pytest.mark.parametrize(
    ("before", "after", "same_release", "fails"),
    [
        (Usage(40), Usage(40), True, False),
        (Usage(40), Usage(48), True, False),
        (Usage(40), Usage(49), True, True),
        (Usage(40), Usage(99), False, False),
        (Usage(99), Usage(40), True, False),
        (Usage(40), Usage(40, spills=4), True, True),
        (Usage(40), Usage(40, spills=4), False, True),
        (Usage(40, spills=8), Usage(40, spills=4), True, False),
        (Usage(40), Usage(40, stack=8), True, True),
        (Usage(40), Usage(40, stack=8), False, True),
        (Usage(40, shared=512), Usage(40, shared=1024), True, True),
    ],
)
def test_what_fails_against_the_table(before, after, same_release, fails):
    result = resources.compare(
        {"k": {"sm_80": before}}, {"k": {"sm_80": after}}, same_release=same_release
    )
    assert bool(result.failures) == fails
    assert all(line.startswith("k on sm_80: ") for line in result.failures + result.notes)
    if same_release and before != after:
        assert len(result.failures + result.notes) == 1


def test_both_tables_have_the_same_kernels():
    one, two = {"sm_80": Usage(40)}, {"sm_80": Usage(40), "sm_90a": Usage(40)}
    gone = resources.compare({"k": one, "l": one}, {"k": one}, same_release=True)
    assert gone.failures == ["l on sm_80: in the table, but no longer compiled"]
    new = resources.compare({"k": one}, {"k": two}, same_release=False)
    assert new.failures == ["k on sm_90a: not in the table"]
    few = resources.compare({"k": one, "l": one}, {"k": one}, same_release=True, whole=["sm_90a"])
    assert few == ([], [])
    # An architecture that this compiler does not know is not missed.
    assert resources.compare({"k": two}, {"k": one}, same_release=True) == ([], [])


def test_no_committed_kernel_spills():
    _, table = resources.parse_table(check_cuda.COMMITTED.read_text())
    names = {f"sm_{number}" for number in check_cuda.ARCHITECTURES}
    # Persistent kernels for sm_80 serve its generation too, and there are none for an older one.
    large = names - {"sm_75", "sm_86", "sm_89"}
    for kernel, row in table.items():
        persists = kernel.startswith(("persistent_", "floor_"))
        assert row.keys() == (large if persists else names), kernel
    spilling = {(kernel, name) for kernel, row in table.items() for name in row if row[name].spills}
    # A few words, once a step.
    most = {"sm_80": 112, "sm_100": 16}
    assert all(table[k][name].spills <= most.get(name, 0) for k, name in spilling)


def test_without_nvcc_there_is_nothing_to_check(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    assert check_cuda.main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Nothing was checked: the CUDA kernels need nvcc")
    assert said.count("\n") == 1


def test_the_check_fails_and_says_how_to_renew(monkeypatch, capsys, tmp_path):
    table = {"k": {"sm_80": Usage(40)}}
    monkeypatch.setattr(check_cuda, "ROOT", tmp_path)
    monkeypatch.setattr(check_cuda, "COMMITTED", tmp_path / "resources.txt")
    assert not check_cuda.judge(table, "13.0")
    check_cuda.COMMITTED.write_text(resources.render(table, "13.0", ["sm_80"]))
    assert check_cuda.judge(table, "13.0")
    capsys.readouterr()
    assert not check_cuda.judge({"k": {"sm_80": Usage(40, spills=16)}}, "13.0")
    said = capsys.readouterr().out
    assert "FAILED: k on sm_80: bytes spilled 0 -> 16" in said
    assert "make check-cuda RENEW=1" in said
