"""Grids: axes, jobs, processes and results."""
