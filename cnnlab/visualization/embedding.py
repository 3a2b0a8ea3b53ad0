"""Images as points: what a network makes of them before its last layer, in two dimensions."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

PERPLEXITY = 30.0  # of t-SNE: about as many neighbours count
SEED = 0
COMPONENTS = 50  # that t-SNE compares
MOST_EXACT = 500  # features


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
    """(N, R) up to 50 principal components, two at least, and the fractions of the variance of the first two.

    Of more than 500 features they are approximate, the same for the same features.
    """
    from sklearn.decomposition import PCA

    count = min(COMPONENTS, *feature_NF.shape)
    solver = "full" if feature_NF.shape[1] <= MOST_EXACT else "randomized"
    pca = PCA(count, svd_solver=solver, random_state=SEED)
    place_NR = pca.fit_transform(feature_NF.double().numpy())
    fractions = [*np.nan_to_num(pca.explained_variance_ratio_).tolist(), 0.0]
    return np.pad(place_NR, ((0, 0), (0, max(0, 2 - count)))), (fractions[0], fractions[1])


def neighbours(place_NR: np.ndarray) -> np.ndarray:
    """(N, 2) by t-SNE (van der Maaten and Hinton 2008): near points are alike, distances between clusters mean little.

    The same for the same principal components.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    start_N2 = 1e-4 * place_NR[:, :2] / max(float(place_NR[:, 0].std()), 1e-12)
    perplexity = min(PERPLEXITY, (len(place_NR) - 1) / 3)
    tsne = TSNE(init=start_N2.astype(np.float32), perplexity=perplexity, random_state=SEED)
    with threadpool_limits(1):  # sums in one order, and no thread waits for another's core
        places_N2: np.ndarray = tsne.fit_transform(place_NR.astype(np.float32))
    return places_N2
