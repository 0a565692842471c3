"""Layers made of scans: stacks of layers and directions, and what happens to their operands.

:mod:`~fused_rnn.scans.stack` has layers, directions, dropout and packing, ``checks`` what operands
a kernel may see, ``autograd`` differentiation for every backend at once, ``autocast`` the dtype,
``segments`` and ``marks`` lengths and resets. It stands on ``backends``: which of them runs is
chosen there, and how one of them works is not known here.
"""
