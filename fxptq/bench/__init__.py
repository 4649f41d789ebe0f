"""Time and memory of a checkpoint on a machine, beside the time and memory of other engines."""
