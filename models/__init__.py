"""Bundled networks, whose state-dict keys equal the original authors' releases."""
