"""The waist of the pipe: what is written comes back, and whatever breaks a rule is refused with file, field and remedy."""

import dataclasses
import mmap
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sc_jax import files, ops, predictions
from sc_jax.files import InputError
from sc_jax.predictions import Predictions, Scored

N, K = 6, 4


def arrays(**changes):
    """A good file's arrays; a change to None leaves one out."""
    rng = np.random.default_rng(0)
    good = {"label": rng.integers(0, K, N), "logits": rng.normal(size=(N, K)), "example_id": 100 + np.arange(N)}
    return {name: array for name, array in (good | changes).items() if array is not None}


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.fixture
def refusal(tmp_path):
    """Writes a file and returns the message it is refused with: one line that begins with its path."""

    def refuse(**changes):
        path = tmp_path / "given.npz"
        np.savez(path, **arrays(**changes))
        with pytest.raises(InputError) as caught:
            predictions.load(path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message.removeprefix(str(path))

    return refuse


# --- round trip -------------------------------------------------------------------------------------------------------

finite = st.floats(-1e3, 1e3, width=32)


def weights(n):
    positive = hnp.arrays(np.float64, n, elements=st.floats(0, 1e3)).filter(np.any)
    return positive | positive.map(np.float32).filter(np.any)


@st.composite
def any_predictions(draw):
    n, k, d = draw(st.integers(1, 7)), draw(st.integers(2, 5)), draw(st.integers(1, 3))
    members = draw(st.sampled_from([(), (1,), (3,)]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))

    def maybe(strategy):
        return draw(st.none() | strategy)

    text = hnp.arrays("U4", n, elements=st.text("abé", max_size=4))
    features = maybe(hnp.arrays(np.float32, (n, d), elements=finite))
    head = features is not None and draw(st.booleans())
    ids = draw(
        hnp.arrays(np.int64, n, elements=st.integers(-(2**40), 2**40), unique=True)
        | hnp.arrays("U4", n, elements=st.text("abé", min_size=1, max_size=4), unique=True)
    )
    return Predictions(
        label=draw(
            hnp.arrays(draw(st.sampled_from([np.int8, np.uint16, np.int64])), n, elements=st.integers(0, k - 1))
        ),
        logits=draw(hnp.arrays(dtype, (*members, n, k), elements=st.floats(-100, 100, width=16))),
        example_id=ids,
        features=features,
        head_kernel=np.ones((d, k), np.float32) if head else None,
        head_bias=np.zeros(k, np.float32) if head else None,
        confidence=maybe(
            hnp.arrays(dtype, n, elements=st.floats(-100, 100, width=16) | st.sampled_from([np.inf, -np.inf]))
        ),
        group=maybe(text | hnp.arrays(np.int16, n)),
        is_ood=maybe(hnp.arrays(bool, n)),
        weight=maybe(weights(n)),
        cluster=maybe(hnp.arrays(np.int16, n)),
        provenance={"dataset": "made up", "split": "test", "tags": {"alpha": 0.5}},
    )


@settings(max_examples=60, deadline=None)
@given(any_predictions())
def test_what_is_saved_is_loaded(tmp_path_factory, given):
    path = tmp_path_factory.mktemp("round") / "trip.npz"
    predictions.save(path, given)
    back = predictions.load(path)
    assert back.arrays().keys() == given.arrays().keys()
    for name, array in given.arrays().items():
        assert back.arrays()[name].dtype == array.dtype
        np.testing.assert_array_equal(back.arrays()[name], array)
    assert back.provenance == {**given.provenance, "fingerprint": files.fingerprint(given.arrays())}
    assert (back.source, len(back), back.num_classes) == (str(path), len(given), given.logits.shape[-1])
    assert back.ids_given
    assert not back.log_probabilities


def test_a_file_from_anywhere_needs_label_and_logits_alone(tmp_path):
    np.savez_compressed(tmp_path / "x.npz", **arrays(example_id=None), something_else=np.arange(3))
    loaded = predictions.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(loaded.example_id, np.arange(N))
    assert not loaded.ids_given
    assert loaded.provenance == {}
    predictions.save(tmp_path / "y.npz", loaded)
    with np.load(tmp_path / "y.npz") as written:
        assert sorted(written.files) == ["label", "logits"]


# --- refusals ---------------------------------------------------------------------------------------------------------

GOOD = arrays()
IDS = GOOD["example_id"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("members", [0, 3])
def test_logits_that_are_not_finite_are_counted_and_the_first_example_named(refusal, value, members):
    logits = put(put(GOOD["logits"], (2, 1), value), (4, slice(None)), value)
    if members:
        logits = np.stack([GOOD["logits"], logits, GOOD["logits"]])
    message = refusal(logits=logits)
    assert "field 'logits': 2 of 6 examples have NaN or infinite values, first example_id 102" in message


@pytest.mark.parametrize(("label", "count", "first"), [(-1, 1, "-1 at example_id 103"), (K, 1, "4 at example_id 103")])
def test_labels_outside_the_classes_are_counted(refusal, label, count, first):
    message = refusal(label=put(GOOD["label"], 3, label))
    assert f"field 'label': {count} of 6 labels lie outside 0..3, first {first}" in message


@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"label": GOOD["label"].astype(float)}, "label", "dtype float64, integers are needed"),
        ({"label": GOOD["label"] > 1}, "label", "dtype bool, integers are needed"),
        ({"label": GOOD["label"].astype(str)}, "label", "integers are needed"),
        ({"label": np.eye(K, dtype=int)[GOOD["label"]]}, "label", "shape (6, 4), one class index per example"),
        ({"label": np.array(1)}, "label", "shape ()"),
        ({"label": GOOD["label"][:5]}, "logits", "shape (6, 4), label has 5 examples"),
        ({"logits": GOOD["logits"].T}, "logits", "shape (4, 6), label has 6 examples"),
        ({"logits": GOOD["logits"][:, 0]}, "logits", "shape (6,), label has 6 examples"),
        ({"logits": GOOD["logits"][None, None]}, "logits", "shape (1, 1, 6, 4)"),
        ({"logits": GOOD["logits"].astype(int)}, "logits", "dtype int64, floating point is needed"),
        ({"logits": GOOD["logits"].astype(complex)}, "logits", "floating point is needed"),
        ({"logits": GOOD["logits"][:, :1], "label": np.zeros(N, int)}, "logits", "has k = 1 class"),
        ({"logits": GOOD["logits"][:, :0]}, "logits", "nothing in it"),
        ({"logits": np.zeros((0, N, K))}, "logits", "nothing in it"),
        ({"label": np.zeros(0, int), "logits": np.zeros((0, K)), "example_id": None}, "label", "is empty (n = 0)"),
        ({"example_id": put(IDS, 5, 101)}, "example_id", "1 of 6 are repeated, first 101"),
        ({"example_id": IDS.astype(float)}, "example_id", "dtype float64"),
        ({"example_id": IDS[:, None]}, "example_id", "shape (6, 1)"),
        ({"example_id": IDS[:5]}, "example_id", "shape (5,), label has 6 examples"),
        ({"features": np.zeros((5, 2))}, "features", "shape (5, 2), label has 6 examples"),
        ({"group": np.array("a")}, "group", "shape (), label has 6 examples"),
        ({"is_ood": np.zeros(N, int)}, "is_ood", "dtype int64"),
        ({"is_ood": np.zeros((N, 1), bool)}, "is_ood", "shape (6, 1)"),
        ({"group": np.zeros(N)}, "group", "dtype float64"),
        ({"group": np.zeros((N, 2), int)}, "group", "shape (6, 2)"),
        ({"group": np.full(N, 0x7FFFFFFF, np.uint32).view("U1")}, "group", "is no text (the code point 0x7fffffff)"),
        ({"cluster": put(np.array(["a"] * N), 2, "\ud800")}, "cluster", "surrogates not allowed"),
        ({"weight": np.ones(5)}, "weight", "shape (5,), label has 6 examples"),
        ({"weight": np.ones((N, 1))}, "weight", "shape (6, 1)"),
        ({"weight": np.ones(N, int)}, "weight", "dtype int64"),
        ({"weight": put(np.ones(N), [3, 4], -1e-9)}, "weight", "2 of 6 are negative or not finite, first in row 3"),
        ({"weight": put(np.ones(N), 5, np.nan)}, "weight", "1 of 6 are negative or not finite, first in row 5"),
        ({"weight": put(np.ones(N), 0, np.inf)}, "weight", "1 of 6 are negative or not finite, first in row 0"),
        ({"weight": np.zeros(N)}, "weight", "all are 0"),
        ({"confidence": np.ones(5)}, "confidence", "shape (5,), label has 6 examples"),
        ({"confidence": np.ones((N, 2))}, "confidence", "shape (6, 2)"),
        ({"confidence": np.ones(N, int)}, "confidence", "dtype int64"),
        ({"confidence": put(np.ones(N), [2, 4], np.nan)}, "confidence", "2 of 6 are NaN, first at example_id 102"),
        ({"cluster": np.zeros(N)}, "cluster", "dtype float64"),
        ({"cluster": np.zeros(5, int)}, "cluster", "shape (5,), label has 6 examples"),
        ({"is_ood": np.zeros(7, bool)}, "is_ood", "shape (7,), label has 6 examples"),
        ({"features": np.zeros(N)}, "features", "shape (6,)"),
        ({"features": np.zeros((N, 2)), "head_kernel": np.zeros((3, K))}, "head_kernel", "shape (3, 4)"),
        ({"head_kernel": np.zeros((2, K + 1))}, "head_kernel", "shape (2, 5)"),
        ({"head_kernel": np.zeros(K)}, "head_kernel", "shape (4,)"),
        ({"head_bias": np.zeros(K + 1)}, "head_bias", "shape (5,)"),
        ({"features": np.full((N, 2), "1")}, "features", "dtype <U1, numbers are needed"),
        ({"features": np.zeros((N, 2), complex)}, "features", "dtype complex128, numbers are needed"),
        ({"features": np.zeros((N, 2), bool)}, "features", "dtype bool, numbers are needed"),
        ({"head_kernel": np.full((2, K), b"1")}, "head_kernel", "dtype |S1, numbers are needed"),
        ({"head_bias": np.full(K, "1")}, "head_bias", "dtype <U1, numbers are needed"),
        ({"head_kernel": put(np.zeros((2, K)), (1, 2), np.nan)}, "head_kernel", "1 of 8 values are NaN or infinite"),
        ({"head_bias": put(np.zeros(K), [0, 3], -np.inf)}, "head_bias", "2 of 4 values are NaN or infinite"),
    ],
)
def test_each_rule_of_the_format_names_the_field(refusal, changes, field, problem):
    message = refusal(**changes)
    assert f"field '{field}': " in message
    assert problem in message
    assert "; " in message  # what to do


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"label": None, "labels": GOOD["label"]}, ["field 'label' is missing", "rename 'labels'"]),
        ({"logits": None, "logit": GOOD["logits"]}, ["field 'logits' (or 'probs') is missing", "rename 'logit'"]),
        ({"label": None}, ["field 'label' is missing", "example_id", "logits"]),
        ({"probs": np.full((N, K), 1 / K)}, ["has both 'logits' and 'probs'"]),
    ],
)
def test_a_missing_field_names_the_nearest(refusal, changes, parts):
    message = refusal(**changes)
    for part in parts:
        assert part in message


