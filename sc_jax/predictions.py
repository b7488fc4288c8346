"""The waist of the pipe: what a model said about named examples, on disk as npz + JSON.

`Predictions` hold `label[n]` and `logits[n, k]`; `Scored`, the narrow form for pixels, tokens and other very long
streams, holds `loss[n]` and scores [n]. A file from any tool needs no more than these:

    np.savez("test.npz", label=labels, logits=logits)
    np.savez("pixels.npz", loss=wrong, score_msp=msp, score_entropy=-entropy)

`load` reads a file whole, `open_stream` in chunks of consecutive rows; `load_scored` maps the arrays where they lie.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np

from sc_jax import files
from sc_jax.files import InputError, Member

_OPTIONAL = ("example_id", "group", "is_ood", "weight", "cluster")  # [n], in both forms
_PER_EXAMPLE = ("label", "features", "confidence", *_OPTIONAL)
_KNOWN = (*_PER_EXAMPLE, "logits", "probs", "head_kernel", "head_bias")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Outputs of one model, or of m ensemble members, on n examples of k classes.

    Attributes:
      label: int [n], the true class, 0..k-1.
      logits: float [n, k], or [m, n, k] for m members.
      example_id: int or str [n], unique. Names the example across files; the row number where a file gives none.
      features: float [n, d], input of the last layer.
      head_kernel, head_bias: float [d, k] and [k], the last layer (for scores that need it).
      confidence: float [n], a score of the model's own, such as its head of selection: higher is more confident; infinities are ordered.
      group: int or str [n], for reports per group.
      is_ood: bool [n], true where the example is from outside the training distribution.
      weight: float [n], finite, ≥ 0 and not all 0: how many examples of the population this one stands for.
      cluster: int or str [n], for examples that come together (pixels of one image): resamples draw clusters whole.
      log_probabilities: `logits` are log-probabilities (the file gave `probs`); scores of true logits do not apply.
      ids_given: the file named its examples.
      provenance: what the JSON sidecar says (dataset, split, tags, step, versions …); empty without one.
      source: where it was read from, for messages.
    """

    label: np.ndarray
    logits: np.ndarray
    example_id: np.ndarray
    features: np.ndarray | None = None
    head_kernel: np.ndarray | None = None
    head_bias: np.ndarray | None = None
    confidence: np.ndarray | None = None
    group: np.ndarray | None = None
    is_ood: np.ndarray | None = None
    weight: np.ndarray | None = None
    cluster: np.ndarray | None = None
    log_probabilities: bool = False
    ids_given: bool = True
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str = "predictions"

    def __len__(self) -> int:
        return len(self.label)

    @property
    def num_classes(self) -> int:
        """k."""
        return self.logits.shape[-1]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by the names they have on disk."""
        named = {name: getattr(self, name) for name in _KNOWN if name != "probs"}
        if self.log_probabilities:
            named["probs"] = np.exp(named.pop("logits"))
        if not self.ids_given:
            del named["example_id"]
        return {name: array for name, array in named.items() if array is not None}


class _Columns(Mapping[str, np.ndarray]):
    """Members of a file as arrays, mapped or (compressed) read when asked for, and again once nobody holds them."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self._held: weakref.WeakValueDictionary[str, np.ndarray] = weakref.WeakValueDictionary()

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._held.get(name)
        if array is None:
            array = self._held[name] = self.members[name].array()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


