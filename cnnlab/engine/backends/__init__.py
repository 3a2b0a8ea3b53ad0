"""Other ways to compute the passes of a training step."""
