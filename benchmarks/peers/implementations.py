"""The metrics of other packages, called as their users would, on inputs already in their own arrays.

Import this in `.venv-peers` only (see `requirements.txt` beside it).
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

PACKAGES = ("torch", "torch-uncertainty", "torchmetrics", "scikit-learn", "scipy")

NOTE = (
    "torch-uncertainty is its file metrics/classification/risk_coverage.py, unchanged, loaded without the package around it (whose "
    "import needs lightning and torchvision), and fed one column of probabilities, the least work for its update."
)


def _risk_coverage() -> ModuleType:
    path = metadata.distribution("torch-uncertainty").locate_file(
        "torch_uncertainty/metrics/classification/risk_coverage.py"
    )
    spec = importlib.util.spec_from_file_location("risk_coverage_of_torch_uncertainty", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_TORCH_UNCERTAINTY = _risk_coverage()


def torch_uncertainty(metric: str, score: torch.Tensor, error: torch.Tensor, *options: float) -> float:
    """`metric` of torch-uncertainty by update and compute; score, error [n] (the label, where the only class is 0)."""
    accumulated = getattr(_TORCH_UNCERTAINTY, metric)(*options)
    accumulated.update(score[:, None], error)
    return float(accumulated.compute())


def torchmetrics_auroc(score: torch.Tensor, right: torch.Tensor) -> float:
    """P(score of a right > score of a wrong prediction); score in [0, 1], right [n] as integers."""
    return float(binary_auroc(score, right, validate_args=False))


def torchmetrics_ece(confidence: torch.Tensor, right: torch.Tensor) -> float:
    """ECE in 15 bins."""
    return float(binary_calibration_error(confidence, right, n_bins=15, validate_args=False))


def sklearn_auroc(score: np.ndarray, right: np.ndarray) -> float:
    """P(score of a right > score of a wrong prediction)."""
    return float(roc_auc_score(right, score))


def numpy_aurc(score: np.ndarray, loss: np.ndarray) -> float:
    """The three lines everyone writes; at ties it depends on the order of the rows."""
    ordered = loss[np.argsort(score)[::-1]]
    return float((np.cumsum(ordered, dtype=np.float64) / np.arange(1, len(ordered) + 1)).mean())


def fd_shifts_style_loop(score: np.ndarray, loss: np.ndarray) -> float:
    """AURC over tie-collapsed points as fd-shifts defines it, by a loop over samples; our writing, not the package.

    Trapezoids through one point (coverage, risk) per score value, the first risk held to coverage 0.
    """
    order = np.argsort(score)
    scores, losses = score[order].tolist(), loss[order].tolist()
    accepted, total = len(losses), float(sum(losses))
    coverages, risks = [1.0], [total / accepted]
    for k in range(len(losses) - 1):  # reject from the least confident on
        accepted, total = accepted - 1, total - losses[k]
        if scores[k + 1] != scores[k]:
            coverages.append(accepted / len(losses))
            risks.append(total / accepted)
    coverages.append(0.0)
    risks.append(risks[-1])
    return float(np.trapezoid(risks[::-1], coverages[::-1]))


def to_torch(*arrays: np.ndarray) -> list[torch.Tensor]:
    """The same values as tensors; bool becomes int64, which labels are."""
    return [torch.from_numpy(a.astype(np.int64) if a.dtype == bool else a.copy()) for a in arrays]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """No threads within an operation, of torch or of the libraries under NumPy."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
