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
    made = small.small(name)
    assert made == small.folder_of(name)
    assert (made.parent, made.name.partition("-")[0]) == (folder, name)
    dataset = data.load(name, made)
    assert {"train", "validation"} <= set(dataset.splits)
    for split in dataset.splits.values():
        assert 1 <= len(split) <= 2_000
    assert list(folder.iterdir()) == [made]  # and nothing is left of the making


@pytest.fixture
def made(monkeypatch):
    """A small set for these tests: "made", which `write` writes; of the code that `made("a")` says."""
    WRITTEN.clear()
    monkeypatch.setitem(small.SMALL, "made", f"{__name__}:write")

    def of(code):
        monkeypatch.setattr(small.files, "fingerprint_sources", lambda place: code)
        return small.small("made")

    return of


WRITTEN = []


def write(directory):
    """The small set of these tests: a file that tells how many there were before."""
    WRITTEN.append(directory)
    (directory / "file").write_text(str(len(WRITTEN)))


def test_it_is_made_once_by_each_code_and_never_taken_from_its_readers(made):
    first = made("a")
    content = os.stat(first / "file")
    assert made("a") == first
    assert len(WRITTEN) == 1
    other = made("b")
    assert (other / "file").read_text() == "2"
    # Whoever reads the first one while the second is made finds it as it was.
    assert (first / "file").read_text() == "1"
    assert os.stat(first / "file").st_ino == content.st_ino
    assert made("a") == first


def test_half_a_set_is_never_seen(made, folder, monkeypatch):
    def look(directory):
        write(directory)
        assert not small.folder_of("made").exists()
        assert directory.parent.parent == folder  # on the same disk, so that it can be renamed

    monkeypatch.setattr(small.pkgutil, "resolve_name", lambda name: look)
    assert (made("a") / "file").read_text() == "1"


def test_the_slower_of_two_takes_that_of_the_faster(made, folder, monkeypatch):
    def overtaken(directory):
        write(directory)
        if len(WRITTEN) == 1:
            small.small("made")  # another process, which begins later and ends sooner

    monkeypatch.setattr(small.pkgutil, "resolve_name", lambda name: overtaken)
    assert (made("a") / "file").read_text() == "2"
    assert list(folder.iterdir()) == [small.folder_of("made")]


def test_what_failed_half_way_leaves_nothing_and_is_made_again(folder, monkeypatch):
    def fail(directory):
        (directory / "half").write_text("x")
        raise RuntimeError("no")

    with monkeypatch.context() as patch:
        patch.setattr(small.pkgutil, "resolve_name", lambda name: fail)
        with pytest.raises(RuntimeError):
            small.small("mnist")
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in small.small("mnist").iterdir()) == ["mnist.npz", "originals"]


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
    found = {results.get(timeout=300) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert [path.name for path in folder.iterdir()] == [small.folder_of("mnist").name]


def test_made_up_images_depend_on_their_class_alone_but_for_noise():
    label = np.array([0, 1, 0])
    for shape in ((28, 28), (32, 32, 3), (5, 9, 3)):
        image = small.made_up_images(label, shape, seed=1)
        assert (image.shape, image.dtype) == ((3, *shape), np.uint8)
        distance = [np.abs(image[0].astype(int) - image[i]).mean() for i in (1, 2)]
        assert distance[1] < 40 < distance[0]


def test_command_line(capsys):
    assert small.main(["mnist"]) == 0
    assert capsys.readouterr().out == f"{small.folder_of('mnist')}\n"
    assert small.main(["mnits"]) == 2
    assert "did you mean 'mnist'?" in capsys.readouterr().err


def test_ctrl_c_is_130_and_leaves_nothing(made, folder, monkeypatch, capsys):
    def interrupted(directory):
        write(directory)
        raise KeyboardInterrupt

    monkeypatch.setattr(small.pkgutil, "resolve_name", lambda name: interrupted)
    assert small.main(["made"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was changed\n"
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SC_JAX_DATA", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set SC_JAX_DATA to another folder"):
        small.small("mnist")
