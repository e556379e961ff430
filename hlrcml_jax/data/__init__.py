"""From files to device-ready interactions: read, threshold, n-core, split, cache."""
