"""The embedded Fashion-MNIST, the selection, and the reader of idx files."""

import gzip
import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sc_jax import data, files
from sc_jax.data import build_fashion_mnist, fashion_mnist
from sc_jax.data.prepare import DEBIAN_FOLDER
from sc_jax.files import InputError

idx_arrays = arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
needs_originals = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason=f"the original files are not in {DEBIAN_FOLDER}"
)


@pytest.fixture(scope="module")
def dataset():
    return data.load("fashion_mnist")


def test_sizes_and_types(dataset):
    assert dataset.num_classes == len(dataset.class_names) == 10
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 12_000,
        "validation": 2_000,
        "test": 10_000,
    }
    for split in dataset.splits.values():
        assert split.image.shape == (len(split), 28, 28)
        assert (split.image.dtype, split.label.dtype, split.example_id.dtype) == (np.uint8, np.int32, np.int64)


def test_test_split_is_the_official_test_set_in_its_order(dataset):
    test = dataset.splits["test"]
    for name, array in {
        "t10k-images-idx3-ubyte": test.image,
        "t10k-labels-idx1-ubyte": test.label.astype(np.uint8),
    }.items():
        content = fashion_mnist.idx_bytes(array)
        assert hashlib.sha256(content).hexdigest() == fashion_mnist.OFFICIAL[name]
    np.testing.assert_array_equal(test.example_id, 60_000 + np.arange(10_000))


def test_split_is_by_the_stated_hash(dataset):
    order = sorted(range(60_000), key=lambda i: hashlib.sha256(f"fashion_mnist/{i}".encode()).hexdigest())
    np.testing.assert_array_equal(dataset.splits["validation"].example_id, sorted(order[:2_000]))
    np.testing.assert_array_equal(dataset.splits["train"].example_id, sorted(order[2_000:14_000]))


def test_every_class_is_there_in_its_share(dataset):
    for name, split in dataset.splits.items():
        share = np.bincount(split.label, minlength=10) / len(split)
        np.testing.assert_allclose(share, 0.1, atol=0 if name == "test" else 0.012)


def test_labels_belong_to_their_images(dataset):
    # The nearest class mean is right for two images of three; for mislabelled ones it would be for one of ten.
    train, test = dataset.splits["train"], dataset.splits["test"]
    mean = np.stack([train.image[train.label == k].mean(0).ravel() for k in range(10)])
    image = test.image.reshape(len(test), -1).astype(float)
    predicted = np.argmin((mean**2).sum(1) - 2 * image @ mean.T, axis=1)
    assert np.mean(predicted == test.label) > 0.65


def test_readme_states_the_file_as_it_is(dataset):
    readme = (fashion_mnist.SUBSET_FILE.parent / "README.md").read_text()
    content = fashion_mnist.SUBSET_FILE.read_bytes()
    assert len(content) <= 12_000_000
    for fact in (f"{len(content):,} bytes", hashlib.sha256(content).hexdigest(), dataset.fingerprint):
        assert fact in readme
    for name, digest in fashion_mnist.OFFICIAL.items():
        assert f"{digest}  {name}" in readme
    assert "MIT License" in readme
    assert "Zalando SE" in readme


def test_changed_data_is_refused(tmp_path, monkeypatch, dataset):
    changed = {name: array.copy() for name, array in dataset.arrays().items()}
    changed["train_image"][7, 3, 3] ^= 1
    files.write_npz(tmp_path / "changed.npz", changed)
    monkeypatch.setattr(fashion_mnist, "SUBSET_FILE", tmp_path / "changed.npz")
    with pytest.raises(InputError, match=r"changed\.npz: fingerprint .*reinstall sc_jax"):
        data.load("fashion_mnist")


def test_flipped_byte_in_the_file_is_refused(tmp_path, monkeypatch):
    content = bytearray(fashion_mnist.SUBSET_FILE.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    monkeypatch.setattr(fashion_mnist, "SUBSET_FILE", tmp_path / "flipped.npz")
    with pytest.raises(InputError, match=r"flipped\.npz.*reinstall sc_jax"):
        data.load("fashion_mnist")


def test_missing_array_is_refused(tmp_path, monkeypatch, dataset):
    kept = {name: array for name, array in dataset.arrays().items() if name != "test_label"}
    files.write_npz(tmp_path / "short.npz", kept)
    monkeypatch.setattr(fashion_mnist, "SUBSET_FILE", tmp_path / "short.npz")
    with pytest.raises(InputError, match=r"short\.npz.*'test_label'"):
        data.load("fashion_mnist")


@needs_originals
def test_build_gives_the_embedded_file(tmp_path, dataset, capsys):
    assert build_fashion_mnist.main(["--from", str(DEBIAN_FOLDER), "--to", str(tmp_path / "built.npz")]) == 0
    assert dataset.fingerprint in capsys.readouterr().out
    assert files.fingerprint(files.read_npz(tmp_path / "built.npz")) == dataset.fingerprint


def test_build_refuses_a_folder_without_the_files(tmp_path, capsys):
    assert build_fashion_mnist.main(["--from", str(tmp_path), "--to", str(tmp_path / "built.npz")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: neither train-images-idx3-ubyte nor")
    assert not (tmp_path / "built.npz").exists()


def test_importing_the_package_reads_no_data_set():
    code = "import sc_jax.data, sys; sys.exit(any(m in sys.modules for m in ('jax', 'tensorflow_datasets')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(idx_arrays, st.booleans())
def test_idx_round_trip(tmp_path_factory, array, compressed):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = fashion_mnist.idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compressed else content)
    read = fashion_mnist.read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array, strict=True)


def test_idx_is_read_as_the_format_says(tmp_path):
    (tmp_path / "file").write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 10, 11, 12, 20, 21, 22]))
    np.testing.assert_array_equal(fashion_mnist.read_idx(tmp_path / "file"), [[10, 11, 12], [20, 21, 22]])


@given(idx_arrays, st.data())
def test_idx_of_wrong_length_is_refused(tmp_path_factory, array, draw):
    path = tmp_path_factory.mktemp("idx") / "file"
    content = fashion_mnist.idx_bytes(array)
    if draw.draw(st.booleans()):
        content = content[: draw.draw(st.integers(0, len(content) - 1))]
    else:
        content += draw.draw(st.binary(min_size=1, max_size=9))
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        fashion_mnist.read_idx(path)


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
        fashion_mnist.read_idx(tmp_path / "file")


def test_idx_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        fashion_mnist.read_idx(Path(tmp_path, "nothing"))
