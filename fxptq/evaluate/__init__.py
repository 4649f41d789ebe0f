"""Scores as the field measures them, and running networks on pictures of any size."""
