"""Contact sheets are made of the images' own pixels."""

import numpy as np
import torch

from cnnlab.visualization.sheets import GAP, TILE, contact_sheet


def test_small_images_are_enlarged_and_stand_in_their_rows() -> None:
    x_NCHW = torch.arange(3 * 3 * 2 * 2).reshape(3, 3, 2, 2) * 5
    sheet = contact_sheet([x_NCHW[:2], x_NCHW[2:]])
    assert sheet.shape == (2 * (TILE + GAP) + GAP, 2 * (TILE + GAP) + GAP, 3)
    second = sheet[GAP : GAP + TILE, 2 * GAP + TILE : 2 * (GAP + TILE)]
    assert np.array_equal(second[:: TILE // 2, :: TILE // 2].transpose(2, 0, 1), x_NCHW[1])
    third = sheet[2 * GAP + TILE :, GAP : GAP + TILE]
    assert np.array_equal(third[:: TILE // 2, :: TILE // 2][:2].transpose(2, 0, 1), x_NCHW[2])
    assert (sheet[2 * GAP + TILE :, 2 * GAP + TILE :] == 255).all()  # no fourth image


def test_grey_and_two_channel_images_are_drawn_and_large_ones_reduced() -> None:
    for channels in (1, 2):
        x_NCHW = torch.full((1, channels, 4 * TILE, 2 * TILE), 90.4)
        sheet = contact_sheet([x_NCHW])
        assert sheet.shape == (TILE + 2 * GAP, TILE // 2 + 2 * GAP, 3)
        assert (sheet[GAP:-GAP, GAP:-GAP] == 90).all()
