"""`Predictions`: the waist of the pipe. What a model said about named examples, on disk as npz + JSON.

A file from any tool needs two arrays, `label[n]` and `logits[n, k]`:

    np.savez("test.npz", label=labels, logits=logits)
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import files
from sc_jax.files import InputError

_PER_EXAMPLE = ("label", "example_id", "features", "group", "is_ood")
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
      group: int or str [n], for reports per group.
      is_ood: bool [n], true where the example is from outside the training distribution.
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
    group: np.ndarray | None = None
    is_ood: np.ndarray | None = None
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


def validate(predictions: Predictions) -> Predictions:
    """Returns `predictions` if every rule of the format holds.

    Raises:
      InputError: names the file, the field, what is wrong with it, and what to do.
    """
    p, at = predictions, predictions.source

    def refuse(field: str, problem: str, remedy: str) -> None:
        raise InputError(f"{at}, field {field!r}: {problem}; {remedy}")

    if p.label.ndim != 1:
        refuse(
            "label", f"has shape {p.label.shape}, one class index per example [n] is needed", "save argmax of one-hot"
        )
    n = len(p.label)
    if n == 0:
        refuse("label", "is empty (n = 0)", "write at least one example")
    if p.label.dtype.kind not in "iu":
        refuse("label", f"has dtype {p.label.dtype}, integers are needed", "save label.astype(int)")
    outputs = "probs" if p.log_probabilities else "logits"  # what the file calls them
    if p.logits.dtype.kind != "f":
        refuse(outputs, f"has dtype {p.logits.dtype}, floating point is needed", "save the raw outputs as float32")
    if p.logits.ndim not in (2, 3) or p.logits.shape[-2] != n:
        refuse(outputs, f"has shape {p.logits.shape}, label has {n} examples", f"save [n, k] = [{n}, k] or [m, {n}, k]")
    if 0 in p.logits.shape:
        refuse(outputs, f"has shape {p.logits.shape}: nothing in it", "save [n, k] with k ≥ 2")
    k = p.num_classes
    if k < 2:
        refuse(outputs, f"has k = {k} class", "give both classes of a binary problem: [0, z] for a single logit z")
    for name in _PER_EXAMPLE:
        array = getattr(p, name)
        if array is not None and (array.ndim < 1 or len(array) != n):
            refuse(name, f"has shape {array.shape}, label has {n} examples", f"give it {n} rows")
    if p.features is not None and p.features.ndim != 2:
        refuse("features", f"has shape {p.features.shape}", f"save [n, d] = [{n}, d]")
    width = p.features.shape[1:] if p.features is not None else np.shape(p.head_kernel)[:1]
    for name, needed in (("head_kernel", (*width, k)), ("head_bias", (k,))):
        array = getattr(p, name)
        if array is not None and array.shape != needed:
            refuse(name, f"has shape {array.shape}", f"{needed} fits the other arrays")

    bad = ~np.isfinite(p.logits) & ~(p.log_probabilities & np.isneginf(p.logits))
    bad = bad.any(axis=-1)
    bad = bad.any(axis=0) if bad.ndim == 2 else bad
    if bad.any():
        first = p.example_id[np.argmax(bad)]
        refuse(
            outputs,
            f"{bad.sum()} of {n} examples have NaN or infinite values, first example_id {first}",
            "find out why",
        )
    outside = (p.label < 0) | (p.label >= k)
    if outside.any():
        first = np.argmax(outside)
        refuse(
            "label",
            f"{outside.sum()} of {n} labels lie outside 0..{k - 1}, first {p.label[first]} at example_id {p.example_id[first]}",
            "number the classes from 0",
        )
    if p.example_id.ndim != 1 or p.example_id.dtype.kind not in "iuUS":
        refuse(
            "example_id", f"has dtype {p.example_id.dtype} and shape {p.example_id.shape}", "give n integers or strings"
        )
    unique, count = np.unique(p.example_id, return_counts=True)
    if len(unique) < n:
        first = unique[np.argmax(count > 1)]
        refuse(
            "example_id", f"{n - len(unique)} of {n} are repeated, first {first}", "write every example exactly once"
        )
    if p.is_ood is not None and p.is_ood.dtype != bool:
        refuse("is_ood", f"has dtype {p.is_ood.dtype}", "save booleans")
    return p


def require_ids(predictions: Predictions, expected: np.ndarray, what: str) -> None:
    """Checks that `predictions` holds every id of `expected`, and no other.

    Raises:
      InputError: counts what is missing and what is unexpected, and names the first.
    """
    for problem, ids in (
        ("are missing", np.setdiff1d(expected, predictions.example_id)),
        ("are unexpected", np.setdiff1d(predictions.example_id, expected)),
    ):
        if len(ids):
            raise InputError(
                f"{predictions.source}, field 'example_id': {len(ids)} ids {problem} (first {ids[0]}), compared with "
                f"{what}; predict all of them on the same split"
            )


def load(path: str | Path) -> Predictions:
    """Reads and validates `<name>.npz`, with its sidecar `<name>.json` where there is one.

    Raises:
      InputError: see `validate`; also where the arrays are not those the sidecar was written for.
    """
    path = Path(path)
    arrays = files.read_npz(path)
    for needed in ("label", "logits"):
        if needed not in arrays and not (needed == "logits" and "probs" in arrays):
            near = difflib.get_close_matches(needed, arrays, n=1, cutoff=0.6)
            found = f"rename {near[0]!r}" if near else f"the file has {sorted(arrays)}"
            alternative = " (or 'probs')" if needed == "logits" else ""
            raise InputError(f"{path}: field {needed!r}{alternative} is missing; {found}")
    if "logits" in arrays and "probs" in arrays:
        raise InputError(f"{path}: has both 'logits' and 'probs'; keep the logits")

    provenance = {}
    sidecar = path.with_suffix(".json")
    if sidecar.exists():
        provenance = files.read_json(sidecar)
        if not isinstance(provenance, dict):
            raise InputError(f"{sidecar}: not a JSON object; delete it or write predictions again")
        stated = provenance.get("fingerprint")
        if stated is not None and stated != files.fingerprint(arrays):
            raise InputError(
                f"{path}: its arrays are not those its sidecar {sidecar.name} was written for; predict again"
            )

    known = {name: array for name, array in arrays.items() if name in _KNOWN}
    if "probs" in known:
        known["logits"] = _log_probabilities(known.pop("probs"), path)
    known.setdefault("example_id", np.arange(known["label"].shape[0] if known["label"].ndim else 0))
    return validate(
        Predictions(
            **known,
            log_probabilities="probs" in arrays,
            ids_given="example_id" in arrays,
            provenance=provenance,
            source=str(path),
        )
    )


def _log_probabilities(probs: np.ndarray, path: Path) -> np.ndarray:
    if probs.dtype.kind != "f":
        raise InputError(f"{path}, field 'probs': has dtype {probs.dtype}, floating point is needed; save float32")
    wide = probs.astype(np.float64)
    if probs.size and not (np.isfinite(wide).all() and (wide >= 0).all()):
        raise InputError(f"{path}, field 'probs': has NaN, infinite or negative entries; give probabilities in [0, 1]")
    if probs.size and probs.ndim >= 2:
        worst = np.abs(wide.sum(axis=-1) - 1).max()
        if worst > 1e-2:
            raise InputError(f"{path}, field 'probs': rows do not sum to 1 (off by up to {worst:.3g}); normalise them")
    with np.errstate(divide="ignore"):
        return np.log(wide)


def save(path: str | Path, predictions: Predictions, expected_id: np.ndarray | None = None) -> None:
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
    files.write_json(path.with_suffix(".json"), {**predictions.provenance, "fingerprint": files.fingerprint(arrays)})


def select(predictions: Predictions, index: np.ndarray) -> Predictions:
    """The examples of `index` (int [r] or bool [n]), in that order; the last layer is kept as it is."""
    chosen = {}
    for name in _PER_EXAMPLE:
        array = getattr(predictions, name)
        chosen[name] = None if array is None else array[index]
    return dataclasses.replace(predictions, **chosen, logits=predictions.logits[..., index, :], ids_given=True)


def by_id(predictions: Predictions) -> Predictions:
    """The same examples in increasing order of id, so that files of one split align row by row."""
    ordered = select(predictions, np.argsort(predictions.example_id, kind="stable"))
    return dataclasses.replace(ordered, ids_given=predictions.ids_given)


def shared_rows(a: Predictions, b: Predictions) -> int:
    """How many rows of `b` stand in `a` too, label and logits alike, whatever their order and ids.

    Only rows that are one of a kind in their own file count: saturated outputs repeat without being the same example.
    """

    def rows(p: Predictions) -> np.ndarray:
        logits = np.moveaxis(p.logits, -2, 0).reshape(len(p), -1).astype(np.float64)
        table = np.ascontiguousarray(np.column_stack([p.label.astype(np.float64), logits]))
        unique, count = np.unique(table.view(f"V{table.shape[1] * 8}").reshape(-1), return_counts=True)
        return unique[count == 1]

    return (
        len(np.intersect1d(rows(a), rows(b), assume_unique=True))
        if a.logits[..., :1, :].shape == b.logits[..., :1, :].shape
        else 0
    )
