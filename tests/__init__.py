"""The tests, in the rooms of what they test; see CONTRIBUTING.md for the tiers.

Here: the public names (modules, functions, convert, explain, the doctor), the equations, the
examples; and what all tests share: ``conftest`` and ``operands`` (shapes, tolerances), ``twins``
(ours beside torch.nn's), ``marked``, ``tagger``, ``tiers``.
"""
