"""Export to ONNX (torch) and inference from ONNX (no torch)."""
