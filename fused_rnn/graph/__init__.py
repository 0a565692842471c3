"""Layers in a graph: one node for each scan, for torch.compile, torch.export and ONNX.

:mod:`~fused_rnn.graph.node` is the node, an op of PyTorch; ``compiled`` runs stacks by it; ``onnx``
gives the exporter standard nodes instead. It stands on ``scans``. What eager calls do is not here.
"""
