"""A config's run: what it builds, its workdir and checkpoints, training and testing it."""
