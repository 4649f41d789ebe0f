"""Back ends, one file each: what computes a quantized network on integers, and where; found by their place."""
