"""Runs encoders in other engines, as rivals to compare with: PyTorch in other dtypes, ONNX Runtime, OpenVINO."""
