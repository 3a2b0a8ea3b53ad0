"""One run: its directory, training, resuming, starting weights, and the objects it is made of."""
