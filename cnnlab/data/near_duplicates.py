"""Images that are nearly the same: compressed again, resized, cropped a little, brighter or darker.

A perceptual hash finds candidates, and a comparison of pixels decides. The hash is a list of signs of random
projections of an image's lowest frequencies, and images that agree in one band of it are candidates (locality-sensitive
hashing, Charikar 2002, doi.org/10.1145/509907.509965). The bands grow with the logarithm of the number of images: a
band's buckets stay small, and the work grows as N log N.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from cnnlab.runtime.randomness import derive

SIDE = 32  # pixels of the thumbnails that are compared
SMALLEST = 16  # side of images that are searched: in smaller ones different images look the same
LEAST_CONTRAST = 3.0  # standard deviation of grey levels; below it there is nothing to compare
GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
CHUNK = 1024  # images, or pairs, in memory at once

# the hash
HASHED = 5  # frequencies along each axis, the constant among them
BANDS = 48
MOST_NEIGHBOURS = 24  # that an image is compared with in its bucket: a large one takes no longer than its length
LEAST_COSINE = 0.8  # of two descriptors; of each band, the best pairs are kept, no more than there are images

# the comparison of pixels
ALIGNED = 8  # frequencies of the first alignment, which is linear
RIDGE = 1.0
LEAST_LINEAR = 0.945  # correlation after it; the best pairs are kept, no more than there are images
LEAST_CORRELATION = 0.985  # after the whole one, in thumbnails of half the size
ITERATIONS = 3
LARGEST_WARP = 0.2  # of each of its parameters


def thumbnails(x_NCHW: Tensor) -> Tensor:
    """(N, SIDE, SIDE) uint8 grey levels of uint8 images of any size, both sides scaled."""
    x_NCHW = x_NCHW.float()
    channels = x_NCHW.shape[1]
    weight_C11 = torch.tensor(GREY if channels == 3 else [1 / channels] * channels)[:, None, None]
    grey_N1HW = (x_NCHW * weight_C11).sum(1, keepdim=True)
    scaled_N1HW = F.interpolate(grey_N1HW, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return scaled_N1HW.squeeze(1).round().clamp(0, 255).to(torch.uint8)


def near_duplicates(grey_NHW: Tensor, seed: int = 0) -> Tensor:
    """(P, 2) rows of the thumbnails that show nearly the same image, the lower first, each pair once, in order.

    Two images are nearly the same if they correlate by `LEAST_CORRELATION` where they overlap, once one of them is
    scaled and shifted along both axes. Images almost without contrast have no near duplicates. The search is not
    exhaustive: of crops by 5 %, a few in a hundred are missed.
    """
    contrast_N = torch.cat([part_NHW.float().flatten(1).std(1) for part_NHW in grey_NHW.split(CHUNK)])
    rows = (contrast_N >= LEAST_CONTRAST).nonzero().flatten()
    if len(rows) < 2:
        return torch.empty(0, 2, dtype=torch.int64)
    grey_NHW = grey_NHW.index_select(0, rows)
    pairs_P2 = _candidates(_descriptors(grey_NHW), seed)
    fields_N5D = _fields(grey_NHW)
    linear_P = torch.cat([_linear_correlation(fields_N5D, part_P2) for part_P2 in pairs_P2.split(CHUNK)])
    pairs_P2 = pairs_P2[_best(linear_P, LEAST_LINEAR, len(rows))]
    if not len(pairs_P2):
        return pairs_P2
    same_P = torch.cat([_are_same(grey_NHW, part_P2) for part_P2 in pairs_P2.split(CHUNK)])
    return rows[pairs_P2[same_P]]


def _best(score_P: Tensor, least: float, most: int) -> Tensor:
    """Places of the highest scores, in ascending order: so many that are at least as high as `least`."""
    enough = (score_P >= least).nonzero().flatten()
    if len(enough) <= most:
        return enough
    return enough[score_P[enough].topk(most).indices.sort().values]


def _descriptors(grey_NHW: Tensor) -> Tensor:
    """(N, D) of length 1: the lowest frequencies but the constant, each divided by the root of its deviation."""
    dct_KS = _dct(HASHED)
    parts = [(dct_KS @ part_NHW.float() @ dct_KS.T).flatten(1)[:, 1:] for part_NHW in grey_NHW.split(CHUNK)]
    frequency_ND = torch.cat(parts)
    return F.normalize(frequency_ND / frequency_ND.std(0).clamp(min=1e-6).sqrt(), dim=1)


def _dct(frequencies: int) -> Tensor:
    """(K, S): the first rows of the discrete cosine transform II of a thumbnail's side."""
    position_S = (torch.arange(SIDE) + 0.5) * math.pi / SIDE
    return torch.cos(torch.arange(frequencies)[:, None] * position_S) * math.sqrt(2 / SIDE)


