"""The embedded Fashion-MNIST and the selection."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from sc_jax import data, files
from sc_jax.data import build_fashion_mnist, fashion_mnist, idx
from sc_jax.data.prepare import DEBIAN_FOLDER
from sc_jax.files import InputError

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
        assert split.inputs.shape == (len(split), 28, 28)
        assert (split.inputs.dtype, split.label.dtype, split.example_id.dtype) == (np.uint8, np.int32, np.int64)


def test_test_split_is_the_official_test_set_in_its_order(dataset):
    test = dataset.splits["test"]
    for name, array in {
        "t10k-images-idx3-ubyte": test.inputs,
        "t10k-labels-idx1-ubyte": test.label.astype(np.uint8),
    }.items():
        content = idx.idx_bytes(array)
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
    mean = np.stack([train.inputs[train.label == k].mean(0).ravel() for k in range(10)])
    image = test.inputs.reshape(len(test), -1).astype(float)
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
