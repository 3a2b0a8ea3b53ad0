"""Hydra looks for plugins here: torchvision's networks as choices of `model`."""

from cnnlab.config.torchvision_models import TorchvisionSearchPath, TorchvisionSource

__all__ = ["TorchvisionSearchPath", "TorchvisionSource"]
