"""Benchmarks of fused_rnn against its peers: ``python -m benchmarks --help``.

What is measured stands in ``cases`` and ``cases_cpu``, who in ``peers``, how in ``harness``,
``timing``, ``memory``, on what in ``machine`` and ``units``, what is asked in ``bar``, what is said
in ``report`` and ``plots``; the half for a GPU in ``*_cuda``. Measurements of their own:
``sampler``, of random shapes from ``draws``; ``growth``, one size at a time; ``options`` and
``floor``. ``judging`` holds result files against the bar of today.
"""
