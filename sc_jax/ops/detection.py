"""How well a score tells right predictions from wrong ones."""

from __future__ import annotations

from array_api_compat import array_namespace

from sc_jax.ops.ranking import Array, Ranking, metric_of_ranking


@metric_of_ranking
def failure_auroc(ranking: Ranking) -> Array:
    """AUROC of failure detection: P(score of a right prediction > score of a wrong one) + ½ P(equal).

    Args:
      score: [n]; loss: [n], 0/1 errors as bool or integers (0.0/1.0 on the host); weight: [..., n].

    Returns:
      [...], in [0, 1]; NaN if all are right or all are wrong.

    Raises:
      ValueError: the losses are not 0/1 errors.

    >>> import numpy as np
    >>> float(failure_auroc(np.array([0.9, 0.8, 0.8, 0.1]), np.array([0, 0, 1, 1])))
    0.875
    """
    xp = array_namespace(ranking.loss)
    if not xp.isdtype(ranking.block_loss.dtype, "integral"):
        raise ValueError("failure_auroc is defined for 0/1 errors, given as bool or integers; the losses are soft")
    right_above = ranking.before - ranking.loss_before
    right_tied = ranking.weight - ranking.block_loss
    wrong, right = ranking.total_loss, ranking.total_weight - ranking.total_loss
    known = (wrong > 0) & (right > 0)
    mean_wrong = ranking.loss / xp.maximum(wrong, 1)[..., None]
    value = xp.sum(mean_wrong * (right_above + right_tied / 2), axis=-1) / xp.maximum(right, 1)
    return xp.where(known, value, xp.nan)