def test_files_that_are_no_npz_are_refused(tmp_path):
    path = tmp_path / "given.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"label,logits\n0,1\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"given\.npz"):
            predictions.load(path)
    np.savez(path, label=GOOD["label"], logits=GOOD["logits"].astype(object))
    with pytest.raises(InputError, match="field 'logits': holds pickled"):
        predictions.load(path)
    with pytest.raises(InputError, match=r"none\.npz: no such file"):
        predictions.load(tmp_path / "none.npz")


# --- probabilities ----------------------------------------------------------------------------------------------------


def test_probabilities_become_their_logarithms_and_zeros_stay(tmp_path):
    probs = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    np.savez(tmp_path / "x.npz", label=np.array([0, 1, 1]), probs=probs)
    loaded = predictions.load(tmp_path / "x.npz")
    assert loaded.log_probabilities
    np.testing.assert_array_equal(loaded.logits == -np.inf, probs == 0)
    np.testing.assert_allclose(np.exp(loaded.logits), probs, rtol=1e-15)
    predictions.save(tmp_path / "y.npz", loaded)
    with np.load(tmp_path / "y.npz") as written:
        assert sorted(written.files) == ["label", "probs"]
        np.testing.assert_allclose(written["probs"], probs, rtol=1e-15)
    assert predictions.load(tmp_path / "y.npz").log_probabilities