def _candidates(unit_ND: Tensor, seed: int) -> Tensor:
    """(P, 2) rows, the lower first, that share a bucket in one of the bands and have similar descriptors."""
    count, size = unit_ND.shape
    bits = round(math.log2(count)) + 2
    power_B = 2 ** torch.arange(bits)
    generator = torch.Generator().manual_seed(derive(seed, "near duplicates"))
    keys = torch.empty(0, dtype=torch.int64)
    for _ in range(BANDS):
        signs_NB = unit_ND @ torch.randn(size, bits, generator=generator) > 0
        bucket_N, order_N = (signs_NB * power_B).sum(1).sort(stable=True)
        sorted_ND = unit_ND.index_select(0, order_N)
        pairs = [torch.empty(3, 0, dtype=torch.float64)]
        for first, second in _neighbours(bucket_N):
            cosine = (sorted_ND.index_select(0, first) * sorted_ND.index_select(0, second)).sum(1)
            pairs.append(torch.stack([cosine, first.double(), second.double()]))  # exact up to 2^53
        cosine_P, *places = torch.cat(pairs, 1)
        a, b = (order_N[place_P[_best(cosine_P, LEAST_COSINE, count)].long()] for place_P in places)
        keys = torch.cat([keys, torch.minimum(a, b) * count + torch.maximum(a, b)]).unique()
    return torch.stack([keys // count, keys % count], 1)


def _neighbours(bucket_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Places (first, second) of a sorted list with the same bucket, no more than `MOST_NEIGHBOURS` apart."""
    first = torch.arange(len(bucket_N))
    for lag in range(1, MOST_NEIGHBOURS + 1):
        first = first[first < len(bucket_N) - lag]
        together = bucket_N.index_select(0, first) == bucket_N.index_select(0, first + lag)
        first = first.index_select(0, together.nonzero().flatten())
        if not len(first):
            return
        yield first, first + lag


def _fields(grey_NHW: Tensor) -> Tensor:
    """(N, 5, D) float16: low frequencies, scaled to length 1, and how each parameter of a warp changes them."""
    dct_KS = _dct(ALIGNED)
    x_HW, y_HW = _places(SIDE)
    parts = []
    for part_NHW in grey_NHW.split(CHUNK):
        image_NHW = part_NHW.float()
        along_x, along_y = _slopes(image_NHW)
        changes_N5HW = torch.stack([image_NHW, along_x * x_HW, along_y * y_HW, along_x, along_y], 1)
        frequency_N5D = (dct_KS @ changes_N5HW @ dct_KS.T).flatten(2)[:, :, 1:]
        length_N11 = frequency_N5D[:, :1].norm(dim=2, keepdim=True).clamp(min=1e-3)
        parts.append((frequency_N5D / length_N11).half())
    return torch.cat(parts)


def _linear_correlation(fields_N5D: Tensor, pairs_P2: Tensor) -> Tensor:
    """(P,) correlation of low frequencies, the first image changed linearly to match the second (tangent distance,
    Simard et al. 1993); large changes are discouraged."""
    image_P5D = fields_N5D.index_select(0, pairs_P2[:, 0]).float()
    second_PD1 = fields_N5D.index_select(0, pairs_P2[:, 1])[:, 0, :, None].float()
    first_PD1, change_P4D = image_P5D[:, 0, :, None], image_P5D[:, 1:]
    cosine_P11 = first_PD1.mT @ second_PD1
    left_PD1 = second_PD1 - cosine_P11 * first_PD1
    change_P4D = change_P4D - (change_P4D @ first_PD1) @ first_PD1.mT
    product_P41 = change_P4D @ left_PD1
    amount_P41 = torch.linalg.solve(change_P4D @ change_P4D.mT + RIDGE * torch.eye(4), product_P41)
    explained_P11 = cosine_P11.square() + product_P41.mT @ amount_P41
    return (explained_P11.clamp(0, 1).sqrt() * cosine_P11.sign()).flatten()


def _are_same(grey_NHW: Tensor, pairs_P2: Tensor) -> Tensor:
    """(P,) bool: whether the thumbnails of a pair correlate after an alignment."""
    first_PHW, second_PHW = (grey_NHW.index_select(0, pairs_P2[:, side]).float() for side in (0, 1))
    return correlation(first_PHW, second_PHW) >= LEAST_CORRELATION


def correlation(a_PHW: Tensor, b_PHW: Tensor) -> Tensor:
    """(P,) correlation of float images where they overlap, `a` scaled and shifted along both axes to match `b` best.

    The alignment is that of Lucas and Kanade (1981) and begins without a change; the images that are compared are half
    as large, so that compression counts for less.
    """
    side = a_PHW.shape[-1]
    x_HW, y_HW = _places(side)
    source_P3HW = torch.stack([a_PHW, *_slopes(a_PHW)], 1)
    warp_P4 = torch.zeros(len(a_PHW), 4)  # scales along x and y apart from 1, shifts along x and y
    for iteration in range(ITERATIONS + 1):
        scale_x, scale_y, shift_x, shift_y = warp_P4.T[..., None, None]
        u_PHW, v_PHW = x_HW * (1 + scale_x) + shift_x, y_HW * (1 + scale_y) + shift_y
        inside_PHW = (torch.maximum(u_PHW.abs(), v_PHW.abs()) <= 1 - 0.99 / side).float()
        moved_P3HW = F.grid_sample(
            source_P3HW, torch.stack([u_PHW, v_PHW], -1), padding_mode="border", align_corners=False
        )
        moved_PHW, scale_P11 = _standard(moved_P3HW[:, 0], inside_PHW)
        target_PHW, _ = _standard(b_PHW, inside_PHW)
        if iteration == ITERATIONS:
            break
        gx, gy = (moved_P3HW[:, 1:] / scale_P11[:, None] * inside_PHW[:, None]).unbind(1)
        change_P4M = torch.stack([gx * x_HW, gy * y_HW, gx, gy], 1).flatten(2)
        normal_P44 = change_P4M @ change_P4M.mT
        damping_P4 = 1e-3 * normal_P44.diagonal(dim1=1, dim2=2) + 1e-3
        residual_PM1 = (target_PHW - moved_PHW).flatten(1)[..., None]
        step_P41 = torch.linalg.solve(normal_P44 + torch.diag_embed(damping_P4), change_P4M @ residual_PM1)
        warp_P4 = (warp_P4 + step_P41.squeeze(2)).clamp(-LARGEST_WARP, LARGEST_WARP)
    halves_3PHW = F.avg_pool2d(torch.stack([moved_PHW, target_PHW, inside_PHW]), 2)
    whole_PHW = (halves_3PHW[2] > 0.99).float()
    product_PHW = _standard(halves_3PHW[0], whole_PHW)[0] * _standard(halves_3PHW[1], whole_PHW)[0]
    return product_PHW.sum((1, 2)) / whole_PHW.sum((1, 2)).clamp(min=1)


def _places(side: int) -> tuple[Tensor, Tensor]:
    """x and y of each pixel, (H, W), as grid_sample counts: the outer edges are at −1 and 1."""
    place_S = (torch.arange(side) + 0.5) / side * 2 - 1
    y_HW, x_HW = torch.meshgrid(place_S, place_S, indexing="ij")
    return x_HW, y_HW


def _slopes(image_NHW: Tensor) -> tuple[Tensor, Tensor]:
    """Along x and y, per unit of `_places`."""
    along_y, along_x = torch.gradient(image_NHW, spacing=2 / image_NHW.shape[-1], dim=(1, 2))
    return along_x, along_y


def _standard(image_PHW: Tensor, inside_PHW: Tensor) -> tuple[Tensor, Tensor]:
    """Each image with mean 0 and deviation 1 inside, and 0 outside; and the deviations, (P, 1, 1)."""
    count_P11 = inside_PHW.sum((1, 2), keepdim=True).clamp(min=1)
    centred_PHW = (image_PHW - (image_PHW * inside_PHW).sum((1, 2), keepdim=True) / count_P11) * inside_PHW
    deviation_P11 = (centred_PHW.square().sum((1, 2), keepdim=True) / count_P11).sqrt().clamp(min=1e-3)
    return centred_PHW / deviation_P11, deviation_P11
