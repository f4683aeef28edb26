"""The offline half: checkpoint, capture, passes, ONNX, build and verification. Imports PyTorch."""
