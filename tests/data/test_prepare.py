"""`python -m sc_jax.data.prepare`, with made-up official files; the real ones where Debian's package is installed."""

import contextlib
import errno
import hashlib
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT

from sc_jax import data, files
from sc_jax.data import (
    cifar,
    cityscapes,
    clinc150,
    fashion_mnist,
    idx,
    imagenet,
    mnist,
    prepare,
    small,
    sources,
    tabular,
    text,
)
from sc_jax.files import InputError

COMMAND = "python -m sc_jax.data.prepare fashion_mnist"


def made_up():
    """As many examples as in the official files; the first four pixels of each image are its own index."""
    official = {}
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        image = np.zeros((n, 28 * 28), np.uint8)
        image[:, :4] = np.arange(n, dtype="<u4").view(np.uint8).reshape(n, 4)
        official |= {
            f"{part}-images-idx3-ubyte": image.reshape(n, 28, 28),
            f"{part}-labels-idx1-ubyte": (np.arange(n) % 7).astype(np.uint8),
        }
    return official


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder of made-up idx files."""
    folder = tmp_path_factory.mktemp("originals")
    for name, array in made_up().items():
        (folder / name).write_bytes(idx.idx_bytes(array))
    return folder


@pytest.fixture
def made_up_is_official(originals, monkeypatch):
    digests = {name: hashlib.sha256((originals / name).read_bytes()).hexdigest() for name in fashion_mnist.OFFICIAL}
    monkeypatch.setattr(fashion_mnist, "OFFICIAL", digests)
    monkeypatch.setattr(fashion_mnist, "FULL_FINGERPRINT", files.fingerprint(fashion_mnist.full_arrays(made_up())))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only the sources that a test names are tried."""
    monkeypatch.setattr(prepare, "SOURCES", {})


def fails_with(capsys, *arguments):
    """The message on standard error: one line."""
    assert prepare.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.usefixtures("made_up_is_official")
def test_from_a_folder(originals, tmp_path, capsys):
    assert prepare.main(["fashion_mnist", "--from", str(originals), "--to", str(tmp_path)]) == 0
    assert f"{tmp_path}/fashion_mnist_full.npz" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["fashion_mnist_full.npz"]

    splits = data.load("fashion_mnist_full", tmp_path).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 58_000,
        "validation": 2_000,
        "test": 10_000,
    }
    subset = data.load("fashion_mnist").splits
    np.testing.assert_array_equal(splits["validation"].example_id, subset["validation"].example_id)
    np.testing.assert_array_equal(splits["test"].example_id, subset["test"].example_id)
    seen = np.concatenate([splits["train"].example_id, splits["validation"].example_id])
    np.testing.assert_array_equal(np.sort(seen), np.arange(60_000))
    for split in splits.values():
        assert np.all(np.diff(split.example_id) > 0)
        index = split.inputs.reshape(len(split), -1)[:, :4].copy().view("<u4")[:, 0]
        np.testing.assert_array_equal(index, split.example_id % 60_000)
        np.testing.assert_array_equal(split.label, index % 7)


@pytest.mark.usefixtures("made_up_is_official")
def test_second_call_does_nothing_and_a_damaged_file_is_made_again(originals, tmp_path, capsys):
    path = tmp_path / "fashion_mnist_full.npz"
    arguments = ["fashion_mnist", "--from", str(originals), "--to", str(tmp_path)]
    assert prepare.main(arguments) == 0
    first, content = path.stat(), path.read_bytes()
    assert prepare.main(arguments) == 0
    assert "already prepared" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == first.st_mtime_ns

    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=COMMAND):
        data.load("fashion_mnist_full", tmp_path)
    assert prepare.main(arguments) == 0
    assert path.read_bytes() == content


