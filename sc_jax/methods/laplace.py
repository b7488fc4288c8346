"""Last-layer Laplace approximation: a Gaussian posterior over the head, from stored features; its samples are ensemble members.

The network is v = Wᵀx + b = Θᵀφ with φ = (x, 1) [d + 1] and Θ [d + 1, k], linear in what is uncertain, so linearising it changes nothing.
With the prior N(0, I/τ) on all entries of Θ, the bias among them, the posterior is N(Θ*, (H + τI)⁻¹): Θ* is the head of the file, taken
to be the mode, and H the Hessian of the log loss there, summed over the training examples.

    H = Σ_i u_i φ_i φ_iᵀ ⊗ Λ_i,    Λ_i = diag(p_i) − p_i p_iᵀ,    u the survey weights

which for a linear layer under softmax cross-entropy is also its generalised Gauss-Newton matrix. It grows with the number of examples: fit
on those that the head was trained on. Fitted on a smaller split the posterior is as wide as if there had been no more data.

Source: MacKay, Neural Computation 1992; Daxberger et al., "Laplace Redux", NeurIPS 2021; Kristiadi, Hein & Hennig, ICML 2020 (last layer);
Immer et al., ICML 2021 (marginal likelihood). From memory, the formulas derived and held by tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, NoReturn

import numpy as np
from scipy.optimize import brentq
from scipy.special import logsumexp

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.predictions import Predictions, select

FULL_LIMIT = 2000
"""Up to so many parameters, (d + 1)·k, the Hessian is kept whole unless the caller says otherwise."""

CANDIDATES = tuple(10.0**exponent for exponent in range(-4, 7))
"""Prior precisions, 10⁻⁴ to 10⁶, among which `tune` chooses."""

Structure = Literal["full", "kronecker"]


class Laplace(NamedTuple):
    """A posterior over the last layer; parameters in the order of Θ.ravel(), the class moving fastest.

    Attributes:
      mean: Θ* [d + 1, k], the bias in the last row.
      structure: "full", or "kronecker": H ≈ A ⊗ B/Σu, A = Σ_i u_i φ_i φ_iᵀ and B = Σ_i u_i Λ_i.
      eigenvalues: of H; [(d + 1)·k] full, [d + 1, k] Kronecker (a_i b_j/Σu).
      eigenvectors: as columns; of H [P, P], or of A [d + 1, d + 1] and B [k, k].
      log_likelihood: Σ_i u_i ln p_i(y_i) at the mode, in nats.
      prior_precision: τ; chosen_by: "given", "marginal_likelihood" or "held_out_log_loss".
      fitted_on: the split of the Hessian.
    """

    mean: np.ndarray
    structure: Structure
    eigenvalues: np.ndarray
    eigenvectors: tuple[np.ndarray, ...]
    log_likelihood: float
    prior_precision: float
    chosen_by: str
    fitted_on: str

    def log_marginal_likelihood(self, prior_precision: float | None = None) -> float:
        """ln p(labels | τ) ≈ Σ_i u_i ln p_i(y_i) − ½ τ‖Θ*‖² − ½ Σ_j ln(1 + h_j/τ), h_j the eigenvalues of H; τ as chosen by default."""
        tau = self.prior_precision if prior_precision is None else prior_precision
        penalty = tau * np.sum(self.mean**2) + np.log1p(self.eigenvalues / tau).sum()
        return float(self.log_likelihood - penalty / 2)


def hessian(features: np.ndarray, kernel: np.ndarray, bias: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """H = Σ_i u_i φ_i φ_iᵀ ⊗ Λ_i of the summed log loss with respect to Θ = (kernel; bias). It does not depend on the labels.

    Args:
      features: [n, d]; kernel: [d, k]; bias: [k]; weight: u [n], 1 by default.

    Returns:
      [(d + 1)·k, (d + 1)·k], symmetric, positive semi-definite; moving all classes' logits alike costs nothing, so d + 1 eigenvalues
      or more are 0.
    """
    theta = np.vstack([kernel, bias]).astype(np.float64)
    phi = _with_one(features)
    u = np.ones(len(phi)) if weight is None else np.asarray(weight, np.float64)
    p = np.exp(ops.log_softmax(phi @ theta))
    d, k = theta.shape
    whole = np.zeros((d, k, d, k))
    for c in range(k):
        for e in range(c):
            block = (phi * (u * p[:, c] * p[:, e])[:, None]).T @ phi
            whole[:, c, :, e] = whole[:, e, :, c] = -block
            whole[:, c, :, c] += block  # rows of Λ sum to 0: no difference 1 − p, which would round
            whole[:, e, :, e] += block
    return whole.reshape(d * k, d * k)


def fit(
    train: Predictions,
    prior_precision: float | Literal["marginal_likelihood"] = "marginal_likelihood",
    structure: Structure | None = None,
) -> Laplace:
    """The posterior of the last layer, from the features of the examples that it was trained on.

    By marginal likelihood τ is where Σ_j h_j/(h_j + τ) = τ‖Θ*‖² (MacKay), the one stationary point, a maximum.

    Args:
      train: one model, with features, head_kernel and head_bias; its labels enter the marginal likelihood alone. `is_ood` examples are
        left out.
      prior_precision: τ > 0, or "marginal_likelihood"; `tune` chooses it by held-out log loss instead.
      structure: of the Hessian; by default "full" up to `FULL_LIMIT` parameters, "kronecker" beyond.

    Raises:
      InputError: features or the last layer are missing, or do not give the outputs of the file.
      ValueError: τ is not positive and finite; an unknown structure.

    Source: as the module; Kronecker factors: Martens & Grosse, ICML 2015; Ritter, Botev & Barber, ICLR 2018 (from memory).
    """
    given = _with_head(train)
    if given.is_ood is not None and given.is_ood.any():
        if given.is_ood.all():
            _refuse(given, "is_ood", "all examples are from outside", "fit on the training distribution")
        given = select(given, ~given.is_ood)
    theta = np.vstack([given.head_kernel, given.head_bias]).astype(np.float64)
    structure = structure or ("full" if theta.size <= FULL_LIMIT else "kronecker")
    if structure not in ("full", "kronecker"):
        raise ValueError(f"structure must be 'full' or 'kronecker'; it is {structure!r}")
    phi = _with_one(given.features)
    log_p = ops.log_softmax(phi @ theta)
    p = np.exp(log_p)
    wrong = np.abs(p - np.exp(ops.log_softmax(given.logits))).max()
    if wrong > 0.01:
        problem = f"differ from features · head_kernel + head_bias, probabilities by up to {wrong:.2g}"
        _refuse(given, "logits", problem, "save the input of the last layer as features")
    u = np.ones(len(given)) if given.weight is None else given.weight.astype(np.float64)
    if structure == "full":
        values, vectors = np.linalg.eigh(hessian(given.features, given.head_kernel, given.head_bias, u))
        values, vectors = np.maximum(values, 0.0), (vectors,)
    else:
        a, of_a = np.linalg.eigh((phi * u[:, None]).T @ phi)
        b, of_b = np.linalg.eigh(np.diag(u @ p) - (p * u[:, None]).T @ p)
        total = u.sum()
        values, vectors = np.outer(np.maximum(a, 0), np.maximum(b, 0)) / (total if total > 0 else 1.0), (of_a, of_b)
    own = log_p[np.arange(len(given)), given.label]
    likelihood = float(np.sum(np.where(u > 0, u * own, 0.0)))
    chosen_by = "marginal_likelihood" if prior_precision == "marginal_likelihood" else "given"
    tau = (
        _most_likely(values, float(np.sum(theta**2))) if chosen_by == "marginal_likelihood" else float(prior_precision)
    )
    split = train.provenance.get("split", train.source)
    state = Laplace(theta, structure, values, vectors, likelihood, tau, chosen_by, split)
    return with_prior_precision(state, tau)._replace(chosen_by=chosen_by)


def _most_likely(eigenvalues: np.ndarray, norm: float) -> float:
    """τ of most marginal likelihood: effective number of parameters = τ‖Θ*‖²."""

    def excess(log_tau: float) -> float:
        tau = math.exp(log_tau)
        return float(np.sum(eigenvalues / (eigenvalues + tau)) - tau * norm)

    low, high = -40.0, 40.0
    if norm == 0 or excess(low) <= 0 or excess(high) >= 0:
        raise ValueError("the marginal likelihood has no maximum over the prior precision: give one")
    return math.exp(brentq(excess, low, high, xtol=1e-12))


def with_prior_precision(state: Laplace, prior_precision: float) -> Laplace:
    """The same Hessian under another prior.

    Args:
      prior_precision: τ > 0, in 1/(unit of a parameter)².

    Raises:
      ValueError: τ is not positive and finite.
    """
    if not 0 < prior_precision < math.inf:
        raise ValueError(f"prior_precision must be positive and finite; it is {prior_precision}")
    return state._replace(prior_precision=float(prior_precision), chosen_by="given")


def posterior_covariance(state: Laplace) -> np.ndarray:
    """(H + τI)⁻¹ [P, P], P = (d + 1)·k; for small layers, to look at."""
    vectors = state.eigenvectors[0] if state.structure == "full" else np.kron(*state.eigenvectors)
    return (vectors / (state.eigenvalues.ravel() + state.prior_precision)) @ vectors.T


def member_logits(state: Laplace, predictions: Predictions, members: int, seed: int) -> np.ndarray:
    """Logits of heads drawn from the posterior: an ensemble.

    A head is the same for all examples and all splits: the first members of a seed are the same whatever their number.

    Args:
      predictions: features [n, d] of the same network; members: m ≥ 1; seed: of the draws.

    Returns:
      float64 [m, n, k], as `ensemble` takes members.

    Raises:
      InputError: features are missing, or of another width. ValueError: m < 1.
    """
    if members < 1:
        raise ValueError(f"members must be at least 1; it is {members}")
    phi = _features_of(state, predictions)
    deviation = np.random.default_rng(seed).standard_normal((members, state.mean.size))
    deviation /= np.sqrt(state.eigenvalues.ravel() + state.prior_precision)
    if state.structure == "full":
        heads = (deviation @ state.eigenvectors[0].T).reshape(members, *state.mean.shape)
    else:
        of_a, of_b = state.eigenvectors
        heads = of_a @ deviation.reshape(members, *state.mean.shape) @ of_b.T
    return phi @ (state.mean + heads)


def logit_covariance(state: Laplace, predictions: Predictions) -> np.ndarray:
    """Cov(v) = (φᵀ ⊗ I)(H + τI)⁻¹(φ ⊗ I) of each example: [n, k, k].

    Args and Raises: as for `member_logits`.
    """
    phi = _features_of(state, predictions)
    return np.concatenate([covariance(state.prior_precision) for _part, covariance in _covariances(state, phi)])


def _covariances(state: Laplace, phi: np.ndarray) -> Iterator[tuple[slice, Callable[[float], np.ndarray]]]:
    """Chunks of examples, each with its function τ → Cov(v) [rows, k, k]."""
    values, (d, k) = state.eigenvalues, state.mean.shape
    full, (of_a, of_b) = state.structure == "full", (state.eigenvectors[0], state.eigenvectors[-1])
    rows = max(1, (1 << 22) // (k * max(k, state.mean.size if full else d)))

    def of_tau(phi: np.ndarray) -> Callable[[float], np.ndarray]:
        if full:
            along = (phi @ of_a.reshape(d, -1)).reshape(-1, k, state.mean.size)
            return lambda tau: (along / (values + tau)) @ along.swapaxes(1, 2)
        square = (phi @ of_a) ** 2
        return lambda tau: (of_b * (square @ (1 / (values + tau)))[:, None, :]) @ of_b.T

    for start in range(0, len(phi), rows):
        part = slice(start, min(start + rows, len(phi)))
        yield part, of_tau(phi[part])


def mean_field_log_probabilities(state: Laplace, predictions: Predictions) -> np.ndarray:
    """Closed form in place of samples: an approximation of ln of the mean softmax over the posterior.

        p_k ∝ 1 / Σ_j exp(−(v_k − v_j)/√(1 + π/8 Var(v_k − v_j)))

    From E[1/softmax_k] = Σ_j E[e^{v_j − v_k}], with each pair replaced by what MacKay's probit approximation gives for it alone. For two
    classes it is MacKay's. Like the softmax it does not see a shift of all logits, which the prior leaves uncertain; the usual v_k/√(1 + π/8 Var
    v_k) does. It needs all k² covariances of an example: for very many classes take samples.

    Args and Raises: as for `member_logits`.

    Returns:
      Log-probabilities float64 [n, k].

    Source: MacKay, Neural Computation 1992 (two classes); Lu, Ie & Sha, arXiv 2006.07584, 2020 (pairs, "mean field"; from memory). Rows are
    normalised here.
    """
    phi = _features_of(state, predictions)
    return np.concatenate(
        [_mean_field(phi[part] @ state.mean, of(state.prior_precision)) for part, of in _covariances(state, phi)]
    )


def _mean_field(logits: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    of_difference = np.maximum(variance[:, :, None] + variance[:, None, :] - 2 * covariance, 0.0)
    behind = (logits[:, None, :] - logits[:, :, None]) / np.sqrt(1 + math.pi / 8 * of_difference)
    return ops.log_softmax(-logsumexp(behind, axis=-1))


def tune(
    state: Laplace,
    held_out: Predictions,
    members: int | None = None,
    seed: int = 0,
    *,
    candidates: Sequence[float] = CANDIDATES,
) -> Laplace:
    """The same Hessian with the τ among the candidates that has least log loss on a second split.

    An end of the candidates is chosen where the prior hardly matters (the smallest) or the head had better be trusted (the largest).
    Tune what will be used: where the posterior is wide, the closed form and the mean of samples are different classifiers.

    Args:
      held_out: features and labels of examples that the head was not trained on, nor will be reported on; survey weights count, `is_ood`
        examples are left out.
      members: of how many drawn heads the mean probabilities are tuned, with the same draws for every τ; None for
        `mean_field_log_probabilities`.
      seed: of the draws; candidates: τ > 0; of equally good ones the largest, the narrowest posterior, is taken.

    Raises:
      InputError: as `member_logits`; the split is the one that the Hessian is of.
      ValueError: no candidates, or one that is not positive and finite.
    """
    taus = np.sort(np.asarray(candidates, np.float64))[::-1]
    if len(taus) == 0 or not (np.isfinite(taus) & (taus > 0)).all():
        raise ValueError(f"candidates must be positive and finite; they are {list(candidates)}")
    if held_out.provenance.get("split") == state.fitted_on:
        _refuse(held_out, "split", f"is {state.fitted_on!r}, that of the Hessian", "tune on another split")
    known = held_out if held_out.is_ood is None else select(held_out, ~held_out.is_ood)
    of_tau = [with_prior_precision(state, float(tau)) for tau in taus]
    if members is None:
        losses = _closed_form_losses(state, known, taus)
    else:
        drawn = (ops.ensemble_log_probabilities(member_logits(one, known, members, seed)) for one in of_tau)
        losses = [float(ops.negative_log_likelihood(log_p, known.label, weight=known.weight)) for log_p in drawn]
    return of_tau[int(np.argmin(losses))]._replace(chosen_by="held_out_log_loss")


def _closed_form_losses(state: Laplace, known: Predictions, taus: np.ndarray) -> np.ndarray:
    """Total log loss of `mean_field_log_probabilities` for each τ."""
    phi = _features_of(state, known)
    u = np.ones(len(known)) if known.weight is None else known.weight
    losses = np.zeros(len(taus))
    for part, covariance in _covariances(state, phi):
        for i, tau in enumerate(taus):
            log_p = _mean_field(phi[part] @ state.mean, covariance(tau))
            losses[i] += u[part] @ ops.log_loss(log_p, known.label[part])
    return losses


def _with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([np.asarray(features, np.float64), np.ones((len(features), 1))], axis=1)


def _with_head(predictions: Predictions) -> Predictions:
    if predictions.logits.ndim != 2:
        _refuse(predictions, "logits", f"has shape {predictions.logits.shape}, members", "give one model [n, k]")
    for field in ("features", "head_kernel", "head_bias"):
        if getattr(predictions, field) is None:
            _refuse(predictions, field, "is missing", "save it beside the logits")
    if not np.isfinite(predictions.features).all():
        _refuse(predictions, "features", "has NaN or infinite values", "find out why")
    return predictions


def _features_of(state: Laplace, predictions: Predictions) -> np.ndarray:
    """φ [n, d + 1]."""
    if predictions.features is None:
        _refuse(predictions, "features", "is missing", "save the input of the last layer beside the logits")
    d = len(state.mean) - 1
    if predictions.features.shape[1] != d:
        _refuse(predictions, "features", f"has {predictions.features.shape[1]} columns", f"the posterior is of {d}")
    if not np.isfinite(predictions.features).all():
        _refuse(predictions, "features", "has NaN or infinite values", "find out why")
    return _with_one(predictions.features)


def _refuse(predictions: Predictions, field: str, problem: str, remedy: str) -> NoReturn:
    raise InputError(f"{predictions.source}, field {field!r}: {problem}; {remedy}")
