"""From interactions to parameters: batches, losses, the optimizer, the train step and its loop."""
