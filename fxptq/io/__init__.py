"""Everything that is read or written: pictures, weights, checkpoints."""
