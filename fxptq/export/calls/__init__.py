"""The ONNX form of torch's calls, one module a family; fxptq.export.table imports every module of this folder."""
