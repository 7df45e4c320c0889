"""A model in formats that other programs run: ONNX and torch.export, with a README."""
