"""Programs that train the bundled networks and turn a training run into a file of weights."""
