"""Grids, quantizers, statistics and searches: mathematics that knows no network."""
