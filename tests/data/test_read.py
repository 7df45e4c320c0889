from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from vmae_data import Shards
from vmae_data.decode import decode_all, decode_frames
from vmae_data.errors import DataError, SampleError
from vmae_data.format import INDEX, SAMPLES, Index
from vmae_data.names import key_of, source_key, tar_name
from vmae_data.read.dataset import SampleView
from vmae_data.read.fetch import Fetcher
from vmae_data.read.order import epoch_batches
from vmae_data.read.shared_buffers import BufferLayout, SharedBuffers
from vmae_data.read.stream import ClipFrames, ClipRequest, DataPart, Decoder
from vmae_data.rng import Rng


@pytest.fixture
def damaged(demo_shards: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(demo_shards, tmp_path / "shards"))


def test_shards_open_by_folder_or_index_and_know_their_facts(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    assert len(shards) == len(Shards.open(str(demo_shards / INDEX)))
    assert len(shards.classes) == 8
    assert not shards.index.may_flip
    for number, sample in enumerate(shards):
        view = shards.view(number)
        assert view.key == sample.facts.key
        assert view.frames == sample.facts.phases[0].frames
        assert (sample.facts.height, sample.facts.width) == tuple(shards.size_N2[number])
        assert shards.label_N[number] == sample.facts.label
        assert shards.classes[shards.label_N[number]] == sample.facts.class_name


def test_a_sample_prints_as_its_key_and_size(demo_shards: Path) -> None:
    sample = Shards.open(str(demo_shards)).sample(0)
    assert repr(sample) == f"Sample({sample.facts.key}, {len(sample.data)} bytes)"


def test_shards_print_as_one_line(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    videos = len({source_key(shards.key(number)) for number in range(len(shards))})
    frames = sum(shards.view(number).frames for number in range(len(shards)))
    assert repr(shards) == (
        f"Shards({demo_shards}: {videos} videos, {len(shards)} samples, {frames} frames, 8 classes)"
    )


def test_only_the_requested_frames_are_decoded_and_they_equal_those_of_a_full_decode(demo_shards: Path) -> None:
    sample = Shards.open(str(demo_shards)).sample(0)
    frames = sample.facts.phases[0].frames
    everything = decode_all(sample.data, frames, sample.facts.key)
    for numbers in ([0], [frames - 1], [3, 7, 11], list(range(frames)), [15, 16, 17][: frames - 15]):
        for frame in decode_frames(sample.data, numbers, sample.facts.key):
            assert np.array_equal(frame.y, everything.y_THW[frame.number])
            assert np.array_equal(frame.u, everything.u_THW[frame.number])
            assert np.array_equal(frame.v, everything.v_THW[frame.number])


def test_a_missing_frame_and_damaged_bytes_are_a_sample_error(demo_shards: Path) -> None:
    sample = Shards.open(str(demo_shards)).sample(0)
    frames = sample.facts.phases[0].frames
    with pytest.raises(SampleError, match=rf"frame {frames} does not decode \(1 of 2 did\)"):
        list(decode_frames(sample.data, [0, frames], "key"))
    for data in (b"", sample.data[:100], os.urandom(2000)):
        with pytest.raises(SampleError) as caught:
            list(decode_frames(data, [0], "key"))
        assert "\n" not in str(caught.value)


def test_fetched_bytes_are_verified(damaged: Path) -> None:
    shards = Shards.open(str(damaged))
    fetcher = Fetcher(shards)
    assert fetcher.fetch(0) == shards.sample(0).data
    member = shards.member_range(0)
    with (damaged / tar_name(0)).open("r+b") as file:
        file.seek(member.offset + member.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(SampleError, match=shards.key(0)):
        fetcher.fetch(0)
    with pytest.raises(SampleError, match="checksum"):
        shards.sample(0)
    fetcher.close()


def test_a_missing_shard_is_a_data_error_that_names_it(damaged: Path) -> None:
    shards = Shards.open(str(damaged))
    (damaged / tar_name(0)).unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        Fetcher(shards).fetch(0)


def test_a_data_set_that_is_missing_unfinished_or_newer_is_refused(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Shards.open(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no shards") as caught:
        Shards.open(str(tmp_path / "empty"))
    assert caught.value.exit_status == 2
    index = msgspec.json.decode((damaged / INDEX).read_bytes())
    (damaged / INDEX).write_bytes(msgspec.json.encode({**index, "version": 2}))
    with pytest.raises(DataError, match="format version 2.*Update"):
        Shards.open(str(damaged))
    (damaged / INDEX).unlink()
    with pytest.raises(DataError, match="not finished"):
        Shards.open(str(damaged))


def test_a_sample_table_of_another_build_is_refused(damaged: Path) -> None:
    data = bytearray((damaged / SAMPLES).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / SAMPLES).write_bytes(data)
    with pytest.raises(DataError, match="checksum"):
        Shards.open(str(damaged))


def test_the_index_is_a_wids_index_too(demo_shards: Path) -> None:
    index = msgspec.json.decode((demo_shards / INDEX).read_bytes())
    assert index["__kind__"] == "wids-shard-index-v1"
    assert all({"url", "nsamples"} <= set(shard) for shard in index["shardlist"])
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == index["samples"]
    assert msgspec.json.decode((demo_shards / INDEX).read_bytes(), type=Index).samples == index["samples"]


class _FirstFour:
    def __call__(self, sample: SampleView, rng: Rng) -> ClipFrames:
        return ClipFrames((0, 1, 2, 3), np.arange(4)[None])


def _decoder(shards: Shards, buffers: SharedBuffers) -> Decoder:
    return Decoder([DataPart(shards.url, shards.digest, 0, _FirstFour())], buffers)


def test_planes_fill_their_position_and_padding_is_zero(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    height, width = (int(n) // 2 * 2 + 8 for n in shards.size_N2.max(axis=0))
    buffers = SharedBuffers(2, BufferLayout(3, 4, height, width))
    buffers.flat(1)[:] = 255  # an earlier batch
    chunk = _decoder(shards, buffers).fill(1, [ClipRequest(2, 5, 0, 0), ClipRequest(0, 1, 0, 0)])
    planes = buffers.planes(1)
    assert [clip.position for clip in chunk.clips] == [2, 0]
    for clip in chunk.clips:
        expected = decode_all(shards.sample(clip.sample).data, 4, "k")
        h, w, position = clip.height, clip.width, clip.position
        assert np.array_equal(planes.y_BFHW[position, :, :h, :w], expected.y_THW[:, :h, :w])
        assert np.array_equal(planes.v_BFHW[position, :, : h // 2, : w // 2], expected.v_THW[:, : h // 2, : w // 2])
        assert not planes.y_BFHW[position, :, h:].any()
        assert not planes.y_BFHW[position, :, :, w:].any()
    assert (planes.y_BFHW[1] == 255).all()  # not requested
    buffers.close()


def test_a_bad_sample_is_reported_and_its_frames_are_black(damaged: Path) -> None:
    shards = Shards.open(str(damaged))
    member = shards.member_range(2)
    with (damaged / tar_name(0)).open("r+b") as file:
        file.seek(member.offset)
        file.write(bytes(member.size))
    buffers = SharedBuffers(1, BufferLayout(1, 4, 64, 64))
    buffers.flat(0)[:] = 255
    (clip,) = _decoder(shards, buffers).fill(0, [ClipRequest(0, 2, 0, 0)]).clips
    assert clip.error is not None
    assert clip.error.key == shards.key(2)
    assert not buffers.flat(0).any()
    assert str(pickle.loads(pickle.dumps(clip)).error) == str(clip.error)
    buffers.close()


def test_a_stream_from_python_has_the_batches_of_a_training(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    batches = list(shards.stream(_FirstFour(), batch=8, seed=3, epoch=1))
    order = epoch_batches(shards.shard_sizes, seed=3, epoch=1, batch=8)
    assert [[clip.view.number for clip in batch] for batch in batches] == order.tolist()
    clip = batches[0][0]
    assert clip.planes.y_THW.shape == (4, *shards.size_N2[clip.view.number])
    assert clip.label == shards.label_N[clip.view.number]
    (later,) = list(shards.stream(_FirstFour(), batch=8, seed=3, epoch=1, start=len(order) - 1))
    assert np.array_equal(later[0].planes.v_THW, batches[-1][0].planes.v_THW)


def test_a_sample_has_the_path_of_its_own_source_if_others_failed(demo_shards: Path) -> None:
    """The plan lists failed sources too, so the number of a sample's source is no row of it."""
    shards = Shards.open(str(demo_shards))
    assert shards.index.failures
    paths = shards.source_paths(range(len(shards)))
    assert [key_of((path or "").encode()) for path in paths] == [
        source_key(shards.key(number)) for number in range(len(shards))
    ]
    assert source_key(key_of(b"a/b.mp4", 3)) == source_key(key_of(b"a/b.mp4", 12345)) == key_of(b"a/b.mp4")
