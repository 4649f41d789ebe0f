"""Bundled recipes: TOML, no code."""
