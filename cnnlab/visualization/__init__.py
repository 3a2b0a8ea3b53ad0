"""Pictures of what was measured and learned: pure functions, module or numbers → picture."""
