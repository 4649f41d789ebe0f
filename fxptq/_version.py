"""The version of fxptq, written here alone; this file imports nothing, so that building a wheel needs no torch."""

__version__ = "0.1.0"
