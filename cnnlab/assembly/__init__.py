"""Config → objects → run. Only this room knows Hydra and OmegaConf.

Nothing here imports torch until a config has been composed: a misspelt option is answered in a fraction of a second.
"""

from cnnlab.assembly.command_line import evaluate, train

__all__ = ["evaluate", "train"]
