"""How others run an encoder: PyTorch in other widths, ONNX Runtime, OpenVINO. What we are compared with."""
