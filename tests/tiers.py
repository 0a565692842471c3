"""Which tests are the core tier, and which want the cores to themselves.

``--core`` (make test) takes of each test's parameters a few combinations in place of the product:
each value of each parameter, and each pair of values of two parameters, at least once. That is
where faults of parametrised code are: one wrong value, or two that do not go together. The rest of
the product, and what :data:`FULL` names, is the full tier (make test-all), which is what pytest runs
unless it is told otherwise.

A test is named by its file, and where that is too wide by "file::test"; the narrower name counts.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations
from pathlib import Path

import pytest

# In core, not pairs but each value once: what is slow to simulate or to compile, and whose
# parameters meet in code that other tests take in pairs.
ONCE: dict[str, str] = {}

# In core as they are, all combinations: those whose parameters meet by more than two.
WHOLE: dict[str, str] = {}

# Not in core at all, and why.
FULL: dict[str, str] = {}

# One at a time, without other tests beside them.
APART: dict[str, str] = {}


def rule_of(item: pytest.Item, table: dict[str, str]) -> str | None:
    """Return what a table says of a test: its reason, or None."""
    file = Path(item.path).name
    name = getattr(item, "originalname", item.name)
    return table.get(f"{file}::{name}", table.get(file))


def axes_of(items: list[pytest.Item]) -> list[tuple[int, ...]]:
    """Return for each item the number of its value on each axis.

    Parameters that always change together, as those of one ``parametrize`` do, are one axis.
    """
    names = sorted(items[0].callspec.indices)
    columns = {tuple(item.callspec.indices[name] for item in items) for name in names}
    return list(zip(*sorted(columns), strict=True)) if columns else [()] * len(items)


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


def is_skipped(item: pytest.Item) -> bool:
    """Return whether a mark of the test, or of one of its parameters, skips it here."""
    conditions = (all(mark.args[:1]) for mark in item.iter_markers("skipif"))
    return any(conditions) or item.get_closest_marker("skip") is not None


def choose(items: list[pytest.Item], *, core: bool) -> set[pytest.Item]:
    """Return the items of a tier.

    Of what is skipped, in either, one of each test: it says why, thousands say no more and take a
    quarter of a minute.
    """
    tests: dict[tuple[object, ...], list[pytest.Item]] = defaultdict(list)
    kept, skipped = set(), {}
    for item in items:
        if core and rule_of(item, FULL) is not None:
            continue
        if is_skipped(item):
            skipped.setdefault((item.parent, getattr(item, "originalname", item.name)), item)
        elif not core or not hasattr(item, "callspec") or rule_of(item, WHOLE) is not None:
            kept.add(item)
        else:
            tests[(item.parent, item.originalname, *sorted(item.callspec.indices))].append(item)
    for group in tests.values():
        strength = 2 if rule_of(group[0], ONCE) is None else 1
        kept.update(group[i] for i in covering(axes_of(group), strength))
    return kept | set(skipped.values())
