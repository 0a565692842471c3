"""Layers under torch.compile, torch.export and ONNX."""
