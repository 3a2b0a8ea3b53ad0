"""Hydra looks for plugins here: torchvision's networks as choices of `model`."""

from cnnlab.assembly.torchvision_models import TorchvisionSearchPath, TorchvisionSource

__all__ = ["TorchvisionSearchPath", "TorchvisionSource"]