def test_logits_of_minus_infinity_are_allowed_as_log_probabilities_only():
    logits = np.log(np.array([[1.0, 1e-300], [0.5, 0.5]]))
    logits[0, 1] = -np.inf
    given = Predictions(np.array([0, 1]), logits, np.arange(2), log_probabilities=True)
    assert predictions.validate(given) is given
    with pytest.raises(InputError, match="1 of 2 examples have NaN or infinite"):
        predictions.validate(dataclasses.replace(given, log_probabilities=False))


@pytest.mark.parametrize(
    ("probs", "problem"),
    [
        (np.full((N, K), 0.2), "rows do not sum to 1 (off by up to 0.2)"),
        (put(np.full((N, K), 0.25), (1, slice(None)), [1.5, -0.5, 0, 0]), "NaN, infinite or negative"),
        (put(np.full((N, K), 0.25), (1, 1), np.nan), "NaN, infinite or negative"),
        (np.ones((N, K), int), "dtype int64, floating point is needed"),
        (np.full((N - 1, K), 0.25), "shape (5, 4), label has 6 examples"),
        (np.ones((N, 1)), "has k = 1 class"),
    ],
)
def test_what_are_no_probabilities_is_refused_under_their_own_name(refusal, probs, problem):
    message = refusal(logits=None, probs=probs, label=np.zeros(N, int))
    assert "field 'probs': " in message
    assert problem in message


# --- sidecar ----------------------------------------------------------------------------------------------------------


def saved(tmp_path, name="a.npz", **changes):
    path = tmp_path / name
    predictions.save(path, Predictions(**arrays(**changes)))
    return path


def test_arrays_that_are_not_those_of_the_sidecar_are_refused(tmp_path):
    path = saved(tmp_path)
    np.savez(path, **arrays(label=(GOOD["label"] + 1) % K))
    with pytest.raises(InputError, match=r"a\.npz: its arrays are not those its sidecar a\.json was written for"):
        predictions.load(path)
    path.with_suffix(".json").unlink()
    assert predictions.load(path).provenance == {}


@pytest.mark.parametrize(("content", "problem"), [("[1]", "not a JSON object"), ('{"a"', "not readable as JSON")])
def test_a_sidecar_that_is_none_is_refused(tmp_path, content, problem):
    path = saved(tmp_path)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(InputError, match=rf"a\.json: {problem}"):
        predictions.load(path)


def test_a_sidecar_of_someone_else_need_not_have_a_fingerprint(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays())
    files.write_json(tmp_path / "x.json", {"split": "dev"})
    assert predictions.load(tmp_path / "x.npz").provenance == {"split": "dev"}


def test_a_failing_save_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with pytest.raises(InputError, match=r"a\.npz, field 'logits': 1 of 6"):
        saved(tmp_path, logits=put(GOOD["logits"], (0, 0), np.nan))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(InputError, match=r"a\.npz: cannot write it"):
            saved(tmp_path, label=(GOOD["label"] + 1) % K)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before
    np.testing.assert_array_equal(predictions.load(path).label, GOOD["label"])


def test_the_sidecar_is_written_last(tmp_path, monkeypatch):
    """Its presence says that the arrays are there."""
    order = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (order.append(target.name), replace(source, target)))
    saved(tmp_path)
    assert order == ["a.npz", "a.json"]


# --- ids --------------------------------------------------------------------------------------------------------------


def test_missing_and_unexpected_ids_are_counted_and_the_first_named(tmp_path):
    given = Predictions(**GOOD, source="a.npz")
    predictions.require_ids(given, IDS[::-1], "the split")
    with pytest.raises(InputError, match=r"a\.npz, field 'example_id': 2 ids are missing \(first 106\).*the split"):
        predictions.require_ids(given, np.arange(100, 108), "the split")
    with pytest.raises(InputError, match=r"'example_id': 1 ids are unexpected \(first 105\)"):
        predictions.require_ids(given, IDS[:5], "the split")
    with pytest.raises(InputError, match="2 ids are missing"):
        predictions.save(tmp_path / "a.npz", given, expected_id=np.arange(100, 108))
    assert os.listdir(tmp_path) == []
    predictions.save(tmp_path / "a.npz", given, expected_id=IDS)


