"""Idx files, against the format's definition, and what TFDS makes of them."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from sc_jax.data import idx, sources
from sc_jax.data.small import made_up_images
from sc_jax.files import InputError

# Without a time: it is in the names of tests, which have to be the same in every process.
ZIPPED = gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x02ab", mtime=0)

idx_arrays = arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))


@given(idx_arrays, st.booleans())
def test_idx_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = idx.idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = idx.read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array, strict=True)


def test_idx_is_read_as_the_format_says(tmp_path):
    (tmp_path / "file").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 20, 21, 22]))
    np.testing.assert_array_equal(idx.read_idx(tmp_path / "file"), [[10, 11, 12], [20, 21, 22]])


@given(idx_arrays, st.data())
def test_idx_of_wrong_length_is_refused(tmp_path_factory, array, draw):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = idx.idx_bytes(array)
    if draw.draw(st.booleans()):
        content = content[: draw.draw(st.integers(0, len(content) - 1))]
    else:
        content += draw.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        idx.read_idx(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x0d\x01" + struct.pack(">If", 1, 0.5), "starts with 00000d01"),
        (b"\x00\x00\x08\x00\x05", "starts with 00000800"),
        (b"\x89PNG\r\n\x1a\n", "starts with 89504e47"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", "2 bytes of data, but the header says 3 = 3"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x01ab", "more bytes of data, but the header says 1 = 1"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 4) + b"1234", "at most 20 bytes of data, but the header says"),
        (struct.pack(">4B65I", 0, 0, 8, 65, *65 * [1]) + b"1", "65 dimensions"),
        (ZIPPED[:-9], "cannot be read"),
        (ZIPPED + b"more", "cannot be read"),
    ],
)
def test_what_is_not_idx_is_refused(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=f"file: {reason}"):
        idx.read_idx(tmp_path / "file")


MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("shape", "content", "reason"),
    [
        # 64 MiB of zeros, where the header promises ten bytes.
        ((10,), bytes(64 * MEBIBYTE), "more bytes of data, but the header says 10 = 10"),
        # So much is promised as no file of this size can hold.
        ((2**31, 2**31, 4), bytes(MEBIBYTE), r"at most \d+ bytes of data, but the header says 2147483648 x "),
        ((2**30,), bytes(MEBIBYTE), r"at most \d+ bytes of data, but the header says 1073741824 = "),
    ],
)
def test_no_more_is_decompressed_than_the_header_says(shape, content, reason, tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + content))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"bomb: {reason}"):
            idx.read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * MEBIBYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("train-images-idx3-ubyte", (60_001, 28, 28)),
        ("train-images-idx3-ubyte", (3, 28, 27)),
        ("train-images-idx3-ubyte", (3, 28 * 28)),
        ("t10k-labels-idx1-ubyte", (60_001,)),
        ("t10k-labels-idx1-ubyte", (3, 1)),
    ],
)
def test_arrays_of_other_shapes_are_refused(name, shape, tmp_path):
    for other in idx.NAMES:
        (tmp_path / other).write_bytes(idx.idx_bytes(np.zeros((3, 28, 28) if "images" in other else 3, np.uint8)))
    idx.read_folder(tmp_path)
    (tmp_path / name).write_bytes(idx.idx_bytes(np.zeros(shape, np.uint8)))
    with pytest.raises(InputError, match=rf"{name}: of shape {' x '.join(map(str, shape))}, not 60000.* or fewer; get"):
        idx.read_folder(tmp_path)


def test_idx_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        idx.read_idx(Path(tmp_path, "nothing"))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tfds_gives_what_the_idx_files_hold(tmp_path, name):
    official, splits = {}, {}
    for part, split, size in (("train", "train", 40), ("t10k", "test", 20)):
        label = (np.arange(size) % 10).astype(np.uint8)
        image = made_up_images(label, (28, 28), seed=size)
        official |= {f"{part}-images-idx3-ubyte": image, f"{part}-labels-idx1-ubyte": label}
        # The keys are the official indices, as in TFDS's own builders.
        splits[split] = [(i, {"image": Image.fromarray(image[i]), "label": int(label[i])}) for i in range(size)]
    sources.write_tfds(name, tmp_path / "tfds", splits)
    for file, array in official.items():
        (tmp_path / file).write_bytes(idx.idx_bytes(array))
    from_tfds, from_files = idx.read_tfds(sources.tfds_builder(name, tmp_path / "tfds")), idx.read_folder(tmp_path)
    assert set(from_tfds) == set(from_files) == set(idx.NAMES)
    for file in idx.NAMES:
        np.testing.assert_array_equal(from_tfds[file], from_files[file], strict=True)
