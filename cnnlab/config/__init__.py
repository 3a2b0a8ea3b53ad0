"""Compose → check → plan: a config, checked before anything is loaded or written."""
