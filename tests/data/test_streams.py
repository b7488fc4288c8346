"""Streams: what is in batch k follows from the seed and k, whoever reads it; every example once per epoch."""

import collections
import contextlib
import itertools
import threading

import numpy as np
import pytest

from sc_jax.data import sources, streams
from sc_jax.files import InputError

N = 10


class Numbers:
    """A source in memory: example i is the byte i, of class i mod 3, with the id 100 + i."""

    def __init__(self, n=N, broken=None):
        self.example_id = 100 + np.arange(n)
        self.broken = broken

    def __len__(self):
        return len(self.example_id)

    def __getitem__(self, index):
        if index == self.broken:
            raise InputError("no image")
        return {"image": bytes([index]), "label": index % 3, "example_id": int(self.example_id[index])}

    def describe(self, index):
        return f"numbers/{index}"


def drawn(record, rng):
    """The image, and what was drawn for it."""
    return {**record, "image": np.frombuffer(record["image"], np.uint8), "draw": rng.integers(2**62, size=2)}


def fixed(record):
    return {**record, "image": np.frombuffer(record["image"], np.uint8)}


def taken(source=None, transform=drawn, **options):
    """All batches of a stream; by default 15 of 4, six epochs of 10."""
    options = {"batch_size": 4, "seed": 3, "total_steps": 15, "threads": 2} | options
    with contextlib.closing(streams.batches(source or Numbers(), transform, **options)) as stream:
        return list(stream)


def evaluated(source=None, **options):
    with contextlib.closing(streams.evaluation_batches(source or Numbers(), fixed, **options)) as stream:
        return list(stream)


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)


def joined(batches, name="example_id"):
    return np.concatenate([batch[name] for batch in batches])


def test_every_example_comes_once_per_epoch_in_another_order():
    batches = taken()
    assert len(batches) == 15
    assert {name: (array.shape, array.dtype) for name, array in batches[0].items()} == {
        "image": ((4, 1), np.uint8),
        "label": ((4,), np.int32),
        "example_id": ((4,), np.int64),
        "draw": ((4, 2), np.int64),
    }
    for batch in batches:
        np.testing.assert_array_equal(batch["image"][:, 0] + 100, batch["example_id"])
        np.testing.assert_array_equal(batch["image"][:, 0] % 3, batch["label"])
    epochs = joined(batches).reshape(6, N)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(100 + np.arange(N), (6, 1)))
    assert len(np.unique(epochs, axis=0)) == 6


def test_no_epoch_of_one_seed_is_in_another_seed():
    orders = [joined(taken(seed=seed)).reshape(6, N).tolist() for seed in range(4)]
    assert len({tuple(order) for order in itertools.chain(*orders)}) == 24


def test_in_order_without_shuffle():
    np.testing.assert_array_equal(joined(taken(shuffle=False)), np.tile(100 + np.arange(N), 6))


@pytest.mark.parametrize("threads", [1, 7, None])
def test_any_number_of_threads_gives_the_same(threads):
    assert_same(taken(), taken(threads=threads))


def test_worker_processes_give_the_same():
    assert_same(taken(), taken(workers=2))


@pytest.mark.parametrize("first_step", [0, 1, 7, 15])
def test_a_later_start_is_the_tail(first_step):
    assert_same(taken()[first_step:], taken(first_step=first_step))


