"""From parameters to ranked lists: scoring the catalogue, metrics, evaluation."""
