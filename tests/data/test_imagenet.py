"""ImageNet from a small set of real JPEG files, in torchvision's folders and in TFDS's array_record."""

import ast
import functools
import hashlib
import pickle
import shlex
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


def test_test_tune_is_what_the_published_notebook_draws(small):
    """`torch.manual_seed(0); idx = torch.randperm(len(logits))`, of images in the order of torchvision's ImageFolder."""
    torch = pytest.importorskip("torch")
    dataset = data.load("imagenet", small)
    test = dataset.splits["test"]
    in_folders = sorted(
        (test.wnid[label], name) for label, name in zip(test.label, test.file_name.tolist(), strict=True)
    )
    assert in_folders != [(wnid, name) for wnid, name in sorted(in_folders, key=lambda image: image[1])]
    torch.manual_seed(0)
    order = torch.randperm(len(in_folders)).tolist()
    count = len(dataset.splits["test_tune"])
    for split, places in (("test_tune", order[:count]), ("test_report", order[count:])):
        found = sorted(dataset.splits[split].file_name.tolist())
        assert found == sorted(in_folders[place][1] for place in places)


@pytest.mark.parametrize("size", [0, 1, 2, 10, 50_000])
@pytest.mark.parametrize("seed", [0, 7])
def test_permutations_are_those_of_torch(size, seed):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    np.testing.assert_array_equal(imagenet.torch_permutation(size, seed), torch.randperm(size).numpy())


def test_a_permutation_of_torch_that_is_written_down():
    # What PyTorch's documentation and countless notebooks show for seed 0; PyTorch need not be installed.
    assert imagenet.torch_permutation(10, 0).tolist() == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]


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


def test_ids_of_others_can_be_held_out(in_folders, tmp_path):
    originals = shutil.copytree(in_folders / "imagenet", tmp_path / "originals")
    listed = originals / imagenet.HELD_OUT
    chosen = np.random.default_rng(0).permutation(96)[:24]
    listed.write_text("".join(f"{i}\n" for i in chosen))
    imagenet.prepare(originals, tmp_path, small=True)
    splits = data.load("imagenet", tmp_path).splits
    np.testing.assert_array_equal(splits["validation"].example_id, np.sort(chosen))
    np.testing.assert_array_equal(splits["train"].example_id, np.setdiff1d(np.arange(96), chosen))
    np.testing.assert_array_equal(
        splits["test_tune"].example_id, data.load("imagenet", in_folders).splits["test_tune"].example_id
    )
    prepared = (tmp_path / "imagenet.npz").read_bytes()
    for wrong in (
        "",
        "1\n",
        "x\n",
        "\n".join(map(str, range(23))) + "\n96",
        "\n".join(["3"] * 24),
        "1.5\n",
        str(10**30),
    ):
        listed.write_text(wrong)
        with pytest.raises(InputError, match=rf"^{listed}: .*one a line.*; correct it or remove it$"):
            imagenet.prepare(originals, tmp_path, small=True)
    assert (tmp_path / "imagenet.npz").read_bytes() == prepared


@pytest.mark.parametrize(("part", "loose"), [("val", "ILSVRC2012_val_00000001.JPEG"), ("train", "n01440764.tar")])
def test_images_without_class_folders_say_what_to_do(part, loose, in_folders, tmp_path, capsys):
    originals = shutil.copytree(in_folders / "imagenet", tmp_path / "it's here")
    shutil.rmtree(originals / part)
    (originals / part).mkdir()
    (originals / part / loose).write_bytes(b"")
    assert prepare.main(["imagenet", "--from", str(originals), "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {originals / part}: {loose} is in no class folder")
    assert f"wanted is {part}/n01440764/*.JPEG" in error
    assert f"ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_{part}.tar into {originals}" in error
    assert error.count("\n") == 1
    command = shlex.split(error.partition("python -c ")[2])
    asked = ast.parse(command[0]).body[1].value
    assert [argument.value for argument in asked.args] == [str(originals), part]


def test_a_folder_or_a_link_in_the_directory_is_found(in_folders, tmp_path):
    (tmp_path / "imagenet").symlink_to(in_folders / "imagenet")
    imagenet.prepare(None, tmp_path, small=True)
    assert data.load("imagenet", tmp_path).fingerprint == data.load("imagenet", in_folders).fingerprint


def test_a_damaged_record_of_tfds_is_named(tmp_path):
    imagenet.write_small(tmp_path, "tfds")
    source = data.load("imagenet", tmp_path).splits["test"]
    (path,) = (tmp_path / "tfds" / "imagenet2012").glob("*/*-validation.array_record-*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        InputError, match=r"5\.1\.0: val ILSVRC2012_val_0.*the split validation cannot be read \(Runtime"
    ):
        list(streams.evaluation_batches(source, functools.partial(images.eval_record, size=8), batch_size=4))


def test_without_images_it_says_what_to_get(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/train: cannot be read .*n01440764/\*\.JPEG.*image-net.org"):
        imagenet.prepare(tmp_path / "empty", tmp_path)
    with pytest.raises(InputError, match=r"not prepared; get ILSVRC2012_img_train.tar .*run: .*prepare imagenet"):
        data.load("imagenet", tmp_path)


@pytest.mark.parametrize(
    ("field", "change", "reason"),
    [
        (
            "train_file_name",
            lambda names: np.array([b"/etc/hostname"] * len(names)),
            "train_file_name holds what is no",
        ),
        ("wnid", lambda names: np.where(np.arange(len(names)) < 1, "../..", names), "wnid holds what is no"),
        ("val_label", lambda label: label + 1_000, r"the label 1\d\d\d of 1000 classes"),
        ("val_label", lambda label: label - 1_000, "val_label holds -1000"),
        ("train_drawn", lambda drawn: drawn[:3], "train_drawn has 3 entries"),
    ],
)
def test_a_damaged_list_is_refused(field, change, reason, in_folders, tmp_path):
    arrays = dict(np.load(in_folders / "imagenet.npz"))
    np.savez(tmp_path / "imagenet.npz", **arrays | {field: change(arrays[field])})
    with pytest.raises(InputError, match=rf"imagenet.npz: not readable \({reason}"):
        data.load("imagenet", tmp_path)
