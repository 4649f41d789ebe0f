"""Quantized networks as integers: packed codes, operators, and the rewriting of graphs onto them."""
