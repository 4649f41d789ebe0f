"""Networks for other runtimes: a quantized network as an ONNX file, and its integer form for torch.export."""
