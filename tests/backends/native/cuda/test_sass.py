"""What the machine code of kernels has, read from a listing, and what it must not have."""

import re

import pytest

from tests.native import check_cuda, resources, sass
from tests.native.resources import Usage
from tests.native.sass import Code


def listing(*lines):
    body = "\n".join(
        f"        /*{16 * i:04x}*/                   {line} ;         /* 0x0000 */\n"
        "                                                       /* 0x0000 */"
        for i, line in enumerate(lines)
    )
    return f"\tcode for sm_90a\n\t\tFunction : _Z1kPf\n\t.headerflags\t@...\n{body}\n"


def code_of(*lines):
    (found,) = sass.parse(listing(*lines)).values()
    return found


LOADS = [f"LDG.E.64.STRONG.GPU R{2 * i}, desc[UR4][R40.64+0x{i:x}]" for i in range(4)]
PRODUCTS = [f"HMMA.16816.F32.BF16 R20, R24, R{2 * i}, R20" for i in range(4)]


def test_loads_that_stand_together_are_waited_for_once():
    assert code_of(*LOADS, *PRODUCTS) == Code(strong=4, exposed=1)


def test_loads_next_to_their_products_are_waited_for_one_by_one():
    pairs = [line for pair in zip(LOADS, PRODUCTS, strict=True) for line in pair]
    assert code_of(*pairs) == Code(strong=4, exposed=4)


def test_conditional_loads_count_too():
    lines = [f"@!P{i} {line}" for i, line in enumerate(LOADS)]
    assert code_of("CS2R R0, SRZ", *lines, *PRODUCTS[::-1]) == Code(strong=4, exposed=1)


def test_the_second_word_of_a_load_is_waited_for():
    load = "LDG.E.128.STRONG.GPU R4, desc[UR4][R40.64]"
    assert code_of(load, "FADD R0, R0, R7", "FADD R0, R0, R4") == Code(strong=1, exposed=1)
    assert code_of(load, "FADD R0, R0, R8") == Code(strong=1)


def test_a_register_that_is_written_again_is_waited_for_no_more():
    load = "LDG.E.STRONG.GPU R4, desc[UR4][R40.64]"
    assert code_of(load, "MOV R4, R9", "FADD R0, R0, R4") == Code(strong=1)


def test_other_loads_do_not_count():
    assert code_of("LDG.E R4, desc[UR4][R40.64]", "LDS.64 R6, [R8]", "FADD R0, R4, R6") == Code()


def test_calls_and_narrow_stores():
    stores = ["STG.E.128 desc[UR4][R2.64], R8", "STG.E.64 desc[UR4][R2.64], R8", "STS.U16 [R2], R8"]
    found = code_of(*stores, "@P0 CALL.REL.NOINC 0x4560", "@P1 STG.E.U16 desc[UR4][R2.64], R8")
    assert found == Code(calls=1, narrow=2)


@pytest.mark.parametrize(
    ("kernel", "wide"),
    [
        ("forward_step<Lstm, Half, 8>", True),
        ("backward_step<Rnn<false>, double, 2>", True),
        ("picked_rows<float, 4>", True),
        ("forward_step<Lstm, Half, 1>", False),
        ("hidden_step<Half>", False),
        ("persistent_backward<PlainProduct, 2, 4>", False),
        ("write_lengths", False),
    ],
)
def test_narrow_stores_count_where_accesses_are_wide(kernel, wide):
    assert Usage(40).with_code(kernel, Code(8, 2, 1, 3)) == Usage(40, 0, 0, 0, 2, 8, 1, 3 * wide)


def test_the_table_has_what_the_code_has():
    for usage in (Usage(40, exposed=2, strong=9), Usage(40, 4, 8, 16, 0, 17, 1, 5)):
        assert resources.parse_usage(str(usage)) == usage


@pytest.mark.parametrize(
    ("before", "after", "fails"),
    [
        (Usage(40, exposed=2, strong=17), Usage(40, exposed=2, strong=17), False),
        (Usage(40, exposed=2, strong=17), Usage(40, exposed=3, strong=17), True),
        (Usage(40, exposed=3, strong=17), Usage(40, exposed=2, strong=25), False),
        (Usage(40), Usage(40, calls=1), True),
        (Usage(40), Usage(40, narrow=1), True),
    ],
)
def test_what_fails_against_the_table(before, after, fails):
    result = resources.compare({"k": {"a": before}}, {"k": {"a": after}}, same_release=True)
    assert bool(result.failures) == fails
    without = resources.compare(
        {"k": {"a": before}}, {"k": {"a": after}}, same_release=True, with_code=()
    )
    assert not without.failures


@pytest.mark.parametrize(
    "usage", [Usage(40, exposed=5, strong=17), Usage(40, calls=1), Usage(40, narrow=1)]
)
def test_no_table_allows_what_no_kernel_may_have(usage):
    table = {"k": {"a": usage}}
    result = resources.compare(table, table, same_release=False)
    assert len(result.failures) == 1
    assert result.failures[0].startswith("k on a: ")


def test_no_committed_kernel_waits_for_its_loads_in_turn():
    _, table = resources.parse_table(check_cuda.COMMITTED.read_text())
    found = [(k, name, row[name]) for k, row in table.items() for name in row]
    assert [line for args in found for line in resources.bars(*args)] == []
    # Of kernels whose blocks meet in memory there are loads to be counted.
    counted = [u for k, _, u in found if re.match(r"persistent_forward.* false>$", k)]
    assert counted
    assert all(u.strong >= 9 for u in counted)
    anchor = table["persistent_forward<Lstm, TensorProduct<BFloat16>, 1, false>"]["sm_90a"]
    assert anchor.exposed <= 4
    assert anchor.strong == 17


def test_cuobjdump_may_be_named(monkeypatch, tmp_path):
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("CUOBJDUMP", str(tool))
    assert sass.find_cuobjdump("/nowhere/nvcc") == str(tool)
    with pytest.raises(RuntimeError, match="cuobjdump failed on"):
        sass.read(str(tool), tmp_path / "kernels.o")
    monkeypatch.setenv("CUOBJDUMP", str(tmp_path / "none"))
    assert sass.find_cuobjdump("/nowhere/nvcc") is None
    monkeypatch.delenv("CUOBJDUMP")
    assert sass.find_cuobjdump(str(tmp_path / "nvcc")) == str(tool)


def test_without_cuobjdump_the_report_alone_is_checked(monkeypatch, capsys):
    monkeypatch.setattr(check_cuda.nvcc, "find_nvcc", lambda: "nvcc")
    toolkit = check_cuda.Toolkit("nvcc", "13.0", frozenset({"80", "90", "120"}))
    monkeypatch.setattr(check_cuda.nvcc, "find_toolkit", lambda: toolkit)
    monkeypatch.setattr(sass, "find_cuobjdump", lambda nvcc: None)
    _, committed = resources.parse_table(check_cuda.COMMITTED.read_text())
    kinds = {f"sm_{number}" for number in check_cuda.KINDS}
    measured = {
        kernel: {a: u._replace(exposed=0, strong=0) for a, u in row.items() if a in kinds}
        for kernel, row in committed.items()
    }
    monkeypatch.setattr(check_cuda, "measure_all", lambda *args: measured)
    assert check_cuda.main([]) == 0
    assert capsys.readouterr().out.startswith("No cuobjdump: the machine code is not checked")
    assert check_cuda.main(["--renew"]) == 1
