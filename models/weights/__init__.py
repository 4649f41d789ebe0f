"""Bundled trained weights (safetensors) and their model cards."""