TEXT = ["0", "9", "a", "é", "\U0001f600"]
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(2**53, 2**53 + 3), st.integers(2**63 - 2, 2**63 + 1))
KINDS = {
    **{kind: np.dtype(kind) for kind in ("int8", "uint8", "int64", "uint64", ">i8", "uint32")},
    "text": np.dtype("U3"),
    "bytes": np.dtype("S4"),
}


@st.composite
def any_ids(draw):
    """Ids of some type, and what they say: the UTF-8 of a text, the decimal digits of a number, or any bytes."""
    kind = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        values = draw(st.lists(NUMBERS.filter(lambda i: bounds.min <= i <= bounds.max), min_size=1, max_size=8))
        return np.array(values, kind), [str(value).encode() for value in values]
    texts = draw(st.lists(st.sampled_from(TEXT), min_size=1, max_size=8))
    if kind.kind == "U":
        return np.array(texts, kind), [text.encode() for text in texts]
    values = [draw(st.sampled_from([text.encode(), b"\xff0"])) for text in texts]
    return np.array(values, kind), values


@given(any_ids(), any_ids())
@settings(deadline=None)
def test_an_id_is_the_same_in_any_type_that_says_the_same(one, other):
    (a, a_says), (b, b_says) = one, other
    np.testing.assert_array_equal(predictions.ids_among(a, b), [said in b_says for said in a_says])
    assert predictions.same_ids(a, b) == (a_says == b_says)


STEPS = 2 * np.arange(N)
LATIN = np.array([b"\xff%d" % i for i in range(N)])


@pytest.mark.parametrize(
    ("mine", "other", "shared"),
    [
        (2**60 + STEPS.astype(np.uint64), 2**60 + 1 + STEPS, 0),  # float64 tells only every 256th of these
        (2**60 + STEPS.astype(np.uint64), 2**60 + 4 + STEPS, 4),
        (np.uint64(2**64 - 1) - STEPS.astype(np.uint64), -1 - STEPS, 0),
        (LATIN, np.array([f"{i}" for i in range(N)]), 0),
        (np.char.encode(np.array(list("abcdeé")), "utf-8"), np.array(list("éuvwxy")), 1),
        (np.arange(N), np.array([f"{i}" for i in range(4, N + 4)]), 2),
    ],
)
def test_ids_of_two_files_are_compared_exactly_whatever_their_types(mine, other, shared):
    a = dataclasses.replace(random_predictions(0, N), example_id=mine, source="a.npz")
    b = dataclasses.replace(random_predictions(1, N), example_id=other, source="b.npz")
    for test, calibration in ((a, b), (b, a)):
        text = {ids.dtype.kind in "US" for ids in (mine, other)}
        problem = f"{N - shared} ids are missing" if len(text) == 1 else "numbers against strings in the split"
        with pytest.raises(InputError, match=f"{test.source}, field 'example_id': {problem}"):
            predictions.require_ids(test, calibration.example_id, "the split")
        if not shared:
            predictions.refuse_shared(test, calibration)
            continue
        with pytest.raises(InputError, match=rf"'example_id': {shared} ids are in {test.source} too"):
            predictions.refuse_shared(test, calibration)


# --- selecting --------------------------------------------------------------------------------------------------------


def full(n=8, members=()):
    """Every per-example array says which row it belongs to."""
    row = np.arange(n)
    return Predictions(
        label=row % K,
        logits=np.broadcast_to(row[:, None] + np.arange(K) / 10, (*members, n, K)).copy(),
        example_id=1000 - 3 * row,
        features=np.repeat(row[:, None], 2, axis=1).astype(float),
        head_kernel=np.ones((2, K)),
        head_bias=np.arange(K),
        confidence=row / 7,
        group=row.astype(str),
        is_ood=row % 2 == 1,
        weight=row / 2,
        provenance={"split": "test"},
    )


def rows_of(p):
    """The row of each example, by every array: they must agree."""
    row = p.features[:, 0].astype(int)
    np.testing.assert_array_equal(p.label, row % K)
    np.testing.assert_array_equal(p.logits[..., 0], np.broadcast_to(row, p.logits.shape[:-1]))
    np.testing.assert_array_equal(p.example_id, 1000 - 3 * row)
    np.testing.assert_array_equal(p.group, row.astype(str))
    np.testing.assert_array_equal(p.is_ood, row % 2 == 1)
    np.testing.assert_array_equal(p.weight, row / 2)
    np.testing.assert_array_equal(p.confidence, row / 7)
    return row


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("index", [[5, 0, 3], [True, False] * 4, []])
def test_select_keeps_the_arrays_of_an_example_together(members, index):
    index = np.array(index, bool if index and index[0] is True else int)
    chosen = predictions.select(full(members=members), index)
    np.testing.assert_array_equal(rows_of(chosen), np.arange(8)[index])
    assert chosen.logits.shape == (*members, len(chosen), K)
    np.testing.assert_array_equal(chosen.head_bias, np.arange(K))
    assert chosen.provenance == {"split": "test"}


@pytest.mark.parametrize("members", [(), (3,)])
def test_by_id_orders_by_id_and_keeps_rows_together(members):
    ordered = predictions.by_id(full(members=members))
    assert (np.diff(ordered.example_id) > 0).all()
    np.testing.assert_array_equal(rows_of(ordered), np.arange(8)[::-1])


def test_row_numbers_do_not_become_ids_by_ordering_but_by_selecting():
    given = Predictions(GOOD["label"], GOOD["logits"], np.arange(N), ids_given=False)
    assert not predictions.by_id(given).ids_given
    part = predictions.select(given, np.array([4, 2]))
    assert part.ids_given  # the rows of the part have other numbers
    np.testing.assert_array_equal(part.example_id, [4, 2])


# --- rows that two files share ----------------------------------------------------------------------------------------


