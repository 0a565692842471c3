"""The unit of a CPU that a call ran on, and what share of its rate a time is.

A level's products run on vectors, in float32, or on tiles, in bfloat16. The rates of both are
measured in the run itself, by torch's own large products; see ``machine.measure_rates``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from .cases import Case

# The dtype whose measured rate is the unit's, by level. All others multiply float32 vectors.
_UNITS = {"amx": "bf16", "avx512_bf16": "bf16"}
# Of bfloat16 pieces, for one product in float32; see docs/backends.md.
_PIECES = 6
_LEVEL = re.compile(r"\b(amx|avx512\w*|avx2|neon|portable)\b")
_WORDS = {"six": 6, "three": 3, "one": 1}
_PRODUCTS = re.compile(rf"\b(\d+|{'|'.join(_WORDS)}) products?\b")


def level_of(rows: Iterable[Any]) -> str | None:
    """Return the SIMD level that ran, from the rows of ``fused_rnn.explain``.

    Where they do not say, it is the level in use, which may have given the call to a lower one.
    None where none of the CPU's kernels ran.
    """
    native = [row for row in rows if row.backend == "native"]
    if not native:
        return None
    said = list(dict.fromkeys(row.how for row in native if row.how))
    if said:
        return "; ".join(said)
    from fused_rnn.backends import native as kernels

    return kernels.simd_level()


def unit(level: str, case: Case) -> tuple[str, int]:
    """Return the dtype whose rate is the unit's, and its products for each of the case's."""
    names = _LEVEL.findall(level)
    dtype = _UNITS.get(names[0], "fp32") if names else "fp32"
    if case.products_dtype not in (dtype, "fp32"):
        return "fp32", 1  # float16 has no unit of its own
    if case.products_dtype == dtype:
        return dtype, 1
    said = _PRODUCTS.search(level)
    return dtype, _PIECES if said is None else _number(said[1])


def _number(text: str) -> int:
    return _WORDS.get(text) or int(text)