def test_the_state_of_the_iterator_continues_it():
    def stream():
        return contextlib.closing(streams.batches(Numbers(), drawn, batch_size=4, seed=3, total_steps=15))

    with stream() as first:
        for _ in range(5):
            next(first)
        state = first.get_state()
        rest = list(first)
    with stream() as second:
        second.set_state(state)
        assert_same(rest, list(second))
    assert_same(rest, taken()[5:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(count):
    whole = taken()
    for rows in np.arange(4).reshape(count, -1):
        part = [{name: array[rows] for name, array in batch.items()} for batch in whole]
        assert_same(part, taken(rows=rows))
        assert_same(part[7:], taken(rows=rows, first_step=7))


def test_any_rows_of_each_batch_can_be_taken_and_the_others_are_not_read():
    read = []

    class Watched(Numbers):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    rows = np.array([0, 3])
    with contextlib.closing(
        streams.batches(Watched(), drawn, batch_size=4, seed=3, total_steps=2, rows=rows, shuffle=False)
    ) as stream:
        found = list(stream)
    assert_same([{name: array[rows] for name, array in batch.items()} for batch in taken(shuffle=False)[:2]], found)
    assert sorted(read) == [0, 3, 4, 7]


def test_workers_take_rows_too():
    assert_same(taken(rows=np.array([1, 2])), taken(rows=np.array([1, 2]), workers=2))


def test_draws_depend_on_seed_epoch_and_example_alone():
    def draws(**options):
        """(epoch, example) → draw."""
        found, seen = {}, collections.Counter()
        for batch in taken(**options):
            for example, draw in zip(batch["example_id"].tolist(), batch["draw"].tolist(), strict=True):
                found[seen[example], example] = tuple(draw)
                seen[example] += 1
        return found

    usual = draws()
    assert len(set(usual.values())) == 6 * N
    assert draws(shuffle=False) == usual
    assert draws(batch_size=5, total_steps=12) == usual
    assert not set(draws(seed=4).values()) & set(usual.values())


def test_threads_read_ahead_of_the_caller():
    read_ahead = threading.Event()

    class Watched(Numbers):
        def __getitem__(self, index):
            if index == 6:  # of the second batch, in order
                read_ahead.set()
            return super().__getitem__(index)

    with contextlib.closing(
        streams.batches(Watched(), drawn, batch_size=4, seed=0, total_steps=3, shuffle=False)
    ) as stream:
        next(stream)
        assert read_ahead.wait(timeout=300)


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 2), (10, 1), (16, 4), (1, 1)])
def test_evaluation_gives_every_example_once_and_pads(batch_size, count):
    parts = [
        evaluated(batch_size=batch_size, rows=rows, threads=2) for rows in np.arange(batch_size).reshape(count, -1)
    ]
    steps = -(-N // batch_size)
    assert [len(part) for part in parts] == [steps] * count
    for batch in itertools.chain(*parts):
        assert all(len(array) == batch_size // count for array in batch.values())
    ids = np.concatenate([joined(part) for part in parts])
    assert (ids == -1).sum() == steps * batch_size - N
    np.testing.assert_array_equal(np.sort(ids[ids >= 0]), 100 + np.arange(N))
    if count == 1:
        np.testing.assert_array_equal(joined(parts[0])[:N], 100 + np.arange(N))
        np.testing.assert_array_equal(joined(parts[0], "label")[:N], np.arange(N) % 3)


@pytest.mark.parametrize("read", [taken, evaluated])
def test_a_broken_record_is_named(read):
    with pytest.raises(InputError) as error:
        read(Numbers(broken=5), batch_size=2)
    assert str(error.value) == "numbers/5: no image"


def test_impossible_requests_are_refused():
    with pytest.raises(InputError, match="batch_size = 0"):
        evaluated(batch_size=0)
    with pytest.raises(InputError, match="first_step = 16"):
        taken(first_step=16)
    with pytest.raises(InputError, match="seed = -1; it should be 0 or more"):
        taken(seed=-1)
    for read in (taken, evaluated):
        for rows in ([], [-1], [4], [1, 0], [2, 2]):
            with pytest.raises(InputError, match=r"they should be some of 0\.\.3, increasing"):
                read(rows=np.array(rows, int), batch_size=4)
        for name, value, least in (("threads", 0, 1), ("threads", -3, 1), ("workers", -1, 0)):
            with pytest.raises(InputError, match=f"{name} = {value}; it should be {least} or more"):
                read(**{"batch_size": 4, name: value})


def test_a_data_set_is_checked():
    good = streams.StreamedDataset("numbers", ("a", "b", "c"), {"train": Numbers()}, "0")
    assert (good.num_classes, good.ignore_label) == (3, None)
    with pytest.raises(InputError, match="numbers: the split test is empty"):
        streams.StreamedDataset("numbers", ("a",), {"train": Numbers(), "test": Numbers(0)}, "0")
    twice = Numbers()
    twice.example_id[3] = 104
    with pytest.raises(InputError, match="numbers: an example id comes twice in train"):
        streams.StreamedDataset("numbers", ("a",), {"train": twice}, "0")


ORIGIN = sources.Origin("numbers", "the digits", "example.org")


def test_a_list_moves_with_its_files(tmp_path):
    here, elsewhere = tmp_path / "a", tmp_path / "files"
    (here / "files").mkdir(parents=True)
    elsewhere.mkdir()
    path = streams.write_list({"x": np.arange(3)}, here / "files", here, ORIGIN)
    assert path == here / "numbers.npz"
    here.rename(tmp_path / "b")
    arrays, location = streams.read_list(tmp_path / "b", ORIGIN, [{"x": "i"}])
    assert location == tmp_path / "b" / "files"
    np.testing.assert_array_equal(arrays.pop("x"), np.arange(3))
    assert not arrays

    streams.write_list({}, elsewhere, tmp_path / "b", ORIGIN)
    assert streams.read_list(tmp_path / "b", ORIGIN, []) == ({}, elsewhere)
    elsewhere.rmdir()
    with pytest.raises(InputError, match=r"files of numbers have gone; run: .*prepare numbers"):
        streams.read_list(tmp_path / "b", ORIGIN, [])


def test_what_is_not_prepared_or_damaged_says_how(tmp_path):
    with pytest.raises(InputError, match=r"not prepared; get the digits from example.org and run: .*prepare numbers"):
        streams.read_list(tmp_path, ORIGIN, [])
    (tmp_path / "numbers.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"numbers.npz: not readable .*run: .*prepare numbers"):
        streams.read_list(tmp_path, ORIGIN, [])
    streams.write_list({"x": np.arange(3)}, tmp_path, tmp_path, ORIGIN)
    with pytest.raises(InputError, match=r"numbers.npz: not readable \(no array 'y'\)"):
        streams.read_list(tmp_path, ORIGIN, [{"x": "i", "y": "i"}])
    with pytest.raises(InputError, match="cannot be read \\(No such file"):
        streams.read_file(tmp_path / "none")
    with pytest.raises(InputError, match="no array_record of the split train"):
        len(streams.TfdsSplit(tmp_path, "train", ("image",)))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": np.array([b"a", b"../../etc/passwd", b"c"])}, "name holds what is no name of a file"),
        ({"name": np.array([b"a", b"/etc/passwd", b"c"])}, "name holds what is no name of a file"),
        ({"name": np.array([b"a", b"..", b"c"])}, "name holds what is no name of a file"),
        ({"name": np.array([b"a", b".", b"c"])}, "name holds what is no name of a file"),
        ({"name": np.array([b"a", b"b\0b", b"c"])}, "name holds what is no name of a file"),
        ({"name": np.array([b"a", b"\xc3", b"\xa9"])}, "name is no text"),
        ({"name": np.array(["a", "b", "c"])}, "name is <U1 .3., not of the kind 'S'"),
        ({"name": np.array(b"a")}, r"name is .S1 .., not of the kind 'S' and of one axis"),
        ({"folder": np.array(["a", ".."])}, "folder holds what is no name of a file"),
        ({"folder": np.array(["a", "\ud800"])}, "folder is no text"),
        ({"number": np.arange(4)}, "number has 4 entries, those beside it have 3"),
        ({"number": np.array([0, 1, -2])}, "number holds -2"),
        ({"number": np.arange(3.0)}, "number is float64"),
        ({"drawn": np.arange(3)}, "drawn is int64"),
        ({"location": np.array("files")}, "location is .*of one axis"),
        ({"location": np.array([], "U3")}, "0 locations"),
        ({"location": np.array(["\ud800"])}, "location is no text"),
        ({"location": np.array([0xFFFF0064], np.uint32).view("U1")}, "location is no text"),
        ({"folder": np.array([100, 0xFFFF0064], np.uint32).view("U1")}, "folder is no text"),
        ({"location": np.array(["a\0b"])}, "1 locations, or one that no folder can have"),
        ({"location": np.array([3])}, "location is int64"),
        ({"number": np.full(3, 9)}, "nine"),
    ],
)
def test_a_list_that_is_not_as_it_should_be_is_refused(tmp_path, changes, reason):
    """In particular one that would make a reader follow a path out of its folder."""
    arrays = {"name": np.array([b"a", b"b.png", b"\xc3\xa9"]), "number": np.arange(3), "drawn": np.ones(3, bool)}
    arrays |= {"folder": np.array(["x", ""])}
    tables = [{"folder": "U"}, {"name": "S", "number": "i", "drawn": "b"}]

    def wrong(arrays):
        return "nine" if 9 in arrays["number"] else None

    path = streams.write_list(arrays, tmp_path, tmp_path, ORIGIN)
    assert streams.read_list(tmp_path, ORIGIN, tables, wrong)[0].keys() == arrays.keys()
    np.savez(path, **dict(np.load(path)) | changes)
    with pytest.raises(InputError, match=rf"numbers.npz: not readable \({reason}.*run: "):
        streams.read_list(tmp_path, ORIGIN, tables, wrong)