@dataclasses.dataclass(frozen=True)
class Scored:
    """Losses of n examples with one score or several: all that a metric of a ranking needs.

    Attributes:
      loss: bool, int or float [n], finite and ≥ 0; 1 for an error where it is 0/1.
      score: float [n] by name; higher is more confident. Infinities are ordered like any other score, NaN is refused.
      example_id: int or str [n], unique; None where rows have no name but their number.
      group: int or str [n], for reports per group.
      is_ood: bool [n], true where the example is from outside the training distribution.
      weight: float [n], finite, ≥ 0 and not all 0: how many examples of the population this one stands for.
      cluster: int or str [n], for examples that come together (pixels of one image): resamples draw clusters whole.
      provenance: what the JSON sidecar says; empty without one.
      source: where it was read from, for messages.
    """

    loss: np.ndarray
    score: Mapping[str, np.ndarray]
    example_id: np.ndarray | None = None
    group: np.ndarray | None = None
    is_ood: np.ndarray | None = None
    weight: np.ndarray | None = None
    cluster: np.ndarray | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str = "scored"

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def ids_given(self) -> bool:
        """The file named its examples."""
        return self.example_id is not None

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by the names they have on disk."""
        optional = {name: getattr(self, name) for name in _OPTIONAL if getattr(self, name) is not None}
        return {"loss": self.loss, **dict(_score_fields(self)), **optional}

    def chunks(self, rows: int = 1 << 18) -> Iterator[Scored]:
        """Consecutive rows, as `select` of them; the scores of a file are read, not mapped, so that memory stays bounded."""
        columns = self.score.members if isinstance(self.score, _Columns) else self.score
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            score = {
                name: column.rows(start, stop) if isinstance(column, Member) else column[start:stop]
                for name, column in columns.items()
            }
            chosen = _taken(self, ("loss", *_OPTIONAL), slice(start, stop))
            if not self.ids_given:
                chosen["example_id"] = np.arange(start, stop)
            yield dataclasses.replace(self, score=score, **chosen)


Form = TypeVar("Form", Predictions, Scored)


def _refuse(at: str, field: str, problem: str, remedy: str) -> NoReturn:
    raise InputError(f"{at}, field {field!r}: {problem}; {remedy}")


def validate(predictions: Form) -> Form:
    """Returns `predictions`, or `Scored`, if every rule of the format holds.

    Raises:
      InputError: names the file, the field, what is wrong with it, and what to do.
    """
    if isinstance(predictions, Scored):
        _check_scored_form(predictions)
        _check_scores(predictions)
    else:
        _check_form(predictions)
        _check_outputs(predictions)
        _check_labels(predictions)
    _check_optional(predictions)
    return predictions


def _check_form(p: Predictions) -> None:
    """Shapes and types, and that the last layer is finite; logits and features may be `Member`s."""
    at = p.source
    if p.label.ndim != 1:
        problem = f"has shape {p.label.shape}, one class index per example [n] is needed"
        _refuse(at, "label", problem, "save argmax of one-hot")
    n = len(p.label)
    if n == 0:
        _refuse(at, "label", "is empty (n = 0)", "write at least one example")
    if p.label.dtype.kind not in "iu":
        _refuse(at, "label", f"has dtype {p.label.dtype}, integers are needed", "save label.astype(int)")
    outputs = _outputs(p)
    if p.logits.dtype.kind != "f":
        problem = f"has dtype {p.logits.dtype}, floating point is needed"
        _refuse(at, outputs, problem, "save the raw outputs as float32")
    if p.logits.ndim not in (2, 3) or p.logits.shape[-2] != n:
        problem = f"has shape {p.logits.shape}, label has {n} examples"
        _refuse(at, outputs, problem, f"save [n, k] = [{n}, k] or [m, {n}, k]")
    if 0 in p.logits.shape:
        _refuse(at, outputs, f"has shape {p.logits.shape}: nothing in it", "save [n, k] with k ≥ 2")
    k = p.num_classes
    if k < 2:
        remedy = "give both classes of a binary problem: [0, z] for a single logit z"
        _refuse(at, outputs, f"has k = {k} class", remedy)
    _check_columns(p, _PER_EXAMPLE, "label", n)
    if p.features is not None and p.features.ndim != 2:
        _refuse(at, "features", f"has shape {p.features.shape}", f"save [n, d] = [{n}, d]")
    for name in ("features", "head_kernel", "head_bias"):
        array = getattr(p, name)
        if array is not None and array.dtype.kind not in "fiu":
            _refuse(at, name, f"has dtype {array.dtype}, numbers are needed", "save float32")
    width = p.features.shape[1:] if p.features is not None else np.shape(p.head_kernel)[:1]
    for name, needed in (("head_kernel", (*width, k)), ("head_bias", (k,))):
        array = getattr(p, name)
        if array is not None and array.shape != needed:
            _refuse(at, name, f"has shape {array.shape}", f"{needed} fits the other arrays")
        if array is not None and not np.isfinite(array).all():
            problem = f"{(~np.isfinite(array)).sum()} of {array.size} values are NaN or infinite"
            _refuse(at, name, problem, "find out why, or leave the last layer out")


def _outputs(p: Predictions) -> str:
    return "probs" if p.log_probabilities else "logits"  # what the file calls them


def _check_columns(p: Predictions | Scored, names: tuple[str, ...], like: str, n: int) -> None:
    """Lengths of the arrays per example, and types of the optional ones."""
    for name in names:
        array = getattr(p, name)
        if array is not None and (array.ndim < 1 or len(array) != n):
            _refuse(p.source, name, f"has shape {array.shape}, {like} has {n} examples", f"give it {n} rows")
    for name, kinds, remedy in (
        ("example_id", "iuUS", "give n integers or strings"),
        ("group", "biuUS", "give n integers or strings"),
        ("is_ood", "b", "save booleans [n]"),
        ("weight", "f", "save floats [n]"),
        ("confidence", "f", "save floats [n], higher = more confident"),
        ("cluster", "iuUS", "give n integers or strings"),
    ):
        array = getattr(p, name, None)
        if array is not None and (array.ndim != 1 or array.dtype.kind not in kinds):
            _refuse(p.source, name, f"has dtype {array.dtype} and shape {array.shape}", remedy)


def _check_outputs(p: Predictions) -> None:
    bad = ~np.isfinite(p.logits) & ~(p.log_probabilities & np.isneginf(p.logits))
    bad = bad.any(axis=-1)
    bad = bad.any(axis=0) if bad.ndim == 2 else bad
    if bad.any():
        first = p.example_id[np.argmax(bad)]
        problem = f"{bad.sum()} of {len(p)} examples have NaN or infinite values, first example_id {first}"
        _refuse(p.source, _outputs(p), problem, "find out why")


def _check_labels(p: Predictions) -> None:
    """Labels, and the confidence beside them."""
    if p.confidence is not None:
        count, first = _count(p.confidence, np.isnan)
        if count:
            problem = f"{count} of {len(p)} are NaN, first at example_id {p.example_id[first]}"
            _refuse(p.source, "confidence", problem, "find out why, or leave it out")
    k = p.num_classes
    count, first = _count(p.label, lambda label: (label < 0) | (label >= k))
    if count:
        problem = (
            f"{count} of {len(p)} labels lie outside 0..{k - 1}, "
            f"first {p.label[first]} at example_id {p.example_id[first]}"
        )
        _refuse(p.source, "label", problem, "number the classes from 0")


def _check_scored_form(p: Scored) -> None:
    """Shapes and types; the arrays may be `Member`s."""
    at, loss = p.source, p.loss
    if loss.ndim != 1:
        problem = f"has shape {loss.shape}, one loss per example [n] is needed"
        _refuse(at, "loss", problem, "save loss.reshape(-1), and scores in the same order")
    n = len(loss)
    if n == 0:
        _refuse(at, "loss", "is empty (n = 0)", "write at least one example")
    if loss.dtype.kind not in "biuf":
        _refuse(at, "loss", f"has dtype {loss.dtype}, numbers are needed", "save 0/1 or another loss as float32")
    if not p.score:
        _refuse(at, "score", "is missing", "give at least one")
    for field, score in _score_fields(p):
        if field == "score_":
            _refuse(at, field, "has no name", "rename it 'score', or give it one")
        if score.shape != (n,):
            problem = f"has shape {score.shape}, loss has {n} examples"
            _refuse(at, field, problem, f"save one score per example [{n}], and another score under another name")
        if score.dtype.kind != "f":
            problem = f"has dtype {score.dtype}, floating point is needed"
            _refuse(at, field, problem, "save float32, higher = more confident")
    _check_columns(p, _OPTIONAL, "loss", n)


def _score_fields(p: Scored) -> Iterator[tuple[str, Any]]:
    """The scores, one after the other, by the names they have on disk."""
    for name in p.score:
        yield "score" if len(p.score) == 1 and name == "score" else f"score_{name}", p.score[name]


def _check_scores(p: Scored) -> None:
    """Values, in chunks."""
    n = len(p)
    for field, score in _score_fields(p):
        count, first = _count(score, np.isnan)
        if count:
            problem = f"{count} of {n} are NaN, first in row {first}"
            _refuse(p.source, field, problem, "find out why, or leave these rows out")
    for what, bad in (("not finite", lambda x: ~np.isfinite(x)), ("negative", lambda x: x < 0)):
        count, first = _count(p.loss, bad)
        if count:
            _refuse(p.source, "loss", f"{count} of {n} are {what}, first in row {first}", "a loss is finite and ≥ 0")


def _check_optional(p: Predictions | Scored) -> None:
    """Values of the arrays [n] that both forms may have, in chunks."""
    for name in ("example_id", "group", "cluster"):
        array = getattr(p, name)
        if array is not None and array.dtype.kind == "U":  # bytes may be any
            for part in files.chunks(array):
                files.text_of(f"{p.source}, field {name!r}:", part)
    at, n, ids = p.source, len(p), p.example_id
    if ids is not None and not _increasing(ids):
        ordered = ids.read() if isinstance(ids, Member) else np.array(ids)
        ordered.sort()
        same = ordered[1:] == ordered[:-1]
        if same.any():
            problem = f"{same.sum()} of {n} are repeated, first {ordered[np.argmax(same)]}"
            _refuse(at, "example_id", problem, "write every example exactly once")
    if p.weight is not None:
        count, first = _count(p.weight, lambda w: ~(np.isfinite(w) & (w >= 0)))
        if count:
            problem = f"{count} of {n} are negative or not finite, first in row {first}"
            _refuse(at, "weight", problem, "a weight is finite and ≥ 0")
        if _count(p.weight, lambda w: w == 0)[0] == n:
            _refuse(at, "weight", "all are 0", "weigh at least one example, or leave weights out")


def _count(column: np.ndarray | Member, bad: Callable[[np.ndarray], np.ndarray]) -> tuple[int, int]:
    """How many rows are bad, and which is the first."""
    count = first = start = 0
    for part in files.chunks(column):
        wrong = bad(part)
        if not count and wrong.any():
            first = start + int(np.argmax(wrong))
        count += int(wrong.sum())
        start += len(part)
    return count, first


def _increasing(column: np.ndarray | Member) -> bool:
    last = None
    for part in files.chunks(column):
        if not (part[1:] > part[:-1]).all() or (last is not None and not part[0] > last):
            return False
        last = part[-1]
    return True


def _in_one_type(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids, in a type in which they are equal where they are the same; see `ids_among`."""
    common = np.result_type(a, b)
    if common.kind in "iu":
        return a.astype(common, copy=False), b.astype(common, copy=False)
    if a.dtype.kind == b.dtype.kind:
        return a, b
    return _spelled(a), _spelled(b)  # uint64 and int64 too, which have float64 in common


