"""What is done with a finished run: evaluate it, predict with it, draw what its layers learned."""
