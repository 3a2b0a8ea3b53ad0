"""The version of the package, beside the one in `pyproject.toml`."""

__version__ = "0.2.0"