@pytest.mark.usefixtures("made_up_is_official")
def test_first_source_that_works(originals, tmp_path, monkeypatch, capsys):
    def broken():
        raise RuntimeError("nothing listens")

    def wrong():
        return made_up() | {"t10k-labels-idx1-ubyte": np.zeros(10_000, np.uint8)}

    sources = {
        "broken": broken,
        "absent": lambda: fashion_mnist.read_official(tmp_path / "absent"),
        "wrong": wrong,
        "good": lambda: fashion_mnist.read_official(originals),
        "unasked": lambda: pytest.fail("a source worked before this one"),
    }
    monkeypatch.setattr(prepare, "SOURCES", sources)
    assert prepare.main(["fashion_mnist", "--to", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "trying broken\n  no: RuntimeError: nothing listens\ntrying absent\n  no: " in output
    assert "no: wrong: t10k-labels-idx1-ubyte is not the official one" in output
    assert "trying good\nfashion_mnist: " in output
    assert len(data.load("fashion_mnist_full", tmp_path).splits["train"]) == 58_000


def test_no_source_works(tmp_path, capsys):
    error = fails_with(capsys, "fashion_mnist", "--to", tmp_path)
    assert "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz" in error
    assert f"{COMMAND} --from DIR" in error
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_the_official_ones_are_refused(originals, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "SOURCES", {"another": lambda: pytest.fail("--from was given")})
    error = fails_with(capsys, "fashion_mnist", "--from", originals, "--to", tmp_path)
    assert f"{originals}: train-images-idx3-ubyte is not the official one" in error
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "absent: no such folder" in fails_with(
        capsys, "fashion_mnist", "--from", tmp_path / "absent", "--to", tmp_path
    )
    assert f"{tmp_path}: neither train-im" in fails_with(capsys, "fashion_mnist", "--from", tmp_path, "--to", tmp_path)
    assert "file: cannot be made" in fails_with(capsys, "fashion_mnist", "--to", tmp_path / "file")
    assert "'fashion_mnits'; did you mean 'fashion_mnist'?" in fails_with(capsys, "fashion_mnits")
    assert "required: dataset" in fails_with(capsys)
    assert "--form" in fails_with(capsys, "fashion_mnist", "--form", tmp_path)


TEXTS = {corpus.origin.dataset: corpus for corpus in (text.IMDB, text.SST2, text.TREC)}
ORIGINS = {
    "fashion_mnist_full": prepare.ORIGIN,
    "mnist": mnist.ORIGIN,
    "cifar10": cifar.CIFAR10.origin,
    "cifar100": cifar.CIFAR100.origin,
    "imagenet": imagenet.ORIGIN,
    "clinc150": clinc150.ORIGIN,
    "cityscapes": cityscapes.ORIGIN,
    **{name: corpus.origin for name, corpus in TEXTS.items()},
    **{
        table.origin.dataset: table.origin for table in (tabular.ADULT, tabular.BANK_MARKETING, tabular.ONLINE_SHOPPERS)
    },
}


def section(title):
    """Of docs/data.md."""
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows_of_the_docs():
    """Name -> the cells after it, of the table of what there is."""
    found = re.findall(r"^\| `(\w+)` \|(.*)\|$", section("What there is"), re.M)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def test_the_docs_list_every_data_set_with_its_sizes():
    rows = rows_of_the_docs()
    assert set(rows) == set(data.LOADERS)
    splits = data.load("fashion_mnist").splits
    held_out = {"imdb": 2_500, "trec": 545}
    totals = {
        **{name: tuple(map(sum, corpus.counts.values())) for name, corpus in TEXTS.items()},
        "cifar10": tuple(cifar.SIZES.values()),
        "imagenet": tuple(imagenet.OFFICIAL.values()),
        "cityscapes": tuple(cityscapes.OFFICIAL.values()),
        "clinc150": (15_000, 3_000, 4_500 + 1_000),
        "fashion_mnist": tuple(len(splits[name]) for name in ("train", "validation", "test")),
    }
    for name, sizes in totals.items():
        told = [int(size.replace(",", "")) for size in re.findall(r"[\d,]+", rows[name][2])]
        assert tuple(told) == sizes if len(sizes) == 3 else (told[0] + told[1], told[2]) == sizes, name
        assert told[1] == held_out.get(name, told[1])


def test_the_docs_name_tfds_and_its_versions():
    for name, cells in rows_of_the_docs().items():
        if name not in ORIGINS or ORIGINS[name].tfds is None:
            assert cells[3] == "–", name
            continue
        with contextlib.redirect_stderr(io.StringIO()):
            builder = tfds.builder(ORIGINS[name].tfds)
        assert cells[3] == f"`{ORIGINS[name].tfds}` {builder.version}", name


def test_the_docs_say_of_each_data_set_where_it_comes_from_and_its_licence():
    text = section("Where they come from, and their licences")
    paragraphs = [paragraph for paragraph in re.split(r"\n\n(?=\*\*)", text) if paragraph.startswith("**")]
    said = {name: [p for p in paragraphs if f"`{name}`" in p.partition(".")[0]] for name in data.LOADERS}
    for name, found in said.items():
        assert len(found) == 1, name
        assert re.search(r"Licence: \w", found[0]), name
        if name in ORIGINS:
            assert f"<{ORIGINS[name].page.partition(' (')[0]}>" in found[0], name
    pinned = re.findall(r"`(cifar-\d+-binary\.tar\.gz)` \| `(\w{64})`", text)
    assert pinned == [(variant.archive, variant.sha256) for variant in (cifar.CIFAR10, cifar.CIFAR100)]


def test_the_docs_say_which_data_sets_have_no_small_one():
    (without,) = re.findall(r"These have none:([^.]*)\.", section("Small made-up sets"))
    assert set(re.findall(r"`(\w+)`", without)) == set(data.LOADERS) - set(small.SMALL)


def test_without_apt_and_with_a_failing_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no apt-get on this machine"):
        prepare._debian_downloaded()
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'W: first' >&2\necho 'E: Unable to locate package' >&2\nexit 100\n")
    apt.chmod(0o755)
    with pytest.raises(InputError, match="apt-get download dataset-fashion-mnist: E: Unable to locate package"):
        prepare._debian_downloaded()


def test_every_name_has_a_preparer_and_every_loader_a_name():
    for name in prepare.PREPARERS:
        assert callable(pkgutil.resolve_name(prepare.PREPARERS[name]))
    # Prepared as fashion_mnist, and as cifar10_jpeg.
    assert set(data.LOADERS) - set(prepare.PREPARERS) == {"fashion_mnist_full", "cifar10_jpeg_halves"}


@pytest.mark.parametrize("name", [name for name in prepare.PREPARERS if name != "fashion_mnist"])
def test_without_files_the_error_says_what_to_get_and_what_to_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "tfds"))
    for arguments in ([], ["--from", tmp_path / "absent"]):
        error = fails_with(capsys, name, *arguments, "--to", tmp_path / "data")
        assert f"python -m sc_jax.data.prepare {name}" in error
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


