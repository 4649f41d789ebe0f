"""The quantized network on disk: the file format, its metadata, and a program's state in and out of it."""
