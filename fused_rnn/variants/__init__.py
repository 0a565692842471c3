"""Variants of the cells: what the literature adds to them, one option beside the other.

A variant's *name* is that of its cell and what is on, ``"lstm;zoneout=0.1,0.1;layer_norm=1e-05"``.
It stands wherever the name of a plain cell may: a string goes through an op's schema, compares, and
keys a cache. :func:`cell_of` makes of it the cell, whose equations are in ``equations.py``.
"""

from __future__ import annotations

from fused_rnn.variants.equations import Extra, VariantWeights, cell_of, extra_sizes
from fused_rnn.variants.names import Variant, variant_of
from fused_rnn.variants.options import from_options
from fused_rnn.variants.philox import keeps_old

__all__ = [
    "Extra",
    "Variant",
    "VariantWeights",
    "cell_of",
    "extra_sizes",
    "from_options",
    "keeps_old",
    "variant_of",
]
