"""Small sets: each is made once, whole, and loads like the real one."""

import multiprocessing
import os
import pkgutil

import numpy as np
import pytest

from sc_jax import data
from sc_jax.data import small
from sc_jax.files import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path))
    return tmp_path / "small"


def test_every_data_set_has_a_small_one():
    for name in small.SMALL:
        assert callable(pkgutil.resolve_name(small.SMALL[name]))
    assert set(data.LOADERS) - set(small.SMALL) == {"fashion_mnist", "fashion_mnist_full"}  # one is in the package


@pytest.mark.parametrize("name", small.SMALL)
def test_small_sets_load(name, folder):
    assert small.small(name) == folder / name
    dataset = data.load(name, folder / name)
    assert {"train", "validation"} <= set(dataset.splits)
    for split in dataset.splits.values():
        assert 1 <= len(split) <= 2_000


def test_it_is_made_once_and_again_for_other_code(folder, monkeypatch):
    stamps = []
    monkeypatch.setitem(small.SMALL, "made", f"{__name__}:write")
    monkeypatch.setattr(small.files, "fingerprint_sources", lambda place: stamps[-1])
    for stamp, times in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        stamps.append(stamp)
        small.small("made")
        assert len(WRITTEN) == times


WRITTEN = []


def write(directory):
    """A small set for these tests."""
    WRITTEN.append(directory)
    (directory / "file").write_text("x" * 100)


def test_what_failed_half_way_is_made_again(folder, monkeypatch):
    def fail(directory):
        (directory / "half").write_text("x")
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(small.pkgutil, "resolve_name", lambda name: fail)
        with pytest.raises(RuntimeError):
            small.small("mnist")
    small.small("mnist")
    assert sorted(path.name for path in (folder / "mnist").iterdir()) == ["made_by.json", "mnist.npz", "originals"]


def _race(name, barrier, root, results):
    os.environ["SC_JAX_DATA"] = root
    barrier.wait()
    results.put(data.load(name, small.small(name)).fingerprint)


def test_processes_that_ask_at_the_same_time(folder):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_race, args=("mnist", barrier, str(folder.parent), results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1


def test_made_up_images_depend_on_their_class_alone_but_for_noise():
    label = np.array([0, 1, 0])
    for shape in ((28, 28), (32, 32, 3), (5, 9, 3)):
        image = small.made_up_images(label, shape, seed=1)
        assert (image.shape, image.dtype) == ((3, *shape), np.uint8)
        distance = [np.abs(image[0].astype(int) - image[i]).mean() for i in (1, 2)]
        assert distance[1] < 40 < distance[0]


def test_command_line(folder, capsys):
    assert small.main(["mnist"]) == 0
    assert capsys.readouterr().out == f"{folder / 'mnist'}\n"
    assert small.main(["mnits"]) == 2
    assert "did you mean 'mnist'?" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set SC_JAX_DATA to another folder"):
        small.small("mnist")