def random_predictions(seed, n=20, members=()):
    rng = np.random.default_rng(seed)
    return Predictions(rng.integers(0, K, n), rng.normal(size=(*members, n, K)).astype(np.float32), np.arange(n))


def shared_rows(a, b):
    return predictions.shared_rows(predictions.known_by(a), predictions.known_by(b))


@pytest.mark.parametrize("members", [(), (2,)])
def test_shared_rows_are_found_whatever_their_order_and_ids(members):
    a, b = random_predictions(0, members=members), random_predictions(1, members=members)
    assert shared_rows(a, b) == 0
    part = predictions.select(a, np.array([7, 3, 19]))
    mixed = dataclasses.replace(
        b,
        label=np.concatenate([b.label, part.label]),
        logits=np.concatenate([b.logits, part.logits], axis=-2).astype(np.float64),
        example_id=np.arange(23) + 500,
    )
    assert shared_rows(a, mixed) == shared_rows(mixed, a) == 3
    other_label = dataclasses.replace(part, label=(part.label + 1) % K)
    assert shared_rows(a, other_label) == 0


def test_rows_that_repeat_within_a_file_are_not_examples_shared():
    """Two examples may well get the same saturated output; that makes them no copies."""
    logits = np.tile([[9.0, 0, 0, 0]], (10, 1))
    a = Predictions(np.zeros(10, int), logits, np.arange(10))
    b = Predictions(np.zeros(5, int), logits[:5], np.arange(5))
    assert shared_rows(a, b) == 0


def test_files_of_other_classes_or_members_share_nothing():
    a = random_predictions(0)
    narrow = dataclasses.replace(a, label=a.label % 3, logits=a.logits[:, :3])
    assert shared_rows(a, narrow) == 0
    assert shared_rows(a, dataclasses.replace(a, logits=a.logits[None].repeat(2, 0))) == 0


def test_the_log_of_probabilities_ranks_as_the_logits_do(tmp_path):
    """`probs` in place of `logits` give the same MSP to rounding."""
    given = random_predictions(3)
    probs = np.exp(ops.log_softmax(given.logits))
    np.savez(tmp_path / "p.npz", label=given.label, probs=probs)
    np.testing.assert_allclose(
        ops.msp(predictions.load(tmp_path / "p.npz").logits), ops.msp(given.logits), rtol=1e-9, atol=1e-9
    )


# --- in chunks --------------------------------------------------------------------------------------------------------


