"""Where originals come from, the orders, and prepared files."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from sc_jax.data import Dataset, Split, sources
from sc_jax.files import InputError

ORIGIN = sources.Origin("cifar10", "some.tar.gz", "https://example.org/", "cifar10")


def tiny(n):
    return [
        (i, {"id": f"train_{i:05d}", "image": Image.new("RGB", (32, 32), (i, 0, 0)), "label": i % 10}) for i in range(n)
    ]


def test_tfds_order_is_the_order_tfds_writes_in(tmp_path):
    shuffle = pytest.importorskip("tensorflow_datasets.core.shuffle")
    for split in ("train", "test"):
        shuffler = shuffle.Shuffler(tmp_path, split)
        for index in range(300):
            shuffler.add(index, b"%d" % index)
        assert [int(value) for _, value in shuffler] == sources.tfds_order(split, 300)


def test_hash_order_is_by_the_stated_hash():
    order = sorted(range(50), key=lambda i: hashlib.sha256(f"name/{i}".encode()).hexdigest())
    assert sources.hash_order("name", 50).tolist() == order


def test_a_folder_is_read_by_the_reader_of_what_is_in_it(tmp_path):
    readers = (lambda folder: ("folder", folder), lambda builder: ("tfds", builder.name))
    assert sources.read(ORIGIN, tmp_path, *readers) == ("folder", tmp_path)
    sources.write_tfds("cifar10", tmp_path, {"train": tiny(4), "test": tiny(2)})
    assert sources.read(ORIGIN, tmp_path, *readers) == ("tfds", "cifar10")


def test_a_name_alone_makes_no_tfds_folder(tmp_path):
    readers = (lambda folder: "folder", lambda builder: "tfds")
    for name in ("cifar10", "cifar10/3.0.2", "cifar10/train"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "features.json").write_text("{}")
    assert sources.read(ORIGIN, tmp_path, *readers) == "folder"
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match=r"^TFDS cannot read cifar10 .*run: tfds build cifar10 "):
        sources.read(ORIGIN, tmp_path, *readers)


def test_a_folder_within_that_of_tfds_is_told_apart(tmp_path):
    sources.write_tfds("cifar10", tmp_path, {"train": tiny(4), "test": tiny(2)})
    for inner in (tmp_path / "cifar10", tmp_path / "cifar10" / "3.0.2"):
        with pytest.raises(InputError, match=f"^{inner}: a folder within a TFDS data directory; give --from that"):
            sources.read(ORIGIN, inner, pytest.fail, pytest.fail)


@pytest.mark.parametrize("harm", ["truncated", "empty", "missing", "other"])
def test_damaged_array_record_is_one_line(harm, tmp_path):
    sources.write_tfds("cifar10", tmp_path, {"train": tiny(4), "test": tiny(2)})
    (path,) = (tmp_path / "cifar10" / "3.0.2").glob("*-train.array_record-*")
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "other": b"PK" * 50_000}[harm])
    read = lambda builder: [example["label"] for example in builder.as_data_source(split="train")]  # noqa: E731
    with pytest.raises(InputError) as caught:
        sources.read(ORIGIN, tmp_path, pytest.fail, read)
    assert str(caught.value).startswith(f"{path.parent}: TFDS cannot read it (")
    assert f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_folder_the_usual_one_of_tfds_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
    readers = (pytest.fail, lambda builder: len(builder.as_data_source(split="train")))
    with pytest.raises(InputError) as caught:
        sources.read(ORIGIN, None, *readers)
    for part in (str(tmp_path), "tfds build cifar10 --file_format=array_record", "some.tar.gz", "https://example.org/"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    sources.write_tfds("cifar10", tmp_path, {"train": tiny(4), "test": tiny(2)})
    assert sources.read(ORIGIN, None, *readers) == 4


def test_what_tfds_wrote_in_another_format_is_refused(tmp_path):
    sources.write_tfds("cifar10", tmp_path, {"train": tiny(4), "test": tiny(2)})
    info = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match=r"cifar10.*tfds build cifar10 --file_format=array_record --data_dir="):
        sources.tfds_builder("cifar10", tmp_path)


def test_image_dataset_splits_by_hash_and_keeps_all():
    image, label = np.arange(20, dtype=np.uint8).repeat(4).reshape(20, 2, 2), np.arange(20) % 3
    made = sources.image_dataset("made", ("a", "b", "c"), (image, label), (image[:5], label[:5]), 6)
    assert made.splits["validation"].example_id.tolist() == sorted(sources.hash_order("made", 20)[:6].tolist())
    ids = np.concatenate([made.splits[split].example_id for split in ("train", "validation")])
    assert sorted(ids) == list(range(20))
    assert made.splits["test"].example_id.tolist() == [20, 21, 22, 23, 24]
    for split in made.splits.values():
        index = split.example_id % 20
        np.testing.assert_array_equal(split.inputs, image[index])
        np.testing.assert_array_equal(split.label, label[index])
    with pytest.raises(InputError, match="made: 19 training images, but 20 labels"):
        sources.image_dataset("made", ("a", "b", "c"), (image[:-1], label), (image[:5], label[:5]), 6)


def test_counts():
    sources.require_counts("x", np.array([0, 1, 1]), [1, 2])
    for label in ([0, 0, 1], [0, 1], [0, 1, 1, 2]):
        with pytest.raises(InputError, match=r"^x: . examples of class . "):
            sources.require_counts("x", np.array(label), [1, 2])


def test_prepared_files_round_trip(tmp_path):
    split = Split(np.ones((2, 3), np.int32), np.array([0, 1], np.int32), np.array([4, 5]), np.array([1, 0], np.int32))
    made = Dataset("made", ("a", "b"), {"test": split}, group_names=("g", "h"), vocabulary=("", "word", "größer"))
    assert sources.write_prepared(made, tmp_path / "new") == tmp_path / "new" / "made.npz"
    read = sources.read_prepared("made", tmp_path / "new")
    assert read.fingerprint == made.fingerprint
    assert (read.class_names, read.group_names, read.vocabulary) == (
        made.class_names,
        made.group_names,
        made.vocabulary,
    )


def test_prepared_files_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(
        InputError, match=r"made\.npz: the data set is not prepared; run: python -m sc_jax\.data\.prepare"
    ):
        sources.read_prepared("made", tmp_path)
    (tmp_path / "made.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=rf"not readable .*prepare made --to {tmp_path}"):
        sources.read_prepared("made", tmp_path)


@pytest.mark.parametrize("field", ["class_names", "group_names", "vocabulary"])
@pytest.mark.parametrize("value", [np.array(3.5), np.array("a"), np.arange(2), np.array([["a"], ["b"]])])
def test_names_that_are_no_list_of_text_are_refused(field, value, tmp_path):
    split = Split(np.ones((2, 3), np.int32), np.array([0, 1], np.int32), np.array([4, 5]), np.array([1, 0], np.int32))
    path = sources.write_prepared(Dataset("made", ("a", "b"), {"test": split}, ("g", "h"), ("", "word")), tmp_path)
    np.savez(path, **dict(np.load(path)) | {field: value})
    with pytest.raises(InputError, match=rf"made\.npz: not readable \({field} is .*, not text of one axis\); run: "):
        sources.read_prepared("made", tmp_path)


def test_a_name_of_what_are_no_characters_is_refused(tmp_path):
    split = Split(np.zeros((2, 2, 2), np.uint8), np.array([0, 1], np.int32), np.array([4, 5]))
    path = sources.write_prepared(Dataset("made", ("a", "b"), {"test": split}), tmp_path)
    np.savez(path, **dict(np.load(path)) | {"class_names": np.array([100, 0xFFFF0064], np.uint32).view("U1")})
    with pytest.raises(InputError, match="class_names is no text"):
        sources.read_prepared("made", tmp_path)
