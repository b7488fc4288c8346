"""Cityscapes from a small set of real PNG and JPEG files, in the official folders and in TFDS's array_record."""

import contextlib
import functools
import io
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from sc_jax import data
from sc_jax.data import cityscapes, images, prepare, streams
from sc_jax.files import InputError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    assert cityscapes.write_small(folder) == folder / "cityscapes.npz"
    return folder


def cities(source):
    return {str(scene).partition("_")[0] for scene in source.scene}


def label_ids(source, index):
    """The file of label ids, read without our code."""
    name = source.describe(index).replace("leftImg8bit/", "gtFine/").partition("_leftImg8bit.")[0]
    return np.asarray(Image.open(f"{name}_gtFine_labelIds.png"))


def test_splits_are_whole_cities(small):
    dataset = data.load("cityscapes", small)
    assert (dataset.num_classes, dataset.ignore_label) == (19, 255)
    splits = dataset.splits
    assert {name: cities(source) for name, source in splits.items()} == {
        "train": {"aachen", "bochum"},
        "validation": {"ulm", "zurich"},
        "train_full": {"aachen", "bochum", "ulm", "zurich"},
        "test": {"frankfurt", "munster"},
    }
    np.testing.assert_array_equal(splits["train_full"].example_id, np.arange(8))
    np.testing.assert_array_equal(
        np.concatenate([splits["train"].example_id, splits["validation"].example_id]), np.arange(8)
    )
    np.testing.assert_array_equal(splits["test"].example_id, 10_000 + np.arange(4))


def test_label_ids_become_the_19_classes(small):
    assert len(cityscapes.CLASSES) == 19
    source = data.load("cityscapes", small).splits["train_full"]
    numbers = list(cityscapes.CLASSES.values())
    for index in range(len(source)):
        record, ids = source[index], label_ids(source, index)
        expected = [[numbers.index(i) if i in numbers else 255 for i in row] for row in ids[::32, ::32].tolist()]
        np.testing.assert_array_equal(record["label"][::32, ::32], expected)
        assert record["label"].dtype == np.uint8
        # Every pixel that has a class has its number back.
        scored = record["label"] != 255
        np.testing.assert_array_equal(np.array(numbers)[record["label"][scored]], ids[scored])
        assert not np.isin(ids[~scored], numbers).any()
        assert 0 < (~scored).sum() < scored.sum()


def test_png_and_jpeg_are_read(small):
    source = data.load("cityscapes", small).splits["train_full"]
    kinds = {source[index]["image"][:2] for index in range(len(source))}
    assert kinds == {b"\x89P", b"\xff\xd8"}


def test_whole_images_are_evaluated_and_squares_trained_on(small):
    dataset = data.load("cityscapes", small)
    with contextlib.closing(
        streams.evaluation_batches(dataset.splits["test"], images.eval_pair_record, batch_size=3)
    ) as stream:
        tests = list(stream)
    assert [batch["example_id"].tolist() for batch in tests] == [[10_000, 10_001, 10_002], [10_003, -1, -1]]
    for batch in tests:
        assert batch["image"].shape == (3, 256, 512, 3)
        assert batch["label"].shape == (3, 256, 512)
    np.testing.assert_array_equal(tests[0]["label"][1], dataset.splits["test"][1]["label"])

    cut = functools.partial(images.train_pair_record, size=32)
    with contextlib.closing(
        streams.batches(pickle.loads(pickle.dumps(dataset.splits["train"])), cut, batch_size=2, seed=0, total_steps=2)
    ) as stream:
        squares = list(stream)
    assert sorted(np.concatenate([batch["example_id"] for batch in squares]).tolist()) == [0, 1, 2, 3]
    assert squares[0]["image"].shape == (2, 32, 32, 3)
    assert squares[0]["label"].shape == (2, 32, 32)


def test_tfds_gives_the_same_records_as_the_folders(tmp_path):
    """What TFDS's builder wrote is unpacked into the official folders, and both are read."""
    from_tfds, in_folders = tmp_path / "a", tmp_path / "b"
    cityscapes.write_small(from_tfds, "tfds")
    dataset = data.load("cityscapes", from_tfds)
    for split, part in (("train_full", "train"), ("test", "val")):
        source = pickle.loads(pickle.dumps(dataset.splits[split]))
        for index, position in enumerate(source.position):
            record = source.records[position]
            scene = record["image_id"].decode()
            assert source.describe(index).endswith(scene)
            city = scene.partition("_")[0]
            for kind, name, feature in (
                ("leftImg8bit", "leftImg8bit", "image_left"),
                ("gtFine", "gtFine_labelIds", "segmentation_label"),
            ):
                folder = in_folders / "cityscapes" / kind / part / city
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{scene}_{name}.png").write_bytes(record[feature])
    cityscapes.prepare(None, in_folders, small=True)
    other = data.load("cityscapes", in_folders)
    assert other.fingerprint == dataset.fingerprint
    for name, source in dataset.splits.items():
        for mine, theirs in zip(source, other.splits[name], strict=True):
            assert mine["image"] == theirs["image"]
            assert mine["example_id"] == theirs["example_id"]
            np.testing.assert_array_equal(mine["label"], theirs["label"])
    assert images.eval_pair_record(dataset.splits["test"][0])["image"].shape == (1024, 2048, 3)


