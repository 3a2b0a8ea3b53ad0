from collections import Counter
from itertools import chain, pairwise
from typing import Any

import pytest
import torch

from cnnlab.data.augmentation import AlternatingFlip, Augment, Brightness, HorizontalFlip, Shift
from cnnlab.data.loader import balanced_order
from cnnlab.data.mixing import MixUp
from cnnlab.data.normalization import Normalization
from cnnlab.data.resident import ResidentLoader
from cnnlab.data.source import Images
from cnnlab.runtime.batch import Batch
from cnnlab.runtime.randomness import derive

CPU = torch.device("cpu")
COUNT = 23


def images() -> Images:
    """23 images whose every pixel is their index in the file, which is 100 plus their row; class = row mod 3."""
    rows = torch.arange(COUNT)
    x_NCHW = (100 + rows).to(torch.uint8)[:, None, None, None].expand(-1, 2, 3, 3).contiguous()
    return Images(x_NCHW, rows % 3, 100 + rows)


def loader(**changes: Any) -> ResidentLoader:
    arguments: dict[str, Any] = {"batch_size": 5, "device": CPU, "shuffle": True, "seed": 7, **changes}
    return ResidentLoader(images(), Normalization((0.0, 0.0), (1.0, 1.0)), **arguments)


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.index_N.tolist() for batch in batches]


def epoch_of(source: ResidentLoader, epoch: int) -> list[list[int]]:
    source.set_epoch(epoch)
    return indices(list(source))


def flat(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def test_a_shuffled_order_is_a_permutation_of_the_seed_and_epoch_alone() -> None:
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(derive(7, "order", 3)))
    assert flat(epoch_of(loader(), 3)) == (100 + order).tolist()
    assert flat(epoch_of(loader(shuffle=False), 3)) == list(range(100, 100 + COUNT))


def test_a_batch_carries_its_images_labels_and_indices_together() -> None:
    for batch in loader():
        assert torch.equal(batch.x_NCHW, batch.index_N[:, None, None, None].expand(-1, 2, 3, 3).float())
        assert torch.equal(batch.target, (batch.index_N - 100) % 3)


def test_a_batch_is_normalized() -> None:
    source = ResidentLoader(images(), Normalization((90.0, 110.0), (4.0, 8.0)), 5, device=CPU, shuffle=False)
    x_NCHW = next(iter(source)).x_NCHW
    assert x_NCHW.dtype == torch.float32
    assert x_NCHW[:, 0, 0, 0].tolist() == [(100 + row - 90) / 4 for row in range(5)]
    assert x_NCHW[:, 1, 2, 2].tolist() == [(100 + row - 110) / 8 for row in range(5)]


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [(5, False, [5, 5, 5, 5, 3]), (5, True, [5, 5, 5, 5]), (23, True, [23]), (100, False, [23])],
)
def test_the_sizes_of_the_batches(batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    source = loader(batch_size=batch_size, drop_last=drop_last)
    assert [len(batch) for batch in source] == sizes
    assert (len(source), source.images) == (len(sizes), sum(sizes))


def test_drop_last_leaves_out_other_images_in_other_epochs() -> None:
    source = loader(drop_last=True)
    left_out = [set(range(100, 123)) - set(flat(epoch_of(source, epoch))) for epoch in range(4)]
    assert all(len(missing) == 3 for missing in left_out)
    assert len({frozenset(missing) for missing in left_out}) > 1


def test_the_epoch_after_a_resumed_one_is_whole() -> None:
    resumed = loader()
    resumed.load_state_dict({"epoch": 4, "position": 2})
    assert indices(list(resumed)) == epoch_of(loader(), 4)[2:]
    assert epoch_of(resumed, 5) == epoch_of(loader(), 5)


def test_a_rank_knows_how_many_images_a_whole_batch_has_and_may_have_none_of_them() -> None:
    images = Images.of(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), torch.zeros(9))
    batches = [
        list(ResidentLoader(images, None, 4, device=CPU, shuffle=True, rank=rank, world_size=2)) for rank in range(2)
    ]
    assert [[batch.global_count for batch in of_rank] for of_rank in batches] == [[4, 4, 1]] * 2
    assert [[len(batch) for batch in of_rank] for of_rank in batches] == [[2, 2, 1], [2, 2, 0]]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_each_batch_of_the_single_rank_order(world_size: int) -> None:
    alone = epoch_of(loader(), 1)
    ranks = [epoch_of(loader(rank=rank, world_size=world_size), 1) for rank in range(world_size)]
    for number, whole in enumerate(alone):
        parts = [rank[number] for rank in ranks]
        assert sorted(flat(parts)) == sorted(whole)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


UNEVEN = {0: 7, 2: 3, 5: 30, 9: 1}  # class → images; 41 are no multiple of 4


def uneven_labels() -> torch.Tensor:
    y_N = torch.cat([torch.full((size,), label) for label, size in UNEVEN.items()])
    return y_N[torch.randperm(len(y_N), generator=torch.Generator().manual_seed(1))]


def test_a_balanced_epoch_is_as_long_and_each_class_has_the_image_more_in_its_turn() -> None:
    epochs = [Counter(uneven_labels()[balanced_order(uneven_labels(), 3, epoch).row_N].tolist()) for epoch in range(4)]
    assert all(sorted(counts.values()) == [10, 10, 10, 11] for counts in epochs)
    assert sorted(max(UNEVEN, key=lambda label: counts[label]) for counts in epochs) == [0, 2, 5, 9]


