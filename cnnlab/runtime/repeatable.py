"""A network that answers the same whenever it is asked."""

from typing import Any

import torch
from torch import Tensor, nn

from cnnlab.runtime.eval_mode import in_evaluation_mode

PLAIN = (int, float, bool, str, bytes, type(None), tuple)
SEED = 0


class Repeatable(nn.Module):
    """Calls a module in evaluation mode, each time as if it were the first.

    Before a call, whatever earlier ones changed is as it was when this was made: buffers, tensors and plain values that
    modules keep as attributes, torch's generators. Parameters are not restored: nothing here trains them.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._values = [(one, _plain(one)) for one in module.modules()]
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(module)]

    def forward(self, *inputs: Any) -> Any:
        self.restore()
        with torch.random.fork_rng(), in_evaluation_mode(self.module):
            torch.manual_seed(SEED)
            return self.module(*inputs)

    @torch.no_grad()
    def restore(self) -> None:
        """Undoes what calls have changed."""
        for module, values in self._values:
            vars(module).update(values)
            for name in [name for name, value in vars(module).items() if name not in values and _is_plain(value)]:
                del vars(module)[name]
        for tensor, saved in self._tensors:
            if not torch.equal(tensor, saved):  # a write would end the graphs that need it, changed or not
                tensor.copy_(saved)


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Also tensors by reference: one that a call replaces comes back."""
    return {name: value for name, value in vars(module).items() if _is_plain(value) or isinstance(value, Tensor)}


def _tensors(module: nn.Module) -> list[Tensor]:
    own = [value for one in module.modules() for value in vars(one).values() if isinstance(value, Tensor)]
    return [*module.buffers(), *own]
