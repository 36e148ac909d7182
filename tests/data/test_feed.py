"""Batches are the same bits wherever the data lies, in order, and nothing is left when a loop ends."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import feed, ring
from limbeck.data.feed import Examples
from limbeck.data.ring import Ring
from tests.data.feeding import DEVICES, MEAN, STD, WAYS, examples, mapped_images, mapped_targets

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), np.uint8)
TARGETS = np.random.default_rng(1).standard_normal((50, 2)).astype(np.float32)


def ringed(**options: int) -> Ring:
    return Ring(IMAGES, TARGETS, lambda raw: raw.float(), CPU, **options)


def feeders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("limbeck-feed")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_bits_that_indexing_gives(tmp_path, way, device):
    given_, raw = examples(tmp_path, way, device), mapped_images(tmp_path, (40, 40, 13))[:]
    targets = torch.from_numpy(np.array(mapped_targets(tmp_path, 93)))
    scale = torch.tensor(1.0 / (255.0 * STD.astype(np.float64)), dtype=torch.float32)[:, None, None]
    shift = torch.tensor(-MEAN.astype(np.float64) / STD, dtype=torch.float32)[:, None, None]
    expected = (torch.from_numpy(raw).to(device).float() * scale.to(device)).add_(shift.to(device)).cpu()
    torch.testing.assert_close(
        expected,
        (torch.from_numpy(raw) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None],
        atol=1e-5,
        rtol=1e-5,
    )
    assert len(given_) == 93
    assert given_.target_dimension == 5
    order = torch.randperm(93)
    for batches in (order.split(20), order[:90].view(3, 30).split(8, dim=1)):
        with given_.feed(iter(batches)) as fed:
            found = list(fed)
        assert len(found) == len(batches)
        for indices, (x, y) in zip(batches, found, strict=True):
            assert x.device.type == y.device.type == device
            assert torch.equal(x.cpu(), expected[indices])
            assert torch.equal(y.cpu(), targets[indices])
            alone = given_[indices]
            assert torch.equal(alone[0], x)
            assert torch.equal(alone[1], y)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_pixels_lie_between_0_and_1_and_have_no_targets(tmp_path, way, device):
    pixels = Examples.pixels(mapped_images(tmp_path, (9, 4)), torch.device(device), way=way)
    with pixels.feed(torch.arange(13).split(5)) as fed:
        x, y = (torch.cat(parts) for parts in zip(*fed, strict=True))
    assert y.shape == (13, 0)
    torch.testing.assert_close(x.cpu(), torch.from_numpy(mapped_images(tmp_path, (9, 4))[:]) / 255)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS)
def test_a_subset_is_those_rows(tmp_path, way, device):
    whole, indices = examples(tmp_path, way, device), torch.tensor([92, 3, 40, 3])
    subset = whole.subset(indices)
    assert len(subset) == 4
    assert torch.equal(subset[torch.tensor([2, 0])][0], whole[torch.tensor([40, 92])][0])
    with subset.feed(torch.arange(4).to(subset.index_device).split(2)) as fed:
        assert torch.equal(torch.cat([y for _, y in fed]), whole[indices][1])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", ["streamed", "direct"])
def test_an_index_out_of_range_is_an_error_of_the_loop(tmp_path, way, device):
    given_ = examples(tmp_path, way, device)
    with (
        pytest.raises(IndexError, match="outside 0 to 92"),
        given_.feed([torch.tensor([1]), torch.tensor([93])]) as fed,
    ):
        list(fed)


def test_images_without_as_many_targets_are_refused():
    with pytest.raises(ValueError, match="49 targets for 50 images"):
        Examples.normalized(IMAGES, MEAN, STD, CPU, TARGETS[1:])


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 9), max_size=12), depth=st.integers(1, 4), threads=st.integers(1, 3), data=st.data()
)
def test_the_ring_gives_every_batch_in_order(sizes, depth, threads, data):
    sizes.sort(reverse=True)
    batches = [torch.tensor(data.draw(st.lists(st.integers(0, 49), min_size=n, max_size=n))) for n in sizes]
    with ringed(depth=depth, threads=threads).stream(batches) as fed:
        found = list(fed)
    assert len(found) == len(batches)
    for indices, (x, y) in zip(batches, found, strict=True):
        assert torch.equal(x, torch.from_numpy(IMAGES[indices.numpy()]).float())
        assert torch.equal(y, torch.from_numpy(TARGETS[indices.numpy()]))
    assert not feeders()


def test_a_batch_that_is_filled_late_still_comes_first(monkeypatch):
    second_is_there, plain = threading.Event(), ring.gather

    def gather(rows, indices, out):
        if indices[0] == 0:
            assert second_is_there.wait(60)
        plain(rows, indices, out)
        if indices[0] == 1 and rows is TARGETS:
            second_is_there.set()

    monkeypatch.setattr(ring, "gather", gather)
    with ringed(threads=2).stream(torch.arange(2).split(1)) as fed:
        assert torch.equal(torch.cat([y for _, y in fed]), torch.from_numpy(TARGETS[:2]))


def test_batches_are_drawn_no_further_ahead_than_there_are_buffers():
    drawn = []

    def batches():
        for index in range(20):
            drawn.append(index)
            yield torch.tensor([index])

    with ringed(depth=3).stream(batches()) as fed:
        for index, _ in enumerate(fed):
            assert len(drawn) <= index + 4


def test_a_thread_s_error_reaches_the_loop_after_the_batches_before_it(monkeypatch):
    plain, seen = ring.gather, []

    def gather(rows, indices, out):
        if indices[0] == 2:
            raise OSError("the disk is gone")
        plain(rows, indices, out)

    monkeypatch.setattr(ring, "gather", gather)
    with pytest.raises(OSError, match="the disk is gone"), ringed().stream(torch.arange(9).split(1)) as fed:
        seen.extend(y for _, y in fed)
    assert len(seen) == 2
    assert not feeders()


def test_a_loop_that_ends_early_leaves_no_thread():
    def loop():
        with ringed().stream(torch.arange(50).split(1)) as fed:
            next(fed)
            assert feeders()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert not feeders()


def test_a_batch_larger_than_the_first_is_refused():
    batches = [torch.arange(3), torch.arange(4)]
    with pytest.raises(ValueError, match="a batch of 4 after a first one of 3"), ringed().stream(batches) as fed:
        list(fed)


def test_a_copy_on_the_device_is_made_in_blocks(monkeypatch, tmp_path):
    images = mapped_images(tmp_path, (9, 9, 2))
    monkeypatch.setattr(feed, "_BLOCK_BYTES", 7 * 192)
    slices = []
    monkeypatch.setattr(type(images), "__getitem__", recording(type(images).__getitem__, slices))
    assert (feed._on_device(images, CPU).numpy() == images[:]).all()
    assert max(slices[:-1]) == 7


def recording(get, sizes):
    def getitem(images, indices):
        found = get(images, indices)
        sizes.append(len(found))
        return found

    return getitem


def test_data_is_resident_where_it_takes_at_most_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(feed, "_free_bytes", lambda device: 6 * 2**30)
    cuda = torch.device("cuda")
    way, said = feed._fitting(cuda, 3 * 2**30)
    assert (way, said.split(":")[0]) == (
        "resident",
        "images and targets take 3.0 GiB and 6.0 GiB of the accelerator's memory are free",
    )
    assert feed._fitting(cuda, 3 * 2**30 + 1)[0] == "streamed"
    assert feed._fitting(CPU, 2**60)[0] == "direct"


needs_accelerator = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")


@needs_accelerator
def test_on_an_accelerator_the_choice_is_said_in_one_line(tmp_path):
    lines = []
    images, targets = mapped_images(tmp_path, (20,)), mapped_targets(tmp_path, 20)
    Examples.normalized(images, MEAN, STD, torch.device("cuda"), targets, say=lines.append)
    (line,) = lines
    assert line.endswith("they are copied there")


@needs_accelerator
def test_batches_that_arrive_while_the_accelerator_is_busy_are_whole(tmp_path):
    given_ = examples(tmp_path, "streamed", "cuda", (2000, 500))
    raw, targets = mapped_images(tmp_path, (2000, 500))[:], np.array(mapped_targets(tmp_path, 2500))
    expected = Examples.normalized(raw, MEAN, STD, torch.device("cuda"), targets, way="resident")
    busy = torch.randn(4096, 4096, device="cuda")
    order, found = torch.randperm(2500).split(100), []
    with given_.feed(order) as fed:
        for batch in fed:
            for _ in range(8):
                busy = (busy @ busy).clamp_(-1, 1)
            found.append(batch)
    for indices, (x, y) in zip(order, found, strict=True):
        assert torch.equal(x, expected[indices][0])
        assert torch.equal(y, expected[indices][1])


@needs_accelerator
def test_a_loop_that_ends_early_writes_into_nobody_s_memory(tmp_path):
    given_ = examples(tmp_path, "streamed", "cuda", (2000, 500))
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        with given_.feed(torch.randperm(2500).split(500)) as fed:
            next(fed)
            busy = (busy @ busy).clamp_(-1, 1)
        ours = [torch.full((500, 3, 8, 8), 7, dtype=torch.uint8, device="cuda") for _ in range(8)]
        torch.cuda.synchronize()
        assert all((tensor == 7).all() for tensor in ours)
