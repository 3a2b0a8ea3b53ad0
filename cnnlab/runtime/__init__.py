"""The lowest room: errors, value checks, device, randomness, the batch. It imports nothing of the project."""
