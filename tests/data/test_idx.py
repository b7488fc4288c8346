"""Idx files, against the format's definition, and what TFDS makes of them."""

import gzip
import struct
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
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**31, 2**31, 4) + b"1234", "4 bytes of data"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x02ab")[:-9], "cannot be read"),
        (gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x02ab") + b"more", "cannot be read"),
    ],
)
def test_what_is_not_idx_is_refused(tmp_path, content, reason):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=f"file: {reason}"):
        idx.read_idx(tmp_path / "file")


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
