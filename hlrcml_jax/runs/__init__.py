"""Runs: building from a config, workdir, checkpoints, training and testing."""
