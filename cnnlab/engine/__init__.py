"""The training step, the trainer around it, evaluation, checkpoints."""
