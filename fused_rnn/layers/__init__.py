"""What a call of a layer or cell asks for, and where it goes.

:mod:`~fused_rnn.layers.dropin` has torch.nn's own rules: what is plainly legal goes to the kernels,
the rest to torch.nn's own forward; ``cell`` has them for cells, ``proxy`` and ``signatures`` what a
class looks like from outside. :mod:`~fused_rnn.layers.options`, ``step``, ``beyond`` and ``gates``
have what torch.nn has not: lengths, resets, states of every step, single steps, a look at gates.
``quantized`` has how layers with int8 or bfloat16 weights run, ``stored_weights`` where these are.

The public classes and functions stand on this floor (``modules.py``, ``functional.py``); it stands
on ``graph`` and ``scans``. No gate arithmetic here, and no choice of a backend.
"""