def test_a_folder_called_cityscapes_is_not_yet_of_tfds(small, tmp_path, capsys):
    """What decides is `dataset_info.json`, wherever the official folders lie and whatever they are called."""
    shutil.copytree(small / "cityscapes", tmp_path / "pp" / "cityscapes")
    assert prepare.main(["cityscapes", "--from", str(tmp_path / "pp"), "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/pp/leftImg8bit/train: holds no <city>/*_leftImg8bit.png" in error
    assert "TFDS" not in error
    cityscapes.prepare(tmp_path / "pp" / "cityscapes", tmp_path, small=True)
    assert data.load("cityscapes", tmp_path).fingerprint == data.load("cityscapes", small).fingerprint


def test_a_directory_may_be_that_of_tfds(tmp_path):
    cityscapes.write_small(tmp_path, "tfds")
    (tmp_path / "tfds" / "cityscapes").rename(tmp_path / "cityscapes")
    (tmp_path / "cityscapes.npz").unlink()
    cityscapes.prepare(None, tmp_path, small=True)
    assert len(data.load("cityscapes", tmp_path).splits["test"]) == 2


def test_what_is_missing_or_wrong_is_named(small, tmp_path, capsys):
    originals = shutil.copytree(small / "cityscapes", tmp_path / "originals")
    assert prepare.main(["cityscapes", "--from", str(originals), "--to", str(tmp_path)]) == 2
    assert "8 images of train, not 2975" in capsys.readouterr().err
    cityscapes.prepare(originals, tmp_path, small=True)
    source = data.load("cityscapes", tmp_path).splits["test"]

    label = originals / "gtFine" / "val" / "frankfurt" / "frankfurt_000000_000019_gtFine_labelIds.png"
    colours = io.BytesIO()
    Image.new("RGB", (512, 256)).save(colours, "PNG")
    for content, message in ((colours.getvalue(), "a label map of mode RGB"), (b"", "no image")):
        label.write_bytes(content)
        with pytest.raises(InputError) as error:
            next(streams.evaluation_batches(source, images.eval_pair_record, batch_size=1))
        assert str(error.value).startswith(f"{source.describe(0)}: its label map is {message}")
    label.unlink()
    with pytest.raises(InputError, match=r"labelIds.png: not there, though .*_leftImg8bit.png is"):
        cityscapes.prepare(originals, tmp_path, small=True)

    image = originals / "leftImg8bit" / "train" / "aachen" / "aachen_000000_000019_leftImg8bit"
    shutil.copy(image.with_suffix(".png"), image.with_suffix(".jpg"))
    label.write_bytes(b"")
    with pytest.raises(InputError, match="two images of train are called aachen_000000_000019"):
        cityscapes.prepare(originals, tmp_path, small=True)


def test_without_images_it_says_what_to_get(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/leftImg8bit/train: .*leftImg8bit_trainvaltest.zip.*www.cityscapes"):
        cityscapes.prepare(tmp_path / "empty", tmp_path)
    with pytest.raises(InputError, match=r"not prepared; get leftImg8bit_trainvaltest.zip .*run: .*prepare cityscapes"):
        data.load("cityscapes", tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("train_scene", "../../x", "train_scene holds what is no name of a file"),
        ("train_scene", ".._x", "train_scene holds a scene of no city"),
        ("val_ending", ".txt", "val_ending is not one of _leftImg8bit.png"),
    ],
)
def test_a_list_that_leads_elsewhere_is_refused(field, value, reason, small, tmp_path):
    arrays = dict(np.load(small / "cityscapes.npz"))
    np.savez(tmp_path / "cityscapes.npz", **arrays | {field: np.full(len(arrays[field]), value)})
    with pytest.raises(InputError, match=rf"cityscapes.npz: not readable \({reason}"):
        data.load("cityscapes", tmp_path)
