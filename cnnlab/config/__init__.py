"""Compose → check → plan: what a config says, checked before anything is loaded or written."""
