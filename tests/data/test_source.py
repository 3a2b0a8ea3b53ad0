import hashlib
from pathlib import Path

import pytest
import torch
from image_folders import noise, write_image

from cnnlab.data import SOURCES
from cnnlab.data.image_files import ImageReader
from cnnlab.data.source import Images, Source, image_digest, image_digests


def images() -> Images:
    return Images.of(
        torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2), torch.tensor([2, 0, 1], dtype=torch.int32)
    )


@pytest.mark.parametrize(
    "name", sorted(SOURCES.keys() - {"image_folder", "csv", "arrays", "expanded_mnist", "logic_gates", "shapes"})
)
def test_each_published_source_describes_itself_and_reads_on_request_only(name: str) -> None:
    source = SOURCES[name](**({} if name == "digits" else {"root": "/nonexistent"}))
    spec = source.describe()
    assert isinstance(source, Source)
    assert set(spec.counts) == {"train", "test"}
    assert len(spec.input_shape) == 3
    assert source.paths("train") is None
    assert source.notes() == []


def test_a_source_reads_any_image_file_in_its_own_shape(tmp_path: Path) -> None:
    path = write_image(tmp_path / "x.png", noise(20, 40))
    assert SOURCES["mnist"](root="").reader((1, 28, 28)) == ImageReader((28, 28), 1, "crop")
    assert SOURCES["cifar10"](root="").reader((3, 32, 32)).read(path).shape == (3, 32, 32)


def test_a_selection_keeps_images_labels_and_numbers_together() -> None:
    assert (images().y_N.dtype, images().index_N.tolist()) == (torch.int64, [0, 1, 2])
    chosen = images().select(torch.tensor([2, 0]))
    assert chosen.x_NCHW[:, 0, 0, 0].tolist() == [8, 0]
    assert (chosen.y_N.tolist(), chosen.index_N.tolist()) == ([1, 2], [2, 0])


def test_a_selection_copies_no_image_and_can_be_selected_from() -> None:
    everything = images()
    chosen = everything.select(torch.tensor([2, 0])).select(torch.tensor([1]))
    assert chosen.stored_NCHW is everything.stored_NCHW
    assert chosen.x_NCHW.flatten().tolist() == [0, 1, 2, 3]
    assert (len(chosen), chosen.shape, chosen.index_N.tolist()) == (1, (1, 2, 2), [0])


@pytest.mark.parametrize("size", [1, 9, 1 << 24])
def test_chunks_are_the_images_in_their_order_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("cnnlab.data.source.CHUNK", size)
    for x in (images(), images().select(torch.tensor([2, 0]))):
        chunks = list(x.chunks())
        assert max(map(len, chunks)) <= max(1, size // 4)
        assert torch.equal(torch.cat(chunks), x.x_NCHW)
        assert x.digest() == Images.of(x.x_NCHW.clone(), x.y_N).digest()


def test_the_digest_is_sha256_over_shape_images_and_labels() -> None:
    x = images()
    content = x.x_NCHW.numpy().tobytes() + x.y_N.numpy().tobytes()
    assert x.digest() == hashlib.sha256(b"(3, 1, 2, 2)" + content).hexdigest()
    reshaped = Images(x.x_NCHW.reshape(3, 1, 1, 4), x.y_N, x.index_N)
    assert reshaped.digest() == hashlib.sha256(b"(3, 1, 1, 4)" + content).hexdigest()


def test_the_digests_of_many_images_are_those_of_each() -> None:
    x_NCHW = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).reshape(5, 3, 4, 4)
    assert image_digests(x_NCHW).tolist() == [image_digest(x_CHW) for x_CHW in x_NCHW]
    assert image_digests(x_NCHW[:, :, ::2]).tolist() == [image_digest(x_CHW) for x_CHW in x_NCHW[:, :, ::2]]
    assert image_digests(x_NCHW[:0]).tolist() == []