def _spelled(ids: np.ndarray) -> np.ndarray:
    return np.char.encode(ids, "utf-8") if ids.dtype.kind == "U" else ids.astype("S")


def ids_among(ids: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which ids are among the others, bool [n]: text is the same as its UTF-8, an integer the same as its decimal digits.

    Args:
      ids: int, str or bytes [n]; others: [r], of the same type or another.
    """
    return np.isin(*_in_one_type(ids, others))


def same_ids(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the ids [n] of two files are the same row by row, in the sense of `ids_among`."""
    return len(a) == len(b) and np.array_equal(*_in_one_type(a, b))


def require_ids(predictions: Predictions | Scored, expected: np.ndarray, what: str) -> None:
    """Checks that `predictions` hold every id of `expected`, and no other; rows without ids are known by their number.

    Raises:
      InputError: counts what is missing and what is unexpected, and names the first; numbers and strings are refused, since
        they do not have one order.
    """
    ids = np.arange(len(predictions)) if predictions.example_id is None else predictions.example_id
    at = f"{predictions.source}, field 'example_id'"
    if (ids.dtype.kind in "US") != (expected.dtype.kind in "US"):
        raise InputError(f"{at}: numbers against strings in {what}; name examples alike")
    for problem, wrong in (
        ("are missing", np.unique(expected[~ids_among(expected, ids)])),
        ("are unexpected", np.unique(ids[~ids_among(ids, expected)])),
    ):
        if len(wrong):
            raise InputError(
                f"{at}: {len(wrong)} ids {problem} (first {wrong[0]}), compared with {what}; "
                "predict all of them on the same split"
            )


def load(path: str | Path) -> Predictions:
    """Reads and validates `<name>.npz`, with its sidecar `<name>.json` where there is one.

    Raises:
      InputError: see `validate`; also where the arrays are not those the sidecar was written for.
    """
    path = Path(path)
    arrays = files.read_npz(path)
    _require_outputs(arrays, path)
    given = _assembled(arrays, _provenance(arrays, path), path)
    if given.log_probabilities:
        given = dataclasses.replace(given, logits=_log_probabilities(given.logits, given.source))
    return validate(given)


def _require_outputs(arrays: Mapping[str, Any], path: Path) -> None:
    for needed in ("label", "logits"):
        if needed not in arrays and not (needed == "logits" and "probs" in arrays):
            alternative = " (or 'probs')" if needed == "logits" else ""
            hint = "; it holds losses: read it with `load_scored`" if _scored_names(arrays) else ""
            raise InputError(f"{path}: field {needed!r}{alternative} is missing; {_nearest(needed, arrays)}{hint}")
    if "logits" in arrays and "probs" in arrays:
        raise InputError(f"{path}: has both 'logits' and 'probs'; keep the logits")


def _nearest(needed: str, arrays: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(needed, arrays, n=1, cutoff=0.6)
    return f"rename {near[0]!r}" if near else f"the file has {sorted(arrays)}"


def _provenance(arrays: Mapping[str, np.ndarray | Member], path: Path) -> dict[str, Any]:
    """What the sidecar says; refused if it was written for other arrays."""
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        return {}
    provenance = files.read_json(sidecar)
    if isinstance(provenance, dict) and "fingerprint" in provenance:
        files.read_json(sidecar, sealed=True)  # it is ours, and what we write is sealed
    if not isinstance(provenance, dict):
        raise InputError(f"{sidecar}: not a JSON object; delete it or write predictions again")
    stated = provenance.get("fingerprint")
    if stated is not None and stated != files.fingerprint(arrays):
        raise InputError(f"{path}: its arrays are not those its sidecar {sidecar.name} was written for; predict again")
    return provenance


def _assembled(arrays: Mapping[str, Any], provenance: dict[str, Any], path: Path) -> Predictions:
    """The arrays of a file as `Predictions`, with `probs` as they are."""
    known = {name: array for name, array in arrays.items() if name in _KNOWN}
    if "probs" in known:
        known["logits"] = known.pop("probs")
    known.setdefault("example_id", np.arange(known["label"].shape[0] if known["label"].ndim else 0))
    return Predictions(
        **known,
        log_probabilities="probs" in arrays,
        ids_given="example_id" in arrays,
        provenance=provenance,
        source=str(path),
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """`Predictions` of a file that need not fit into memory; see `open_stream`.

    Attributes:
      label, example_id, group, is_ood, weight, cluster: [n], validated.
      shape: of the logits, (n, k) or (m, n, k).
      log_probabilities, ids_given, provenance, source: as in `Predictions`.
    """

    label: np.ndarray
    example_id: np.ndarray
    group: np.ndarray | None
    is_ood: np.ndarray | None
    weight: np.ndarray | None
    cluster: np.ndarray | None
    shape: tuple[int, ...]
    log_probabilities: bool
    ids_given: bool
    provenance: dict[str, Any]
    source: str
    _lazy: Predictions  # its logits and features are `Member`s

    def __len__(self) -> int:
        return len(self.label)

    @property
    def num_classes(self) -> int:
        """k."""
        return self.shape[-1]

    def chunks(self, rows: int | None = None) -> Iterator[Predictions]:
        """Validated `Predictions` of consecutive rows, as `select` gives them of the whole.

        Args:
          rows: examples at a time; without, as many as have about 16 MiB of logits in float64.

        Raises:
          InputError: a chunk breaks a rule of the format, or the file is damaged.
        """
        lazy, n = self._lazy, len(self)
        rows = rows or max(1, (1 << 21) * n // math.prod(self.shape))
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            at = f"{self.source}, rows {start} to {stop - 1}"
            logits = lazy.logits.rows(start, stop, axis=-2)
            if lazy.log_probabilities:
                logits = _log_probabilities(logits, at)
            features = None if lazy.features is None else lazy.features.rows(start, stop)
            columns = _taken(lazy, ("label", "confidence", *_OPTIONAL), slice(start, stop))
            chunk = dataclasses.replace(lazy, **columns, logits=logits, features=features, ids_given=True, source=at)
            _check_outputs(chunk)
            yield dataclasses.replace(chunk, source=self.source)


def open_stream(path: str | Path) -> Stream:
    """Opens `<name>.npz` to be read in chunks of consecutive rows, in memory that does not grow with the file.

    What is one number per example is read and validated at once, and so are all shapes and types; logits and features are
    read chunk by chunk, and the logits validated there. With a sidecar the fingerprint is checked first, in one pass over
    the file; without one, the CRC of each array. Compressed logits [m, n, k] are decompressed at m positions, each found
    by decompressing what lies before it: about m/2 times the work of `load`.

    Args:
      path: a file as for `load`.

    Returns:
      `Stream`, whose `chunks(rows)` together are `load(path)`.

    Raises:
      InputError: as for `load`; also where logits are compressed in Fortran order, which cannot be read by rows.
    """
    path = Path(path)
    npz = files.open_npz(path)
    _require_outputs(npz, path)
    provenance = _provenance(npz, path)
    large = ("logits", "probs", "features")
    arrays = {name: npz[name] if name in large else npz[name].array() for name in _KNOWN if name in npz}
    lazy = _assembled(arrays, provenance, path)
    _check_form(lazy)
    _check_labels(lazy)
    _check_optional(lazy)
    for member in (lazy.logits, lazy.features):
        if member is not None:
            member.rows(0, 0)  # what is damaged, or cannot be read by rows, is refused here
    shared = ("label", *_OPTIONAL, "log_probabilities", "ids_given", "provenance", "source")
    return Stream(**{name: getattr(lazy, name) for name in shared}, shape=lazy.logits.shape, _lazy=lazy)


def is_scored(path: str | Path) -> bool:
    """Whether the file holds `Scored` rather than `Predictions`, by the names of its arrays."""
    with files.open_npz(path) as npz:
        return _scored_names(npz)


def _scored_names(arrays: Mapping[str, Any]) -> bool:
    return "loss" in arrays and "logits" not in arrays and "probs" not in arrays


def load_scored(path: str | Path) -> Scored:
    """Opens and validates a `Scored` file, in memory that does not grow with the number of scores.

    Uncompressed arrays are mapped, not copied. Of a compressed file a score is read when it is asked for.

    Args:
      path: `<name>.npz` with `loss` and either `score` or one `score_<name>` or more, all [n]; `<name>.json` is its sidecar.

    Returns:
      `Scored`; its arrays are read-only.

    Raises:
      InputError: see `validate`; also where the arrays are not those the sidecar was written for.
    """
    path = Path(path)
    npz = files.open_npz(path)
    score = {name.removeprefix("score_"): member for name, member in npz.items() if name.startswith("score_")}
    if "score" in npz and score:
        raise InputError(
            f"{path}: has both 'score' and 'score_{next(iter(score))}'; give each score a name: score_<name>"
        )
    if "score" in npz:
        score = {"score": npz["score"]}
    for needed, there in (("loss", "loss" in npz), ("score", score)):
        if not there:
            hint = "; it holds logits: read it with `load`" if {"logits", "probs"} & set(npz) else ""
            alternative = " (or 'score_<name>')" if needed == "score" else ""
            raise InputError(f"{path}: field {needed!r}{alternative} is missing; {_nearest(needed, npz)}{hint}")
    optional = {name: npz[name] for name in _OPTIONAL if name in npz}
    lazy = Scored(npz["loss"], score, **optional, provenance=_provenance(npz, path), source=str(path))
    validate(lazy)
    mapped = {name: member.array() for name, member in optional.items()}
    return dataclasses.replace(lazy, loss=npz["loss"].array(), score=_Columns(score), **mapped)


def _log_probabilities(probs: np.ndarray, at: str) -> np.ndarray:
    if probs.dtype.kind != "f":
        _refuse(at, "probs", f"has dtype {probs.dtype}, floating point is needed", "save float32")
    wide = probs.astype(np.float64)
    if probs.size and not (np.isfinite(wide).all() and (wide >= 0).all()):
        _refuse(at, "probs", "has NaN, infinite or negative entries", "give probabilities in [0, 1]")
    if probs.size and probs.ndim >= 2:
        worst = np.abs(wide.sum(axis=-1) - 1).max()
        if worst > 1e-2:
            _refuse(at, "probs", f"rows do not sum to 1 (off by up to {worst:.3g})", "normalise them")
    with np.errstate(divide="ignore"):
        return np.log(wide)


def save(path: str | Path, predictions: Predictions | Scored, expected_id: np.ndarray | None = None) -> None:
    """Validates and writes `<name>.npz`, then `<name>.json` with its fingerprint: the sidecar's presence means done.

    Args:
      path: ends in `.npz`.
      predictions: what to write.
      expected_id: ids that must be there exactly once, and no others.
    """
    path = Path(path)
    predictions = validate(dataclasses.replace(predictions, source=str(path)))
    if expected_id is not None:
        require_ids(predictions, expected_id, "the split that was predicted")
    arrays = predictions.arrays()
    files.write_npz(path, arrays)
    about = {**predictions.provenance, "fingerprint": files.fingerprint(arrays)}
    files.write_json(path.with_suffix(".json"), about, seal=True)


def select(predictions: Form, index: np.ndarray) -> Form:
    """The examples of `index` (int [r] or bool [n]), in that order; the last layer is kept as it is.

    Rows without ids are known by the numbers they had.
    """
    if isinstance(predictions, Scored):
        chosen = _taken(predictions, ("loss", *_OPTIONAL), index)
        if not predictions.ids_given:
            chosen["example_id"] = np.arange(len(predictions))[index]
        score = {name: array[index] for name, array in predictions.score.items()}
        return dataclasses.replace(predictions, **chosen, score=score)
    chosen = _taken(predictions, _PER_EXAMPLE, index)
    return dataclasses.replace(predictions, **chosen, logits=predictions.logits[..., index, :], ids_given=True)


def _taken(p: Predictions | Scored, names: tuple[str, ...], index: np.ndarray | slice) -> dict[str, np.ndarray | None]:
    return {name: None if getattr(p, name) is None else getattr(p, name)[index] for name in names}


def by_id(predictions: Form) -> Form:
    """The same examples in increasing order of id, so that files of one split align row by row."""
    ids = predictions.example_id
    if ids is None or _increasing(ids):
        return predictions
    ordered = select(predictions, np.argsort(ids, kind="stable"))
    if isinstance(ordered, Predictions):
        ordered = dataclasses.replace(ordered, ids_given=predictions.ids_given)
    return ordered


_ABOUT = ("dataset", "split", "data_fingerprint", "checkpoint", "tags")
"""What of a sidecar says which examples these are, and of which model."""


class Examples(NamedTuple):
    """What a file's examples and model are known again by, when the file is gone. See `known_by`.

    Attributes:
      source: where it was read from, for messages; n: how many count: those that are not OOD.
      about: of the sidecar: data set, split, fingerprint of the data set, checkpoint, tags, where it has them.
      num_classes: k; form: "logits" or "probabilities", with the number of members.
      example_id: int or str [n]; None where the file gives none.
      rows: uint64 [≤ n], increasing, hashes of label and logits, as float32, of each row that is one of a kind in the file; None where rows are not
        compared.
    """

    source: str
    n: int
    about: Mapping[str, Any]
    num_classes: int
    form: str
    example_id: np.ndarray | None = None
    rows: np.ndarray | None = None


def known_by(p: Predictions | Stream, rows: bool = True) -> Examples:
    """What these examples are known again by.

    Args:
      p: the file; rows: also by its rows. Of a stream, which is too long for it, never.
    """
    return Examples(
        p.source,
        len(p) if p.is_ood is None else int((~p.is_ood).sum()),
        {key: p.provenance[key] for key in _ABOUT if key in p.provenance},
        p.num_classes,
        _form(p),
        p.example_id if p.ids_given else None,
        _row_hashes(p) if rows and isinstance(p, Predictions) else None,
    )


def _row_hashes(p: Predictions) -> np.ndarray:
    """Only rows that are one of a kind count: saturated outputs repeat without being the same example."""
    hashes = np.empty(len(p), np.uint64)  # the rows themselves would be held three times over
    step = max(1, (1 << 17) // (p.logits.size // len(p)))
    for start in range(0, len(p), step):
        logits = np.moveaxis(p.logits[..., start : start + step, :], -2, 0)
        label = p.label[start : start + step].astype(np.float32)
        with np.errstate(over="ignore"):  # one file may hold float32 of what the other has in float64
            table = np.column_stack([label, logits.reshape(len(label), -1).astype(np.float32)])
        digests = b"".join(hashlib.blake2b(values, digest_size=8).digest() for values in table)
        hashes[start : start + step] = np.frombuffer(digests, "<u8")
    unique, count = np.unique(hashes, return_counts=True)
    return unique[count == 1]


def shared_rows(a: Examples, b: Examples) -> int:
    """How many rows of one stand in the other too, label and logits alike, whatever their order and ids."""
    if a.rows is None or b.rows is None or (a.num_classes, a.form) != (b.num_classes, b.form):
        return 0
    return len(np.intersect1d(a.rows, b.rows, assume_unique=True))


def _one_split(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.get("split") is not None and all(a.get(key) == b.get(key) for key in ("dataset", "split"))


def _ids_decide(a: Examples, b: Examples) -> bool:
    """Ids of one data set name the examples; rows alike are examples alike, which tables of few columns have."""
    one_data_set = a.about.get("data_fingerprint") is not None and _same(a, b, "data_fingerprint")
    return one_data_set and a.example_id is not None and b.example_id is not None


def _same(a: Examples, b: Examples, key: str) -> bool:
    return a.about.get(key) == b.about.get(key)


def _shared(a: Examples, b: Examples) -> str | None:
    """How it shows that `b` holds examples of `a`: by ids, or by rows that are one of a kind in both, unless ids decide."""
    if a.example_id is not None and b.example_id is not None:
        ids = np.unique(b.example_id[ids_among(b.example_id, a.example_id)])
        if len(ids):
            return f", field 'example_id': {len(ids)} ids are in {a.source} too (first {ids[0]})"
    repeated = 0 if _ids_decide(a, b) else shared_rows(a, b)
    if repeated > max(1, b.n // 100):
        return f": {repeated} of its {b.n} rows (label and logits) are in {a.source} too"
    return None


def _refuse_other_model(a: Examples, b: Examples) -> None:
    """Refuses `a`, which is to be of the model behind `b`."""
    problem = None
    differ = [key for key in ("checkpoint", "tags") if key in a.about and key in b.about and not _same(a, b, key)]
    if differ:
        problem = f": is of another model than {b.source} ({differ[0]} differ in their sidecars)"
    elif a.num_classes != b.num_classes:
        problem = f", field 'logits': k = {a.num_classes} classes, {b.source} has {b.num_classes}"
    elif a.form != b.form:
        problem = f": holds {a.form}, {b.source} holds {b.form}"
    if problem is not None:
        raise InputError(f"{a.source}{problem}; give another split of the same model in the same form")


def refuse_shared(test: Predictions | Stream, calibration: Predictions, what: str = "calibration") -> None:
    """Refuses a calibration file that holds examples of the test file.

    Args:
      test: what is reported on; calibration: what is fitted on; what: that file by name, for messages.

    Raises:
      InputError: the files are the same, name the same split or another model, or share examples: by id, or by rows of
        label and logits that are one of a kind in both, unless their sidecars name one data set, whose ids then decide.
    """
    a, b = (known_by(p, rows=False) for p in (test, calibration))
    named = test.source != Predictions.source
    same_file = named and Path(test.source).resolve() == Path(calibration.source).resolve()
    if same_file or _one_split(a.about, b.about):
        raise InputError(
            f"{calibration.source}: the {what} file is of the same split as {test.source}; "
            "what is fitted on a split is not reported on it: give another split of the same model"
        )
    _refuse_other_model(b, a)
    if not isinstance(test, Stream) and not _ids_decide(a, b):
        a, b = known_by(test), known_by(calibration)
    problem = _shared(a, b)
    if problem is not None:
        raise InputError(
            f"{calibration.source}{problem}; give a {what} file that shares no example, or, if these are other examples, "
            "other ids"
        )


def refuse_fitted_on(given: Predictions, fitted_on: Iterable[Examples], what: str) -> None:
    """Refuses examples that something was fitted on, by the rule of `refuse_shared`, and outputs of another model.

    Args:
      given: what it is to be applied to; fitted_on: splits; what: was fitted on them, for messages.

    Raises:
      InputError: as `refuse_shared`, but for files of one name: what lies there now may be another.
    """
    mine = known_by(given)
    for on in fitted_on:
        problem = f": is of the same split as {mine.source}" if _one_split(mine.about, on.about) else _shared(mine, on)
        if problem is not None:
            raise InputError(
                f"{mine.source}: holds examples that {what} was fitted on ({on.source}{problem}); "
                "what is fitted on a split is not reported on it: give another split of the same model"
            )
        _refuse_other_model(mine, on)


def _form(p: Predictions | Stream) -> str:
    shape = p.shape if isinstance(p, Stream) else p.logits.shape
    return ("probabilities" if p.log_probabilities else "logits") + (
        f" of {shape[0]} members" if len(shape) == 3 else ""
    )


def refuse_unknown_only(p: Predictions | Stream | Scored) -> None:
    """Refuses a file in which nothing counts: all examples are OOD, or all that are not have weight 0."""
    known = np.ones(len(p), bool) if p.is_ood is None else ~p.is_ood
    if not known.any():
        raise InputError(
            f"{p.source}, field 'is_ood': all examples are OOD; give examples of the training distribution too"
        )
    if p.weight is not None and not p.weight[known].any():
        raise InputError(f"{p.source}, field 'weight': all examples that are not OOD have weight 0; weigh at least one")


def read_files(paths: Sequence[str], calibration: str | None) -> tuple[list[Predictions], Predictions | None]:
    """The files in order of id, checked singly and against the calibration file."""
    with ThreadPoolExecutor(2) as pool:  # hashing and checking work outside the interpreter lock
        *tests, tuning = pool.map(lambda path: None if path is None else by_id(load(path)), [*paths, calibration])
    for given in [*tests, *([] if tuning is None else [tuning])]:
        refuse_unknown_only(given)
    if tuning is not None:
        for test in tests:
            refuse_shared(test, tuning)
    return tests, tuning
