"""How fast a checkpoint runs on a machine, how much memory it takes, and how its peers do there."""
