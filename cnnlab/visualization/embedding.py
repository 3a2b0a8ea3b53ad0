"""Images as points: what a network makes of them before its last layer, in two dimensions."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

PERPLEXITY = 30.0  # of t-SNE: about as many neighbours count
SEED = 0


@torch.no_grad()
def features(model: nn.Module, layer: nn.Module | None, batches: Iterable[Tensor]) -> Tensor:
    """(N, F) float32: what arrives at `layer`, or the model's outputs without one."""
    found: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0].detach().float().flatten(1).cpu())

    hook = layer.register_forward_pre_hook(keep) if layer else None
    try:
        for x_NCHW in batches:
            output_NK = model(x_NCHW)
            if not hook:
                found.append(output_NK.float().cpu())
    finally:
        if hook:
            hook.remove()
    return torch.cat(found)


def principal_components(feature_NF: Tensor) -> tuple[np.ndarray, tuple[float, float]]:
    """(N, 2) the first two principal components, and the fraction of the variance that each has.

    Their sign, which is arbitrary, is that of the feature with the largest weight.
    """
    values_NF = feature_NF.double().numpy()
    centred_NF = values_NF - values_NF.mean(0)
    _, singular, direction_RF = np.linalg.svd(centred_NF, full_matrices=False)
    direction_2F = np.zeros((2, values_NF.shape[1]))
    direction_2F[: len(direction_RF[:2])] = direction_RF[:2]
    sign_2 = np.sign(direction_2F[np.arange(2), abs(direction_2F).argmax(1)])
    total = max(float((singular**2).sum()), 1e-300)
    first, second = (*(float(value**2) / total for value in singular[:2]), 0.0, 0.0)[:2]
    return centred_NF @ (direction_2F * sign_2[:, None]).T, (first, second)


def neighbours(feature_NF: Tensor) -> np.ndarray:
    """(N, 2) by t-SNE (van der Maaten and Hinton 2008): near points are alike, distances between clusters mean little.

    The same for the same features.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start_N2, _ = principal_components(feature_NF)
    start_N2 = 1e-4 * start_N2 / max(float(start_N2[:, 0].std()), 1e-12)
    perplexity = min(PERPLEXITY, (len(feature_NF) - 1) / 3)
    tsne = TSNE(init=start_N2.astype(np.float32), perplexity=perplexity, random_state=SEED)
    with threadpool_limits(1):  # sums in one order, and no thread waits for another's core
        places_N2: np.ndarray = tsne.fit_transform(feature_NF.numpy())
    return places_N2
