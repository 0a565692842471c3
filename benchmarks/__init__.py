"""Benchmarks of fused_rnn against its peers: ``python -m benchmarks --help``.

What is measured stands in ``cases``, who in ``peers``, how in ``harness``, ``timing``, ``memory``,
on what in ``machine``, what is asked in ``bar``, what is said in ``report`` and ``plots``; the half
for a GPU in ``*_cuda``. ``options`` and ``floor`` are measurements of their own.
"""
