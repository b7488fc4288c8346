"""Confidence scores from the features before the last layer: higher = more like the data they were fitted on.

`fit_…` takes features of a split that the caller names, and returns a state; the score takes a state and other
features. Pure functions of NumPy arrays (computed in float64) or JAX arrays (in at least float32; states made by either
serve both).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_jax_namespace, is_numpy_namespace

from sc_jax.ops.ranking import Array
from sc_jax.ops.scores import _floating, energy, max_logit, one_hot


def _features(features: Array, dimension: int | None = None) -> tuple[Array, Any]:
    x, xp = _floating(features)
    if x.ndim != 2 or x.shape[1] == 0 or (dimension is None and x.shape[0] == 0):
        raise ValueError(f"features must be [n, d] with d ≥ 1, and n ≥ 1 to fit; they are {list(x.shape)}")
    if dimension is not None and x.shape[1] != dimension:
        raise ValueError(f"these features have {x.shape[1]} dimensions; the state was fitted on {dimension}")
    if is_numpy_namespace(xp) and not np.isfinite(x).all():
        raise ValueError("features must be finite")
    return x, xp


def _matmul(a: Array, b: Array, xp: Any) -> Array:
    """a b, in the precision of its operands: by default JAX rounds them to fewer digits on accelerators."""
    return xp.matmul(a, b, precision="highest") if is_jax_namespace(xp) else xp.matmul(a, b)


def _head(x: Array, head_kernel: Array, head_bias: Array, xp: Any) -> tuple[Array, Array]:
    """Kernel [d, k] and bias [k] of the last layer, as wide as its inputs x [n, d]."""
    kernel, bias = xp.asarray(head_kernel, dtype=x.dtype), xp.asarray(head_bias, dtype=x.dtype)
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[1] or bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"the head must be kernel [d, k] and bias [k] with d = {x.shape[1]}; they are {kernel.shape} and {bias.shape}"
        )
    if is_numpy_namespace(xp) and not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
        raise ValueError("head_kernel and head_bias must be finite")
    return kernel, bias


def _eigen(x: Array, xp: Any) -> tuple[Array, Array]:
    """Eigenvalues [m] of xᵀx/n, rising, and their vectors [d, m], m = min(n, d); what is left out has the eigenvalue 0.

    Of fewer rows than columns by x xᵀ, which is the smaller: x xᵀ u = λn u gives the vector xᵀu/√(λn).
    """
    n, d = x.shape
    if n >= d:
        return xp.linalg.eigh(_matmul(x.T, x, xp) / n)
    value, left = xp.linalg.eigh(_matmul(x, x.T, xp) / n)
    vector = _matmul(x.T, left, xp)
    length = xp.sqrt(xp.sum(vector * vector, axis=0, keepdims=True))
    return value, vector / xp.where(length > 0, length, 1.0)


class Mahalanobis(NamedTuple):
    """What `fit_mahalanobis` found.

    Attributes:
      mean: [c, d] of each class; zeros for a class without examples.
      whitening: [d, m], W with W Wᵀ = Σ⁺, m = d or the number of examples where that is less: the columns are scaled eigenvectors, zero where
        Σ is singular.
      count: [c] examples of each class.
    """

    mean: Array
    whitening: Array
    count: Array


def fit_mahalanobis(features: Array, label: Array, num_classes: int | None = None) -> Mahalanobis:
    """Class means μ_c and the shared covariance Σ = (1/n) Σ_i (x_i − μ_{y_i})(x_i − μ_{y_i})ᵀ.

    A singular Σ, as from fewer examples than dimensions, has its pseudo-inverse: directions in which no class varies do
    not count. Singular is an eigenvalue below d·ε times the largest, ε that of the computation.

    Args:
      features: [n, d]; label: int [n], 0..c−1.
      num_classes: c; the largest label + 1 by default, which on devices is not known when the program is built.

    Returns:
      `Mahalanobis`.

    Raises:
      ValueError: shapes disagree, or (host) features are not finite, labels out of range, or no class varies.

    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
    NeurIPS 2018.
    """
    x, xp = _features(features)
    if label.shape != x.shape[:1]:
        raise ValueError(f"label must be [n] = {list(x.shape[:1])}; it is {list(label.shape)}")
    c = int(xp.max(label)) + 1 if num_classes is None else num_classes
    if is_numpy_namespace(xp) and not ((label >= 0) & (label < c)).all():
        raise ValueError(f"labels must be 0..{c - 1}; they span {label.min()}..{label.max()}")
    member = xp.astype(one_hot(label, c), x.dtype)
    count = xp.sum(member, axis=0)
    mean = _matmul(member.T, x, xp) / xp.where(count > 0, count, 1.0)[:, None]
    within = x - xp.take(mean, label, axis=0)
    value, vector = _eigen(within, xp)
    rounding = x.shape[1] * xp.finfo(x.dtype).eps
    if is_numpy_namespace(xp) and value[-1] <= (rounding * np.abs(x).max()) ** 2:
        raise ValueError("no class varies: the shared covariance is 0")
    kept = value > rounding * value[-1]
    scale = xp.where(kept, 1 / xp.sqrt(xp.where(kept, value, 1.0)), 0.0)
    return Mahalanobis(mean, vector * scale[None, :], count)


def mahalanobis(features: Array, state: Mahalanobis) -> Array:
    """−min_c (x − μ_c)ᵀ Σ⁺ (x − μ_c).

    Args:
      features: [n, d]; state: of `fit_mahalanobis`.

    Returns:
      [n], ≤ 0; 0 at a class mean.

    Raises:
      ValueError: the features are not [n, d] with the d of the state, or (host) not finite.

    Source: Lee et al., NeurIPS 2018 (one layer, no input perturbation).

    >>> state = fit_mahalanobis(np.array([[-1.0], [1.0], [9.0], [11.0]]), np.array([0, 0, 1, 1]))
    >>> [round(float(value), 12) for value in 0 + mahalanobis(np.array([[0.0], [3.0], [12.0]]), state)]
    [0.0, -9.0, -4.0]
    """
    x, xp = _features(features, state.whitening.shape[0])
    mean, whitening, count = (xp.asarray(part, dtype=x.dtype) for part in state)
    white_mean, white = _matmul(mean, whitening, xp), _matmul(x, whitening, xp)
    # ‖a‖² − 2a·b + ‖b‖² around the middle of the means finds the class; the difference itself gives the distance.
    middle = xp.mean(white_mean, axis=0, keepdims=True)
    near, far = white_mean - middle, white - middle
    rough = xp.sum(near * near, axis=-1)[None, :] - 2 * _matmul(far, near.T, xp)
    best = xp.argmin(xp.where((count > 0)[None, :], rough, xp.inf), axis=-1)
    gap = _matmul(x - xp.take(mean, best, axis=0), whitening, xp)
    return -xp.sum(gap * gap, axis=-1)


class KnnBank(NamedTuple):
    """What `fit_knn` keeps.

    Attributes:
      unit: [n, d], the features divided by their L2 norms.
    """

    unit: Array


def _unit(x: Array, xp: Any) -> Array:
    """x/‖x‖₂, with 0/‖0‖ = 0; scaled first, so that no square overflows."""
    largest = xp.max(xp.abs(x), axis=-1, keepdims=True)
    x = x / xp.where(largest > 0, largest, 1.0)
    norm = xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True))
    return x / xp.where(norm > 0, norm, 1.0)


def fit_knn(features: Array) -> KnnBank:
    """The L2-normalised features that `knn_distance` looks for neighbours in.

    Args:
      features: [n, d]; a row of zeros stays one.

    Returns:
      `KnnBank`.

    Raises:
      ValueError: the features are not [n, d], or (host) not finite.

    Source: Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022.
    """
    return KnnBank(_unit(*_features(features)))


def knn_distance(features: Array, bank: KnnBank, k: int, *, chunk: int | None = None) -> Array:
    """−‖u − u_(k)‖₂, u = x/‖x‖₂ and u_(k) its k-th nearest among the normalised features of the bank.

    Rows of the bank count, so a feature that is in the bank itself is its own nearest, at 0. Neighbours are ordered by
    the inner product: two whose squared distances differ by less than the rounding of 1 may change places.

    Args:
      features: [n, d]; bank: of `fit_knn`; k: 1 for the nearest.
      chunk: rows that are compared with the bank at a time; by default as many as make 2²⁴ distances.

    Returns:
      [n], in [−2, 0].

    Raises:
      ValueError: the features are not [n, d] with the d of the bank, k is not in 1..size of the bank, or (host) a
        feature is not finite.

    Source: Sun et al., ICML 2022.

    >>> bank = fit_knn(np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]))
    >>> [float(value) for value in knn_distance(np.array([[5.0, 0.0]]), bank, 3)]
    [-2.0]
    """
    x, xp = _features(features, bank.unit.shape[1])
    size = bank.unit.shape[0]
    if not 1 <= k <= size:
        raise ValueError(f"k must be in 1..{size}, the size of the bank; it is {k}")
    unit = xp.asarray(bank.unit, dtype=x.dtype)
    rows = max(1, 2**24 // size if chunk is None else chunk)

    def of(x: Array) -> Array:
        u = _unit(x, xp)
        gap = u - xp.take(unit, _kth_largest(_matmul(u, unit.T, xp), k, xp), axis=0)
        return -xp.sqrt(xp.sum(gap * gap, axis=-1))

    if x.shape[0] <= rows:
        return of(x)
    if is_jax_namespace(xp):
        import jax

        return jax.lax.map(lambda row: of(row[None, :])[0], x, batch_size=rows)
    n = x.shape[0]
    return xp.concat([of(x[start : min(start + rows, n), :]) for start in range(0, n, rows)])


def _kth_largest(similarity: Array, k: int, xp: Any) -> Array:
    """Index of the k-th largest of each row: [n, b] → int [n]."""
    if is_numpy_namespace(xp):
        return np.argpartition(-similarity, k - 1, axis=-1)[:, k - 1]
    if is_jax_namespace(xp):
        import jax

        return jax.lax.top_k(similarity, k)[1][:, k - 1]
    return xp.argsort(similarity, axis=-1, descending=True)[:, k - 1]


class Residual(NamedTuple):
    """What `fit_residual` found.

    Attributes:
      origin: [d], o, where the last layer gives logits 0 (or the nearest to them).
      complement: [d, d − dim], an orthonormal basis of what is orthogonal to the principal space.
    """

    origin: Array
    complement: Array


def fit_residual(features: Array, head_kernel: Array, head_bias: Array, dim: int) -> Residual:
    """The principal space: the `dim` leading eigenvectors of Σ_i (x_i − o)(x_i − o)ᵀ, with o = −(Wᵀ)⁺ b.

    Args:
      features: [n, d]; head_kernel: W [d, k] and head_bias: b [k] of the last layer, logits = x W + b.
      dim: dimensions of the principal space, 0 ≤ dim < d.

    Returns:
      `Residual`. Where eigenvalues on both sides of `dim` are equal, which of their vectors are principal is arbitrary.

    Raises:
      ValueError: shapes disagree, dim is out of range, or (host) a value is not finite.

    Source: Wang et al., "ViM: Out-of-distribution with virtual-logit matching", CVPR 2022.
    """
    x, xp = _features(features)
    d = x.shape[1]
    kernel, bias = _head(x, head_kernel, head_bias, xp)
    if not 0 <= dim < d:
        raise ValueError(f"dim must be in 0..{d - 1}: something of the {d} dimensions must be left over; it is {dim}")
    origin = -_matmul(xp.linalg.pinv(kernel.T), bias, xp)
    x = x - origin[None, :]
    _, vector = _eigen(x, xp)
    known = vector.shape[1]
    if known == d:
        return Residual(origin, vector[:, : d - dim])
    # The examples span at most n dimensions: what completes the principal ones to a basis is the complement.
    principal = vector[:, max(0, known - dim) :][:, ::-1]
    whole = xp.linalg.qr(principal, mode="complete")[0]
    return Residual(origin, whole[:, dim:])


def residual(features: Array, state: Residual) -> Array:
    """−‖R Rᵀ(x − o)‖₂: minus the length of what the principal space leaves of x, R its orthogonal complement.

    Args:
      features: [n, d]; state: of `fit_residual`.

    Returns:
      [n], ≤ 0, in the unit of the features.

    Raises:
      ValueError: the features are not [n, d] with the d of the state, or (host) not finite.

    Source: Wang et al., CVPR 2022.

    >>> x = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> state = fit_residual(x, np.eye(2), np.zeros(2), dim=1)  # the first axis is the principal one
    >>> [float(value) for value in residual(np.array([[7.0, 2.0]]), state)]
    [-2.0]
    """
    x, xp = _features(features, state.complement.shape[0])
    origin, complement = (xp.asarray(part, dtype=x.dtype) for part in state)
    left = _matmul(x - origin[None, :], complement, xp)
    return -xp.sqrt(xp.sum(left * left, axis=-1))


class Vim(NamedTuple):
    """What `fit_vim` found.

    Attributes:
      residual: the principal space.
      alpha: what a unit of residual norm is worth in logits.
    """

    residual: Residual
    alpha: Array


def fit_vim(features: Array, logits: Array, head_kernel: Array, head_bias: Array, dim: int) -> Vim:
    """The principal space, and α = mean max logit / mean residual norm, both on the same training data.

    Args:
      features: [n, d]; logits: [n, k] of the same examples; head_kernel [d, k], head_bias [k], dim as for
        `fit_residual`.

    Returns:
      `Vim`.

    Raises:
      ValueError: as `fit_residual`; logits that are not [n, k]; or (host) α is not positive and finite: the features
        lie in the principal space, or the mean max logit is ≤ 0, as of log-probabilities.

    Source: Wang et al., CVPR 2022.
    """
    xp = array_namespace(features)
    if logits.ndim != 2 or logits.shape[0] != features.shape[0]:
        raise ValueError(f"logits must be [n, k] with n = {features.shape[0]}; they are {list(logits.shape)}")
    state = fit_residual(features, head_kernel, head_bias, dim)
    length, largest = -xp.mean(residual(features, state)), xp.mean(max_logit(logits))
    if is_numpy_namespace(xp):
        whole = np.linalg.norm(np.asarray(features, np.float64) - state.origin, axis=1).mean()
        if length <= features.shape[1] * np.finfo(np.float64).eps * whole:
            raise ValueError(f"the features lie in a space of {dim} dimensions: nothing is left to scale by; lower dim")
        if largest <= 0:
            raise ValueError(
                f"the mean max logit is {largest:.3g}: a residual would add confidence; true logits are needed"
            )
    return Vim(state, largest / length)


def vim(features: Array, logits: Array, state: Vim) -> Array:
    """logsumexp(v) − α‖R Rᵀ(x − o)‖₂: the energy against a virtual logit of the residual.

    It orders as minus the softmax probability of that virtual logit, and does not saturate.

    Args:
      features: [n, d]; logits: [n, k], true logits of the same examples; state: of `fit_vim`.

    Returns:
      [n], in the unit of the logits.

    Raises:
      ValueError: shapes disagree with each other or the state, or (host) a feature is not finite.

    Source: Wang et al., CVPR 2022.
    """
    if logits.ndim != 2 or logits.shape[0] != features.shape[0]:
        raise ValueError(f"logits must be [n, k] with n = {features.shape[0]}; they are {list(logits.shape)}")
    norm = -residual(features, state.residual)
    xp = array_namespace(norm)
    return energy(logits) - xp.asarray(state.alpha, dtype=norm.dtype) * norm
