"""The readers of published weights under the name they had before they moved to `fxptq.io.state_dict`."""

from fxptq.io.state_dict import is_derived, load_state, read_state, unwrap

__all__ = ["is_derived", "load_state", "read_state", "unwrap"]