def same(a, b):
    """Two `Predictions` or `Scored` agree in every array, its dtype and every other field."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if field.name == "score":
            assert list(left) == list(right)
            pairs = [(left[name], right[name]) for name in left]
        else:
            pairs = [(left, right)]
        for x, y in pairs:
            assert getattr(x, "dtype", None) == getattr(y, "dtype", None), field.name
            np.testing.assert_array_equal(x, y, err_msg=field.name)


WRITERS = {"stored": np.savez, "compressed": np.savez_compressed, "ours": lambda path, **a: files.write_npz(path, a)}


@settings(max_examples=60, deadline=None)
@given(any_predictions(), st.sampled_from(sorted(WRITERS)), st.integers(1, 8), st.booleans(), st.booleans())
def test_a_stream_gives_the_rows_that_load_gives(tmp_path_factory, given, writer, rows, probs, ids):
    path = tmp_path_factory.mktemp("stream") / "x.npz"
    if probs:
        given = dataclasses.replace(given, logits=ops.log_softmax(given.logits), log_probabilities=True)
    if not ids:
        given = dataclasses.replace(given, ids_given=False)
    WRITERS[writer](path, **given.arrays(), unknown=np.arange(3))
    files.write_json(path.with_suffix(".json"), {"split": "dev"})
    whole, stream = predictions.load(path), predictions.open_stream(path)
    assert (len(stream), stream.num_classes, stream.shape) == (len(whole), whole.num_classes, whole.logits.shape)
    for name in ("label", "example_id", "group", "is_ood", "weight", "cluster", "ids_given", "provenance", "source"):
        np.testing.assert_array_equal(getattr(stream, name), getattr(whole, name))
    assert stream.log_probabilities == whole.log_probabilities == probs
    for _ in range(2):  # a stream can be read again
        start = 0
        for chunk in stream.chunks(rows):
            assert len(chunk) == min(rows, len(whole) - start)
            same(chunk, predictions.select(whole, np.arange(start, start + len(chunk))))
            predictions.validate(dataclasses.replace(chunk, weight=None))  # its weights may all be 0
            start += len(chunk)
        assert start == len(whole)
    same(predictions.select(whole, np.arange(len(whole))), next(stream.chunks()))


@pytest.mark.parametrize("members", [(), (3,)])
def test_logits_in_fortran_order_are_streamed_where_they_are_stored(tmp_path, members):
    p = random_predictions(0, members=members)
    np.savez(tmp_path / "x.npz", label=p.label, logits=np.asfortranarray(p.logits))
    chunks = list(predictions.open_stream(tmp_path / "x.npz").chunks(7))
    np.testing.assert_array_equal(np.concatenate([chunk.logits for chunk in chunks], axis=-2), p.logits)
    np.savez_compressed(tmp_path / "y.npz", label=p.label, logits=np.asfortranarray(p.logits))
    with pytest.raises(InputError, match=r"y\.npz, field 'logits': compressed in Fortran order"):
        predictions.open_stream(tmp_path / "y.npz")
    np.testing.assert_array_equal(predictions.load(tmp_path / "y.npz").logits, p.logits)


def test_a_stream_refuses_what_load_refuses_when_it_gets_there(tmp_path):
    path = tmp_path / "x.npz"
    logits = np.stack([GOOD["logits"], put(GOOD["logits"], (slice(4, 6), 1), np.nan)])
    np.savez(path, **arrays(logits=logits))
    chunks = predictions.open_stream(path).chunks(3)
    assert len(next(chunks)) == 3
    with pytest.raises(InputError, match=r"rows 3 to 5, field 'logits': 2 of 3 examples.*first example_id 104"):
        next(chunks)
    probs = np.full((N, K), 1 / K)
    np.savez(path, **arrays(logits=None, probs=put(probs, (3, 0), 0.5)))
    chunks = predictions.open_stream(path).chunks(3)
    assert len(next(chunks)) == 3
    with pytest.raises(InputError, match=r"rows 3 to 5, field 'probs': rows do not sum to 1 \(off by up to 0.25\)"):
        next(chunks)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": put(GOOD["label"], 5, K)},
        {"label": GOOD["label"].astype(float)},
        {"label": None},
        {"logits": None},
        {"logits": GOOD["logits"][:5]},
        {"logits": GOOD["logits"].astype(int)},
        {"logits": GOOD["logits"][:, :1], "label": np.zeros(N, int)},
        {"probs": np.full((N, K), 1 / K)},
        {"example_id": put(IDS, 5, 101)},
        {"features": np.zeros((5, 2))},
        {"features": np.zeros(N)},
        {"head_bias": np.zeros(K + 1)},
        {"features": np.full((N, 2), "1")},
        {"head_kernel": np.full((2, K), np.nan)},
        {"weight": np.zeros(N)},
        {"is_ood": np.zeros(N, int)},
    ],
)
def test_what_is_seen_without_the_logits_is_refused_when_the_stream_is_opened(tmp_path, changes):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError) as by_load:
        predictions.load(path)
    with pytest.raises(InputError) as by_stream:
        predictions.open_stream(path)
    assert str(by_stream.value) == str(by_load.value)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_a_damaged_file_is_refused_when_it_is_opened(tmp_path, writer, kind):
    """A bit of a time stamp or of padding may flip unnoticed; then everything is as it was."""
    path = tmp_path / "x.npz"
    given, opened = (
        (random_predictions(0, n=500), lambda path: next(predictions.open_stream(path).chunks()))
        if kind == "logits"
        else (scored(500), predictions.load_scored)
    )
    WRITERS[writer](path, **given.arrays())
    whole, refused = path.read_bytes(), 0
    for at in np.random.default_rng(0).integers(0, len(whole), 40):
        path.unlink()  # what is still mapped keeps its bytes
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            back = opened(path).arrays()
        except InputError:
            refused += 1
        else:
            for name, array in given.arrays().items():
                np.testing.assert_array_equal(back[name], array)
    assert refused > 30


def test_streams_heed_the_sidecar(tmp_path):
    path = saved(tmp_path)
    assert next(predictions.open_stream(path).chunks()).provenance == predictions.load(path).provenance
    np.savez(path, **arrays(label=(GOOD["label"] + 1) % K))
    with pytest.raises(InputError, match="its arrays are not those its sidecar"):
        predictions.open_stream(path)


def test_weights_may_be_0_in_a_whole_chunk(tmp_path):
    np.savez(tmp_path / "x.npz", **arrays(weight=put(np.zeros(N), N - 1, 1.0)))
    assert [chunk.weight.sum() for chunk in predictions.open_stream(tmp_path / "x.npz").chunks(2)] == [0, 0, 1]


@pytest.mark.parametrize("writer", ["stored", "compressed"])
def test_a_stream_needs_memory_for_a_chunk_not_for_the_file(tmp_path, writer):
    n, m, k = 20_000, 3, 100
    logits = np.random.default_rng(0).integers(0, 4, (m, n, k)).astype(np.float32)  # 24 MB
    WRITERS[writer](tmp_path / "x.npz", label=np.zeros(n, np.int32), logits=logits)
    total = logits.sum(dtype=np.float64)
    tracemalloc.start()
    try:
        stream = predictions.open_stream(tmp_path / "x.npz")
        assert sum(chunk.logits.sum(dtype=np.float64) for chunk in stream.chunks(1000)) == total
        assert tracemalloc.get_traced_memory()[1] < logits.nbytes // 3
    finally:
        tracemalloc.stop()


# --- scores and losses ------------------------------------------------------------------------------------------------


def scored(n=N, **changes):
    rng = np.random.default_rng(n)
    good = Scored(
        rng.random(n) < 0.3,
        {"msp": rng.normal(size=n).astype(np.float32), "entropy": -rng.random(n)},
        example_id=np.char.add("pixel ", np.arange(n)[::-1].astype(str)),
        group=rng.integers(0, 3, n),
        is_ood=rng.random(n) < 0.5,
        weight=rng.random(n),
        provenance={"split": "test"},
    )
    return dataclasses.replace(good, **changes)


@st.composite
def any_scored(draw):
    n = draw(st.integers(1, 7))

    def maybe(strategy):
        return draw(st.none() | strategy)

    scores = hnp.arrays(
        draw(st.sampled_from([np.float16, np.float32, np.float64])), n, elements=st.floats(allow_nan=False, width=16)
    )
    names = draw(
        st.just(["score"]) | st.lists(st.sampled_from(["msp", "score", "a_b", "ß", "score_x"]), min_size=1, unique=True)
    )
    loss = hnp.arrays(bool, n) | hnp.arrays(np.uint8, n) | hnp.arrays(np.float32, n, elements=st.floats(0, 9, width=32))
    return Scored(
        draw(loss),
        {name: draw(scores) for name in names},
        example_id=maybe(hnp.arrays(np.int64, n, unique=True) | hnp.arrays("S3", n, unique=True)),
        group=maybe(hnp.arrays("U2", n, elements=st.text("ab", max_size=2)) | hnp.arrays(np.int16, n)),
        is_ood=maybe(hnp.arrays(bool, n)),
        weight=maybe(weights(n)),
        cluster=maybe(hnp.arrays(np.int16, n)),
        provenance={"split": "test"},
    )


@settings(max_examples=80, deadline=None)
@given(any_scored(), st.sampled_from([*WRITERS, "save"]), st.integers(1, 8), st.lists(st.integers(0, 6), max_size=5))
def test_scored_files_give_back_what_was_written_whole_and_in_part(tmp_path_factory, given, writer, rows, index):
    path = tmp_path_factory.mktemp("scored") / "x.npz"
    if writer == "save":
        predictions.save(path, given)
        provenance = {"split": "test", "fingerprint": files.fingerprint(given.arrays())}
    else:
        WRITERS[writer](path, **given.arrays())
        provenance = {}
    assert predictions.is_scored(path)
    back = predictions.load_scored(path)
    given = dataclasses.replace(given, provenance=provenance, source=str(path))
    same(dataclasses.replace(back, score=dict(back.score)), given)
    assert len(back) == len(given.loss)
    assert back.ids_given == given.ids_given == ("example_id" in given.arrays())
    for form in (back, given):  # of a file, and of arrays
        start = 0
        for chunk in form.chunks(rows):
            same(chunk, predictions.select(given, np.arange(start, min(start + rows, len(given)))))
            start += rows
        assert start >= len(given)
    index = np.array([i % len(given) for i in index], int)
    part = predictions.select(back, index)
    same(part, predictions.select(given, index))
    np.testing.assert_array_equal(part.loss, given.loss[index])
    ids = np.arange(len(given)) if given.example_id is None else given.example_id
    np.testing.assert_array_equal(part.example_id, ids[index])
    for name, score in given.score.items():
        np.testing.assert_array_equal(part.score[name], score[index])


def test_the_names_of_scores_on_disk():
    loss, score = np.zeros(2), np.ones(2)
    assert list(Scored(loss, {"score": score}).arrays()) == ["loss", "score"]
    assert list(Scored(loss, {"msp": score}).arrays()) == ["loss", "score_msp"]
    assert list(Scored(loss, {"score": score, "msp": score}).arrays()) == ["loss", "score_score", "score_msp"]


def test_what_is_stored_is_mapped_and_what_is_compressed_is_read_when_asked_for(tmp_path):
    given = scored(1000)
    np.savez(tmp_path / "s.npz", **given.arrays())
    mapped = predictions.load_scored(tmp_path / "s.npz")
    for array in mapped.arrays().values():
        assert isinstance(array.base, mmap.mmap)
        assert not array.flags.writeable
    np.savez_compressed(tmp_path / "c.npz", **given.arrays())
    lazy = predictions.load_scored(tmp_path / "c.npz")
    held = lazy.score["msp"]
    assert lazy.score["msp"] is held  # not read twice while somebody has it
    np.testing.assert_array_equal(held, given.score["msp"])
    assert (len(lazy.score), sorted(lazy.score)) == (2, ["entropy", "msp"])
    with pytest.raises(KeyError):
        lazy.score["other"]


GOOD_SCORED = scored().arrays()
SCORE = GOOD_SCORED["score_msp"]


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("changes", "field", "problem"),
    [
        ({"loss": np.zeros((N, 1))}, "loss", "shape (6, 1), one loss per example"),
        ({"loss": np.array(1.0)}, "loss", "shape ()"),
        ({"loss": np.zeros(0)}, "loss", "is empty (n = 0)"),
        ({"loss": np.zeros(N, complex)}, "loss", "dtype complex128, numbers are needed"),
        ({"loss": np.zeros(N, "U1")}, "loss", "numbers are needed"),
        ({"loss": put(np.zeros(N), [2, 4], np.nan)}, "loss", "2 of 6 are not finite, first in row 2"),
        ({"loss": put(np.zeros(N, np.float16), 5, np.inf)}, "loss", "1 of 6 are not finite, first in row 5"),
        ({"loss": put(np.zeros(N, int), [0, 1, 5], -1)}, "loss", "3 of 6 are negative, first in row 0"),
        ({"loss": np.zeros(5)}, "score_msp", "shape (6,), loss has 5 examples"),
        ({"score_msp": SCORE[:, None]}, "score_msp", "shape (6, 1), loss has 6 examples"),
        ({"score_msp": SCORE.astype(int)}, "score_msp", "dtype int64, floating point is needed"),
        ({"score_entropy": put(SCORE, [1, 3], np.nan)}, "score_entropy", "2 of 6 are NaN, first in row 1"),
        ({"score_msp": None, "score_entropy": None, "score_": SCORE}, "score_", "has no name"),
        ({"example_id": np.arange(N) // 2}, "example_id", "3 of 6 are repeated, first 0"),
        ({"example_id": np.arange(N) / 1}, "example_id", "dtype float64"),
        ({"example_id": np.arange(5)}, "example_id", "shape (5,), loss has 6 examples"),
        ({"group": np.zeros(N)}, "group", "dtype float64"),
        ({"is_ood": np.zeros(N, int)}, "is_ood", "dtype int64"),
        ({"weight": put(np.ones(N), 3, -1.0)}, "weight", "1 of 6 are negative or not finite, first in row 3"),
        ({"weight": np.zeros(N)}, "weight", "all are 0"),
    ],
)
def test_each_rule_of_scored_files_names_the_field(tmp_path, write, changes, field, problem):
    path = tmp_path / "given.npz"
    write(path, **{name: array for name, array in (GOOD_SCORED | changes).items() if array is not None})
    with pytest.raises(InputError) as caught:
        predictions.load_scored(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, field {field!r}: ")
    assert problem in message
    assert "; " in message  # what to do
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"loss": None, "losses": SCORE}, ["field 'loss' is missing", "rename 'losses'"]),
        (
            {"score_msp": None, "score_entropy": None, "scores": SCORE},
            ["'score_<name>') is missing", "rename 'scores'"],
        ),
        ({"score": SCORE}, ["has both 'score' and 'score_"]),
        ({"loss": None, "logits": GOOD["logits"]}, ["field 'loss' is missing", "holds logits: read it with `load`"]),
    ],
)
def test_a_missing_field_of_a_scored_file_names_the_nearest(tmp_path, changes, parts):
    path = tmp_path / "given.npz"
    np.savez(path, **{name: array for name, array in (GOOD_SCORED | changes).items() if array is not None})
    with pytest.raises(InputError, match=r"given\.npz") as caught:
        predictions.load_scored(path)
    for part in parts:
        assert part in str(caught.value)


def test_each_kind_of_file_is_told_from_the_other(tmp_path):
    predictions.save(tmp_path / "s.npz", scored())
    assert predictions.is_scored(tmp_path / "s.npz")
    assert not predictions.is_scored(saved(tmp_path))
    for read in (predictions.load, predictions.open_stream):
        with pytest.raises(InputError, match=r"field 'label' is missing.*it holds losses: read it with `load_scored`"):
            read(tmp_path / "s.npz")


def test_infinite_scores_are_scores():
    given = scored(score={"score": np.array([np.inf, -np.inf, np.inf, 0, 1, 2])})
    assert predictions.validate(given) is given
    with pytest.raises(InputError, match="scored, field 'score': is missing"):
        predictions.validate(scored(score={}))


BLOCK = files._BLOCK // 8  # rows of 8 bytes that are read at a time


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("at", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_rules_hold_across_the_blocks_that_are_read(tmp_path, write, at):
    """Count and row of what is wrong, in a file of several blocks; a repetition that spans two of them."""
    path, n = tmp_path / "x.npz", 2 * BLOCK + 2
    good = {"loss": np.zeros(n), "score": np.zeros(n), "example_id": np.arange(n)}
    write(path, **good | {"score": put(good["score"], [at, n - 1], np.nan)})
    with pytest.raises(InputError, match=f"'score': 2 of {n} are NaN, first in row {at};"):
        predictions.load_scored(path)
    write(path, **good | {"loss": put(good["loss"], [at, n - 1], -1)})
    with pytest.raises(InputError, match=f"'loss': 2 of {n} are negative, first in row {at};"):
        predictions.load_scored(path)
    for other in {at + 1, n - 1}:
        write(path, **good | {"example_id": put(good["example_id"], other, at)})
        with pytest.raises(InputError, match=f"'example_id': 1 of {n} are repeated, first {at};"):
            predictions.load_scored(path)


def test_scored_rows_are_ordered_by_id():
    given = scored(30)
    ordered = predictions.by_id(given)
    assert (ordered.example_id[1:] > ordered.example_id[:-1]).all()
    where = {name: i for i, name in enumerate(given.example_id)}
    same(ordered, predictions.select(given, np.array([where[name] for name in ordered.example_id])))
    assert predictions.by_id(ordered) is ordered
    unnamed = scored(30, example_id=None)
    assert predictions.by_id(unnamed) is unnamed
    predictions.require_ids(unnamed, np.arange(30), "the split")
    with pytest.raises(InputError, match=r"1 ids are missing \(first 30\)"):
        predictions.require_ids(unnamed, np.arange(31), "the split")


def test_a_scored_file_can_be_saved_over_itself(tmp_path):
    """Its arrays are mapped from the file that is replaced."""
    path = tmp_path / "x.npz"
    predictions.save(path, scored(1000))
    again = predictions.load_scored(path)
    predictions.save(path, predictions.select(again, np.arange(999, -1, -1)))
    np.testing.assert_array_equal(predictions.load_scored(path).score["msp"], scored(1000).score["msp"][::-1])
    np.testing.assert_array_equal(again.score["msp"], scored(1000).score["msp"])


@pytest.mark.parametrize("writer", ["stored", "compressed"])
def test_scores_are_opened_and_streamed_in_bounded_memory(tmp_path, writer):
    n, count = 500_000, 10
    score = np.arange(n, dtype=np.float32)
    WRITERS[writer](tmp_path / "x.npz", loss=np.zeros(n, bool), **{f"score_{i}": score + i for i in range(count)})
    tracemalloc.start()
    try:
        given = predictions.load_scored(tmp_path / "x.npz")
        sums = np.zeros(count)
        for chunk in given.chunks(1 << 14):
            sums += [part.sum(dtype=np.float64) for part in chunk.score.values()]
        assert tracemalloc.get_traced_memory()[1] < count * score.nbytes // 2
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(sums, [(score + i).sum(dtype=np.float64) for i in range(count)])


def test_a_sidecar_that_was_changed_is_refused(tmp_path):
    """Tags and splits are no arrays, and yet what is reported depends on them."""
    path = tmp_path / "p.npz"
    given = predictions.Predictions(
        np.array([0, 1]), np.eye(2), np.arange(2), provenance={"tags": {"alpha": 0.25}, "split": "test"}
    )
    predictions.save(path, given)
    assert predictions.load(path).provenance["tags"] == {"alpha": 0.25}
    whole = path.with_suffix(".json").read_text()
    for old, new in (("0.25", "0.75"), ("test", "tess"), ("content_sha256", "content_sha257")):
        assert whole.count(old) == 1
        path.with_suffix(".json").write_text(whole.replace(old, new))
        with pytest.raises(InputError, match=r"p\.json: damaged, or changed by hand"):
            predictions.load(path)
    path.with_suffix(".json").write_text('{"tags": {"alpha": 0.5}}')  # somebody else's
    assert predictions.load(path).provenance["tags"] == {"alpha": 0.5}
