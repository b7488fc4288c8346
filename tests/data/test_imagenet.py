"""ImageNet from a small set of real JPEG files, in torchvision's folders and in TFDS's array_record."""

import functools
import hashlib
import pickle
import shutil

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import imagenet, images, prepare, streams
from sc_jax.files import InputError


@pytest.fixture(scope="module", params=["folder", "tfds"])
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    assert imagenet.write_small(folder, request.param) == folder / "imagenet.npz"
    return folder


@pytest.fixture(scope="module")
def in_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in_folders")
    imagenet.write_small(folder)
    return folder


def ids(dataset, *splits):
    return np.concatenate([dataset.splits[split].example_id for split in splits])


def test_splits_are_parts_of_the_official_ones(small):
    dataset = data.load("imagenet", small)
    assert (dataset.name, dataset.num_classes, dataset.ignore_label) == ("imagenet", 1000, None)
    assert list(dataset.class_names) == sorted(dataset.class_names)
    np.testing.assert_array_equal(ids(dataset, "train_full"), np.arange(96))
    np.testing.assert_array_equal(ids(dataset, "test"), 2_000_000 + np.arange(32))
    np.testing.assert_array_equal(np.sort(ids(dataset, "train", "validation")), np.arange(96))
    np.testing.assert_array_equal(np.sort(ids(dataset, "test_tune", "test_report")), 2_000_000 + np.arange(32))
    assert {name: len(source) for name, source in dataset.splits.items()} == {
        "train": 72,
        "validation": 24,
        "train_full": 96,
        "test": 32,
        "test_tune": 8,
        "test_report": 24,
    }


def test_the_validation_split_comes_first_by_hash_of_the_file_name(small):
    dataset = data.load("imagenet", small)

    def digests(split):
        return [hashlib.sha256(b"imagenet/" + name).digest() for name in dataset.splits[split].file_name.tolist()]

    assert max(digests("validation")) < min(digests("train"))
    assert max(digests("test_tune")) < min(digests("test_report"))


def test_as_many_are_drawn_as_asked_for():
    names = [b"%d" % index for index in range(50)]
    chosen = imagenet.drawn(names, 20)
    assert chosen.sum() == 20
    # A choice by name: it does not depend on the order in which they are listed, and a larger one holds a smaller one.
    np.testing.assert_array_equal(imagenet.drawn(names[::-1], 20), chosen[::-1])
    assert np.all(chosen <= imagenet.drawn(names, 30))


def test_both_layouts_are_the_same_data_set(small, in_folders):
    one, other = data.load("imagenet", small), data.load("imagenet", in_folders)
    assert one.fingerprint == other.fingerprint
    for name, source in one.splits.items():
        assert len(source) == len(other.splits[name])
        for mine, theirs in zip(source, other.splits[name], strict=True):
            assert mine == theirs


def test_images_belong_to_the_class_of_their_name(small):
    dataset = data.load("imagenet", small)
    source = dataset.splits["train_full"]
    for index in range(len(source)):
        record = source[index]
        assert record["image"][:2] == b"\xff\xd8"
        wnid = dataset.class_names[record["label"]]
        assert source.file_name[index].decode().startswith(wnid)
        assert wnid in source.describe(index)
        assert images.decode(record["image"]).ndim == 3


def test_streams_through_crops_and_pickles(small):
    dataset = data.load("imagenet", small)
    crop = functools.partial(images.train_record, size=8)
    first, again = (
        list(streams.batches(pickle.loads(pickle.dumps(source)), crop, batch_size=24, seed=0, total_steps=3))
        for source in [dataset.splits["train"]] * 2
    )
    np.testing.assert_array_equal(
        np.sort(np.concatenate([batch["example_id"] for batch in first])), dataset.splits["train"].example_id
    )
    for one, other in zip(first, again, strict=True):
        assert one["image"].shape == (24, 8, 8, 3)
        np.testing.assert_array_equal(one["image"], other["image"])
    tests = streams.evaluation_batches(
        dataset.splits["test"], functools.partial(images.eval_record, size=8), batch_size=20
    )
    seen = np.concatenate([batch["example_id"] for batch in tests])
    np.testing.assert_array_equal(seen[:32], dataset.splits["test"].example_id)
    np.testing.assert_array_equal(seen[32:], -1)


def test_the_folder_can_be_moved_with_its_images(in_folders, tmp_path):
    moved = shutil.copytree(in_folders, tmp_path / "moved")
    source = data.load("imagenet", moved).splits["test"]
    assert source.describe(0).startswith(str(moved))
    assert source[0] == data.load("imagenet", in_folders).splits["test"][0]


def test_a_file_that_is_damaged_or_gone_is_named(in_folders, tmp_path):
    moved = shutil.copytree(in_folders, tmp_path / "moved")
    source = data.load("imagenet", moved).splits["test"]
    for harm in (lambda path: path.write_bytes(path.read_bytes()[:200]), lambda path: path.unlink()):
        path = moved / source.describe(3)
        harm(path)
        with pytest.raises(InputError) as error:
            list(streams.evaluation_batches(source, functools.partial(images.eval_record, size=8), batch_size=4))
        assert str(error.value).startswith(f"{path}: ")


def test_less_than_all_of_imagenet_is_refused_but_as_a_small_set(in_folders, tmp_path, capsys):
    originals = in_folders / "imagenet"
    assert prepare.main(["imagenet", "--from", str(originals), "--to", str(tmp_path)]) == 2
    assert "96 images of train, not 1281167" in capsys.readouterr().err
    shutil.copytree(originals / "train" / "n01440764", tmp_path / "few" / "train" / "n01440764")
    shutil.copytree(originals / "val" / "n01440764", tmp_path / "few" / "val" / "n01440764")
    with pytest.raises(InputError, match="few: 1 classes, not 1000"):
        imagenet.prepare(tmp_path / "few", tmp_path)
    imagenet.prepare(tmp_path / "few", tmp_path, small=True)
    assert data.load("imagenet", tmp_path).num_classes == 1

    (tmp_path / "few" / "val" / "n01440764").rename(tmp_path / "few" / "val" / "n09999999")
    with pytest.raises(InputError, match=r"val ILSVRC2012_val_\d+.JPEG is of no class of train"):
        imagenet.prepare(tmp_path / "few", tmp_path, small=True)
    shutil.copytree(tmp_path / "few" / "train" / "n01440764", tmp_path / "few" / "train" / "n01440765")
    with pytest.raises(InputError, match="two images of train have the same file name"):
        imagenet.prepare(tmp_path / "few", tmp_path, small=True)


def test_a_folder_or_a_link_in_the_directory_is_found(in_folders, tmp_path):
    (tmp_path / "imagenet").symlink_to(in_folders / "imagenet")
    imagenet.prepare(None, tmp_path, small=True)
    assert data.load("imagenet", tmp_path).fingerprint == data.load("imagenet", in_folders).fingerprint


def test_without_images_it_says_what_to_get(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/train: cannot be read .*n01440764/\*\.JPEG.*image-net.org"):
        imagenet.prepare(tmp_path / "empty", tmp_path)
    with pytest.raises(InputError, match=r"not prepared; get ILSVRC2012_img_train.tar .*run: .*prepare imagenet"):
        data.load("imagenet", tmp_path)