@contextlib.contextmanager
def harmed(path, kind):
    """Does to a file what happens to files, and makes it good again."""
    content = path.read_bytes()
    path.unlink()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "another type":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content[100:])
    elif kind == "a folder":
        path.mkdir()
    yield
    if path.is_dir():
        path.rmdir()
    path.write_bytes(content)


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory):
    """Name -> the original files of its small set."""
    root = tmp_path_factory.mktemp("small_sets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC_JAX_DATA", str(root))
        folders = {name: small.small(name) for name in small.SMALL}
    return {
        name: next(path for path in (made / "originals", made / "tfds", made / name) if path.is_dir())
        for name, made in folders.items()
    }


@pytest.mark.parametrize("name", [name for name in small.SMALL if name in prepare.PREPARERS])
def test_wrong_files_are_one_line_and_harm_nothing(name, small_sets, tmp_path, capsys):
    to = tmp_path / "to"
    to.mkdir()
    (to / f"{name}.npz").write_bytes(b"prepared before")
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "file").write_text("x")
    for place in ("empty folder", "file", "absent"):
        error = fails_with(capsys, name, "--from", tmp_path / place, "--to", to)
        assert error.startswith(f"error: {tmp_path / place}")
        assert any(word in error for word in ("get ", "should hold ", "needed")), error
    folder = shutil.copytree(small_sets[name], tmp_path / "harmed")
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    for kind in ("truncated", "empty", "another type", "a folder", "missing"):
        for path in found if len(found) <= 4 else found[:: len(found) // 3]:
            with harmed(path, kind):
                fails_with(capsys, name, "--from", folder, "--to", to)
    assert [(path.name, path.read_bytes()) for path in to.iterdir()] == [(f"{name}.npz", b"prepared before")]


def test_ctrl_c_is_130(tmp_path, monkeypatch, capsys):
    def interrupted(source, directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(mnist, "prepare", interrupted)
    assert prepare.main(["mnist", "--to", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was changed\n"


def test_a_disk_that_gives_no_more_is_one_line(tmp_path, monkeypatch, capsys):
    def full(source, directory):
        raise OSError(errno.ENOSPC, "No space left", "mnist.npz")

    monkeypatch.setattr(mnist, "prepare", full)
    assert prepare.main(["mnist", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: mnist.npz: No space left; make room")


@pytest.mark.parametrize("name", [name for name in ORIGINS if ORIGINS[name].tfds])
def test_what_tfds_does_not_fetch_is_named(name, tmp_path, monkeypatch):
    """The archives are those that its builder asks for; the other builders fetch theirs."""
    origin = ORIGINS[name]
    with contextlib.redirect_stderr(io.StringIO()):
        wanted = tfds.builder_cls(origin.tfds.partition("/")[0]).MANUAL_DOWNLOAD_INSTRUCTIONS or ""
    archives = re.findall(r"\w+\.(?:tar|zip)", wanted)
    assert set(archives) == set(re.findall(r"\w+\.(?:tar|zip)", origin.manual))
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(InputError) as caught:
        sources.read(origin, None, pytest.fail, pytest.fail)
    put = f"put {origin.manual} into ~/tensorflow_datasets/downloads/manual and " if archives else ""
    run = f"run: tfds build {origin.tfds} --file_format=array_record;"
    assert f"where TensorFlow is installed, {put}{run}" in str(caught.value)


def test_command_line_shows_no_traceback(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "sc_jax.data.prepare", "fashion_mnist", "--from", str(tmp_path)],
        env=os.environ | {"SC_JAX_DATA": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {tmp_path}: neither train-images-idx3-ubyte nor ")
    assert run.stderr.count("\n") == 1


@pytest.mark.skipif(not prepare.DEBIAN_FOLDER.is_dir(), reason=f"the original files are not in {prepare.DEBIAN_FOLDER}")
def test_real_files(tmp_path):
    assert prepare.main(["fashion_mnist", "--from", str(prepare.DEBIAN_FOLDER), "--to", str(tmp_path)]) == 0
    full, subset = data.load("fashion_mnist_full", tmp_path), data.load("fashion_mnist")
    for name in ("validation", "test"):
        np.testing.assert_array_equal(full.splits[name].inputs, subset.splits[name].inputs)
        np.testing.assert_array_equal(full.splits[name].label, subset.splits[name].label)
    row = np.searchsorted(full.splits["train"].example_id, subset.splits["train"].example_id)
    np.testing.assert_array_equal(full.splits["train"].inputs[row], subset.splits["train"].inputs)
    np.testing.assert_array_equal(full.splits["train"].label[row], subset.splits["train"].label)
