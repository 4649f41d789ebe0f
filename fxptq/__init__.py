"""Post-training quantization of image-restoration networks."""
