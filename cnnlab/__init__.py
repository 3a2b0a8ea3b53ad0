"""cnnlab: a laboratory for convolutional networks, driven by YAML.

Importing the package is cheap: torch is loaded only by the rooms that need it.
"""

__version__ = "0.1.0"
