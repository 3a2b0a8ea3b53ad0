"""Images of what was measured and learned: pure functions, module or numbers → image."""