@pytest.mark.parametrize("length", [6, 13, 40])
def test_any_beginning_of_a_balanced_epoch_is_balanced_in_a_mixed_order_of_classes(length: int) -> None:
    labels_N = uneven_labels()[balanced_order(uneven_labels(), 3, 2).row_N]
    counts = [int((labels_N[:length] == label).sum()) for label in UNEVEN]
    assert max(counts) - min(counts) <= 1
    assert len({tuple(turn) for turn in labels_N[:40].reshape(10, 4).tolist()}) > 3


def test_no_image_comes_again_before_all_of_its_class_did_whatever_the_epoch() -> None:
    y_N = uneven_labels()
    rows = torch.cat([balanced_order(y_N, 3, epoch).row_N for epoch in range(12)])
    for label, size in UNEVEN.items():
        given = rows[y_N[rows] == label]
        for turn in given.split(size)[:-1]:
            assert len(set(turn.tolist())) == size


def test_a_balanced_order_is_a_pure_function_of_seed_and_epoch() -> None:
    later = [balanced_order(uneven_labels(), 3, epoch).row_N for epoch in range(5)]
    torch.manual_seed(2)
    assert torch.equal(balanced_order(uneven_labels(), 3, 4).row_N, later[4])
    assert not torch.equal(balanced_order(uneven_labels(), 4, 4).row_N, later[4])
    assert len({tuple(order.tolist()) for order in later}) == 5


def test_a_balanced_loader_drops_the_last_batch_and_resumes_where_it_was() -> None:
    source = loader(balanced=True, drop_last=True, batch_size=6)
    batches = epoch_of(source, 2)
    assert [len(batch) for batch in batches] == [6, 6, 6]
    assert flat(batches) == (100 + balanced_order(images().y_N, 7, 2).row_N[:18]).tolist()
    resumed = loader(balanced=True, drop_last=True, batch_size=6)
    resumed.load_state_dict({"epoch": 2, "position": 1})
    assert indices(list(resumed)) == batches[1:]


STEPS = {"flip": HorizontalFlip(), "move": Shift(1), "light": Brightness(0.5)}


def noise() -> Images:
    x_NCHW = torch.randint(256, (COUNT, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x_NCHW, torch.arange(COUNT) % 3, torch.arange(COUNT))


PLAIN = Normalization((0.0, 0.0), (1.0, 1.0))


def serving(images: Images, augment: Augment, normalization: Normalization = PLAIN, **changes: Any) -> ResidentLoader:
    arguments: dict[str, Any] = {"batch_size": 5, "device": CPU, "shuffle": True, "seed": 7, **changes}
    return ResidentLoader(images, normalization, augment=augment, **arguments)


def augmented(**changes: Any) -> dict[int, torch.Tensor]:
    """Each image of an epoch by its index."""
    source = serving(noise(), Augment(STEPS, 3, 7), Normalization((9.0, 5.0), (2.0, 3.0)), **changes)
    return {int(i): x_CHW for batch in source for i, x_CHW in zip(batch.index_N, batch.x_NCHW, strict=True)}


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 23}, {"shuffle": False}, {"world_size": 2}])
def test_an_augmented_image_is_the_same_in_whatever_batch_or_rank_it_comes(changes: dict[str, Any]) -> None:
    expected = augmented()
    found = augmented(**changes) | (augmented(rank=1, **changes) if "world_size" in changes else {})
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[index], expected[index]) for index in expected)


def test_augmentation_comes_before_normalisation() -> None:
    (index, found), *_ = augmented(batch_size=1, shuffle=False).items()
    x_1CHW, y_1 = noise().x_NCHW[index][None].float(), torch.tensor([0])
    by_hand, _ = Augment(STEPS, 3, 7)(x_1CHW, y_1, torch.tensor([index]), torch.tensor([0]), 0, 0)
    expected = (by_hand[0] - torch.tensor([9.0, 5.0])[:, None, None]) / torch.tensor([2.0, 3.0])[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_an_image_that_comes_twice_in_a_balanced_epoch_looks_different() -> None:
    rare = Images(noise().x_NCHW, torch.tensor([0] * (COUNT - 1) + [1]), torch.arange(COUNT))
    source = serving(rare, Augment(STEPS, 2, 0), balanced=True)
    shown = [x_CHW for batch in source for i, x_CHW in zip(batch.index_N, batch.x_NCHW, strict=True) if i == COUNT - 1]
    assert len(shown) > 8
    assert len({x_CHW.numpy().tobytes() for x_CHW in shown}) == len(shown)


def test_an_augmented_epoch_is_resumed_in_the_middle() -> None:
    whole, again = (serving(noise(), Augment({**STEPS, "mix": MixUp()}, 3, 7)) for _ in range(2))
    again.load_state_dict({"epoch": 0, "position": 3})
    for batch, expected in zip(again, list(whole)[3:], strict=True):
        assert torch.equal(batch.x_NCHW, expected.x_NCHW)
        assert torch.equal(batch.target, expected.target)


@pytest.mark.parametrize("balanced", [False, True])
def test_an_alternating_flip_mirrors_every_other_showing_of_an_image(balanced: bool) -> None:
    uneven = Images(noise().x_NCHW, (torch.arange(COUNT) > 16).long(), torch.arange(COUNT))
    source = serving(uneven, Augment({"flip": AlternatingFlip()}, 2, 0), balanced=balanced)
    shown: dict[int, list[torch.Tensor]] = {index: [] for index in range(COUNT)}
    for epoch in range(6):
        source.set_epoch(epoch)
        for batch in source:
            for index, x_CHW in zip(batch.index_N.tolist(), batch.x_NCHW, strict=True):
                shown[index].append(x_CHW)
    first_mirrored = 0
    for index, views in shown.items():
        assert all(torch.equal(after, before.flip(2)) for before, after in pairwise(views))
        first_mirrored += torch.equal(views[0], noise().x_NCHW[index].flip(2).float())
    assert 0 < first_mirrored < COUNT
