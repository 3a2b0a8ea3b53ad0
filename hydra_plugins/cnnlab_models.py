"""Hydra looks for plugins here: the networks of torchvision and timm as choices of `model`."""

from cnnlab.config.library_models import LibrarySearchPath, LibrarySource

__all__ = ["LibrarySearchPath", "LibrarySource"]
