"""The test bed: other people's architectures, small, through all of fxptq."""
