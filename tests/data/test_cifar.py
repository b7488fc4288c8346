"""CIFAR from made-up files in the binary version's format, from TFDS, and from the JPEG copies where they are."""

import dataclasses
import gzip
import hashlib
import io
import os
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sc_jax import data
from sc_jax.data import cifar, sources
from sc_jax.files import InputError

VARIANTS = [cifar.CIFAR10, cifar.CIFAR100]
EXTRA = os.environ.get("SC_JAX_EXTRA_DATA")


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def binary(variant, per_file=30):
    """Content of the files as the home page describes them, and the images and labels in it."""
    content, parts = {}, {}
    for split, names in variant.parts.items():
        found = []
        for seed, name in enumerate(names):
            image = images(per_file, seed)
            label = (np.arange(per_file) % len(variant.class_names)).astype(np.uint8)
            records = b""
            for i in range(per_file):
                # <superclass, of CIFAR-100> <class> <1024 red> <1024 green> <1024 blue>, each channel row by row
                superclass = bytes([label[i] // 5]) if variant is cifar.CIFAR100 else b""
                records += superclass + bytes([label[i]]) + b"".join(image[i, :, :, c].tobytes() for c in range(3))
            content[name] = records
            found.append((image, label))
        parts[split] = tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return content, parts


def write_folder(folder, content):
    folder.mkdir(parents=True)
    for name, records in content.items():
        (folder / name).write_bytes(records)


def write_archive(variant, path, content):
    with tarfile.open(path, "w:gz") as archive:
        for name, records in content.items():
            member = tarfile.TarInfo(f"{variant.folder}/{name}")
            member.size = len(records)
            archive.addfile(member, io.BytesIO(records))


def published(variant, content):
    """The variant whose official files have this content."""
    digests = {
        split: {name: hashlib.sha1(content[name]).hexdigest() for name in names}
        for split, names in variant.parts.items()
    }
    return dataclasses.replace(variant, parts=digests)


@pytest.fixture
def short(monkeypatch):
    """The official splits of CIFAR-100 have 30 images each."""
    monkeypatch.setattr(cifar, "SIZES", {"train": 30, "test": 30})


def assert_same(parts, expected):
    for split in ("train", "test"):
        for found, array in zip(parts[split], expected[split], strict=True):
            np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_folder_and_archive_are_read_as_the_format_says(variant, tmp_path):
    content, parts = binary(variant)
    write_folder(tmp_path / "here" / variant.folder, content)
    for place in (tmp_path / "here", tmp_path / "here" / variant.folder):
        assert_same(cifar.unpacked(variant, cifar.read_binary(variant, place)), parts)
    archive = tmp_path / variant.archive
    write_archive(variant, archive, content)
    with pytest.raises(InputError, match=r"SHA-256 .* the published archive has .*get the binary version"):
        cifar.read_binary(variant, archive)
    known = dataclasses.replace(variant, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    for place in (archive, tmp_path):
        assert_same(cifar.unpacked(variant, cifar.read_binary(known, place)), parts)


def test_an_archive_is_not_opened_before_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(tarfile, "open", lambda *arguments: pytest.fail("opened"))
    (tmp_path / cifar.CIFAR10.archive).write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(
        InputError, match=r"cifar-10-binary\.tar\.gz: SHA-256 .* the published archive has c4a38c50a1bc"
    ):
        cifar.prepare_cifar10(tmp_path, tmp_path / "to")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_split_of_all_images(variant, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "_SIDE", 2)  # 32 x 32 pixels would only take time
    records = {}
    for split, size in cifar.SIZES.items():
        rows = np.zeros((size, variant.width), np.uint8)
        rows[:, variant.label_bytes - 1] = np.random.default_rng(size).permutation(size) % len(variant.class_names)
        rows[:, -4:] = np.arange(size, dtype="<u4").view(np.uint8).reshape(-1, 4)  # the blue of image i is i
        records[split] = rows
    content = {
        name: part.tobytes()
        for split, names in variant.parts.items()
        for name, part in zip(names, np.split(records[split], len(names)), strict=True)
    }
    write_folder(tmp_path / "in", content)
    assert cifar._prepare(published(variant, content), tmp_path / "in", tmp_path) == tmp_path / f"{variant.name}.npz"
    dataset = data.load(variant.name, tmp_path)
    assert dataset.class_names == variant.class_names
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    assert sizes == {"train": 45_000, "validation": 5_000, "test": 10_000}
    expected = np.sort(sources.hash_order(variant.name, 50_000)[:5_000])
    np.testing.assert_array_equal(dataset.splits["validation"].example_id, expected)
    for name, split in dataset.splits.items():
        index = np.ascontiguousarray(split.inputs[..., 2]).reshape(-1).view("<u4")
        np.testing.assert_array_equal(split.example_id, index + (50_000 if name == "test" else 0))
        label = records["test" if name == "test" else "train"][:, variant.label_bytes - 1]
        np.testing.assert_array_equal(split.label, label[index])


def test_official_files():
    for variant in VARIANTS:
        digests = [digest for names in variant.parts.values() for digest in names.values()]
        assert len(set(digests)) == len(digests)
        assert {len(digest) for digest in digests} == {40}
        assert sum(variant.records_of_a_file("train") for _ in variant.parts["train"]) == 50_000
    # "each with 10000 images"; CIFAR-100 has one file of each
    assert [cifar.CIFAR10.records_of_a_file(split) for split in cifar.SIZES] == [10_000, 10_000]
    assert [cifar.CIFAR100.records_of_a_file(split) for split in cifar.SIZES] == [50_000, 10_000]
    # <label> and 3072 pixels; <superclass> <class> and 3072 pixels
    assert [variant.width for variant in VARIANTS] == [3073, 3074]


@pytest.mark.parametrize("place", ["pixel", "label", "order"])
@pytest.mark.usefixtures("short")
def test_one_other_byte_is_refused_and_what_was_prepared_stays(place, tmp_path):
    """Though the files have their lengths, and the classes come as often as they should."""
    content, _ = binary(cifar.CIFAR100)
    variant = published(cifar.CIFAR100, content)
    write_folder(tmp_path / "in", content)
    path = tmp_path / "in" / "test.bin"
    rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(30, 3074).copy()
    if place == "pixel":
        rows[7, 2000] ^= 1
    elif place == "label":
        rows[[3, 4], 1] = rows[[4, 3], 1]
    else:
        rows = rows[::-1]
    (tmp_path / "cifar100.npz").write_bytes(b"prepared before")
    cifar.verified(variant, cifar.read_binary(variant, tmp_path / "in"), "x")
    path.write_bytes(rows.tobytes())
    with pytest.raises(InputError, match=r"in: test\.bin is not the official one: SHA-1 .*get the binary version"):
        cifar._prepare(variant, tmp_path / "in", tmp_path)
    assert (tmp_path / "cifar100.npz").read_bytes() == b"prepared before"


def test_class_names():
    for variant, k in zip(VARIANTS, (10, 100), strict=True):
        assert len(set(variant.class_names)) == k
        assert list(variant.class_names) == sorted(variant.class_names)


def test_less_than_all_images_are_refused(tmp_path):
    write_folder(tmp_path / "in", binary(cifar.CIFAR10)[0])
    with pytest.raises(InputError, match=r"in: 150 images of train, not 50000; get the binary version"):
        cifar.prepare_cifar10(tmp_path / "in", tmp_path / "to")
    cifar.write_small_cifar10(tmp_path)
    with pytest.raises(InputError, match=r"tfds: 240 images of train, not 50000"):
        cifar.prepare_cifar10(tmp_path / "tfds", tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_the_python_version_is_refused(tmp_path):
    for name in ("data_batch_1", "batches.meta"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"Python version, which is pickled .*get the binary version, cifar-10-binary"):
        cifar.prepare_cifar10(tmp_path, tmp_path)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match=r"SHA-256 .*get the binary version, cifar-100-binary"):
        cifar.prepare_cifar100(tmp_path / "cifar-100-python.tar.gz", tmp_path)


@pytest.mark.usefixtures("short")
def test_files_of_another_length_are_refused(tmp_path):
    content, _ = binary(cifar.CIFAR100)
    write_folder(tmp_path / "in", content | {"test.bin": content["test.bin"][:-1]})
    with pytest.raises(InputError, match=r"test\.bin: 92219 bytes, not records of 3074"):
        cifar.prepare_cifar100(tmp_path / "in", tmp_path)
    (tmp_path / "in" / "test.bin").write_bytes(content["test.bin"] + b"x")
    with pytest.raises(InputError, match=r"test\.bin: more than 92220 bytes; get the binary version"):
        cifar.prepare_cifar100(tmp_path / "in", tmp_path)
    (tmp_path / "in" / "train.bin").unlink()
    with pytest.raises(InputError, match=r"train\.bin: No such file or directory; get the binary version"):
        cifar.prepare_cifar100(tmp_path / "in", tmp_path)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_tfds_gives_the_official_order(variant, tmp_path):
    getattr(cifar, f"write_small_{variant.name}")(tmp_path)
    k = len(variant.class_names)
    builder = sources.tfds_builder(variant.name, tmp_path / "tfds")
    stored = [record["id"] for record in builder.as_data_source(split="train")]
    assert stored != sorted(stored)  # TFDS shuffles
    records = cifar.read_tfds(variant, builder)
    for image, label in cifar.unpacked(variant, records).values():
        np.testing.assert_array_equal(label, np.arange(len(label)) % k)
        np.testing.assert_array_equal(image, cifar._made_up(len(label), k)[0])
    if variant is cifar.CIFAR100:
        np.testing.assert_array_equal(records["train"][:, 0], np.arange(len(records["train"])) % k // 5)
    assert tuple(builder.info.features["label"].names) == variant.class_names


def test_an_id_of_tfds_that_names_no_row_is_refused():
    builder = types.SimpleNamespace(
        data_path="tfds", as_data_source=lambda split: [{"id": f"{split}_²".encode(), "label": 0, "image": None}]
    )
    with pytest.raises(InputError, match="tfds: id 'train_²' in train; build it again"):
        cifar.read_tfds(cifar.CIFAR10, builder)


def test_small_sets_can_be_learnt(tmp_path):
    for name in ("cifar10", "cifar10_jpeg"):
        getattr(cifar, f"write_small_{name}")(tmp_path)
        train, test = (data.load(name, tmp_path).splits[split] for split in ("train", "test"))
        mean = np.stack([train.inputs[train.label == k].mean(0).ravel() for k in range(10)])
        image = test.inputs.reshape(len(test), -1).astype(float)
        assert np.mean(np.argmin((mean**2).sum(1) - 2 * image @ mean.T, axis=1) == test.label) == 1


@pytest.mark.parametrize(
    ("name", "field", "value", "reason"),
    [
        ("cifar10_test_images", "x", np.zeros((60, 32, 32), np.uint8), r"x is uint8 \[60, 32, 32\]"),
        ("cifar10_test_images", "x", np.zeros((60, 32, 32, 3)), r"x is float64 \[60, 32, 32, 3\]"),
        ("cifar10_test_images", "y", np.zeros(60), r"y is float64 \[60\], not integers \[n\] from 0 to 9"),
        ("cifar10_test_images", "y", np.full(60, 10), r"y is int64 \[60\], not integers \[n\] from 0 to 9"),
        ("cifar10_train_jpeg", "y", np.full(240, -1), r"y is int64 \[240\], not integers \[n\] from 0 to 9"),
        ("cifar10_train_jpeg", "offsets", np.zeros(7, np.int64), "offsets are not n . 1 integers"),
        ("cifar10_train_jpeg", "offsets", np.zeros(241, np.int64), "image 0 is no image"),
        ("cifar10_train_jpeg", "offsets", np.arange(241)[::-1], "offsets do not rise"),
        ("cifar10_train_jpeg", "offsets", np.arange(241) * 10**9, "offsets do not rise"),
        ("cifar10_train_jpeg", "blob", np.zeros(9), r"blob is float64 \[9\]"),
        ("cifar10_train_jpeg", "blob", None, "no array 'blob'"),
    ],
)
def test_jpeg_files_that_are_not_as_they_should_be(name, field, value, reason, tmp_path):
    cifar.write_small_cifar10_jpeg(tmp_path)
    path = tmp_path / "originals" / f"{name}.npz"
    arrays = dict(np.load(path)) | {field: value}
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=reason):
        cifar.prepare_cifar10_jpeg(tmp_path / "originals", tmp_path / "to")


def test_a_jpeg_of_another_size_is_refused(tmp_path):
    cifar.write_small_cifar10_jpeg(tmp_path)
    path = tmp_path / "originals" / "cifar10_train_jpeg.npz"
    arrays = dict(np.load(path))
    small = io.BytesIO()
    Image.new("RGB", (1, 1)).save(small, "JPEG")  # would spread over all 32 x 32 pixels
    added = np.concatenate([np.frombuffer(small.getvalue(), np.uint8), arrays["blob"]])
    offsets = np.concatenate([[0], arrays["offsets"][1:] + len(small.getvalue())])
    offsets[1] = len(small.getvalue())
    np.savez(path, blob=added, offsets=offsets, y=arrays["y"])
    with pytest.raises(InputError, match=r"cifar10_train_jpeg\.npz: image 0 is of 1 x 1 pixels, not 32 x 32"):
        cifar.prepare_cifar10_jpeg(tmp_path / "originals", tmp_path / "to")


def test_halves_of_the_test_images_are_disjoint_and_all_of_them(tmp_path):
    cifar.write_small_cifar10_jpeg(tmp_path)
    whole, halves = (data.load(name, tmp_path).splits for name in ("cifar10_jpeg", "cifar10_jpeg_halves"))
    assert {name: len(split) for name, split in halves.items()} == {"train": 240, "validation": 30, "test": 30}
    pairs = {"train": ("train", "validation"), "test": ("test",)}
    for ours, theirs in ((("validation", "test"), pairs["test"]), (("train",), pairs["train"])):
        examples = [
            {
                int(i): (int(y), x.tobytes())
                for s in names
                for i, y, x in zip(of[s].example_id, of[s].label, of[s].inputs, strict=True)
            }
            for names, of in ((ours, halves), (theirs, whole))
        ]
        assert examples[0] == examples[1]
    assert not (halves["validation"].example_id % 2).any()
    assert (halves["test"].example_id % 2).all()


@pytest.mark.skipif(not EXTRA, reason="SC_JAX_EXTRA_DATA is not set: the JPEG copies of CIFAR-10 are not here")
def test_jpeg_copies(tmp_path):
    folder = Path(EXTRA, "images")
    cifar.prepare_cifar10_jpeg(folder, tmp_path)
    splits = data.load("cifar10_jpeg", tmp_path).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 45_000,
        "validation": 5_000,
        "test": 10_000,
    }
    with np.load(folder / "cifar10_test_images.npz") as test:
        np.testing.assert_array_equal(splits["test"].inputs, test["x"])
        np.testing.assert_array_equal(splits["test"].label, test["y"])
    # Published channel means of the 50,000 originals (they stand in many recipes); JPEG moves them by less than a grey level.
    mean = np.concatenate([splits[name].inputs for name in ("train", "validation")]).mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=1 / 255)


def test_a_large_jpeg_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    cifar.write_small_cifar10_jpeg(tmp_path)
    path = tmp_path / "originals" / "cifar10_train_jpeg.npz"
    large = io.BytesIO()
    Image.new("RGB", (33, 32)).save(large, "JPEG")
    arrays = dict(np.load(path)) | {"blob": np.frombuffer(large.getvalue(), np.uint8)}
    arrays["offsets"] = np.minimum(np.arange(len(arrays["offsets"])), 1) * len(large.getvalue())
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"image 0 is an image of 32 x 33 pixels, more than the 1,024"):
        cifar.prepare_cifar10_jpeg(tmp_path / "originals", tmp_path / "to")
