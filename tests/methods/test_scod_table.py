"""Every cell is the area of its score, cost and mix; intervals are of resamples that keep both kinds."""

import numpy as np
import pytest

from sc_jax import ops
from sc_jax.methods.scod_table import joint_risk_band, scod_table

COSTS, SHARES = [(1, 1), (0.75, 0.25), (0, 2)], [0, "0.1", 0.5, 1]


def sample(seed=0, n=60):
    rng = np.random.default_rng(seed)
    scores = {"coarse": rng.integers(0, 9, n) / 4, "fine": rng.normal(size=n)}
    return scores, rng.random(n) < 0.3, rng.random(n) < 0.4


def test_every_cell_is_the_area_of_its_score_cost_and_mix():
    scores, error, is_ood = sample()
    table = scod_table(scores, error, is_ood, COSTS, SHARES)
    assert table.scores == ("coarse", "fine")
    assert table.interval is None
    assert table.area.shape == (2, 3, 4)
    for s, score in enumerate(scores.values()):
        for c, (ood_cost, id_cost) in enumerate(COSTS):
            for p, share in enumerate(SHARES):
                loss = np.where(is_ood, ood_cost, id_cost * error)
                part = float(share)
                weight = 60 * np.where(is_ood, part / is_ood.sum(), (1 - part) / (~is_ood).sum())
                expected = float(ops.aurc(score, loss, weight=weight))
                assert table.area[s, c, p] == pytest.approx(expected, rel=1e-12)


def test_intervals_are_percentiles_of_resamples_within_each_kind():
    scores, error, is_ood = sample()
    table = scod_table(scores, error, is_ood, COSTS[:2], SHARES[1:3], resamples=400, seed=3)
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(kind) for kind in (is_ood, ~is_ood)]
    drawn = []
    for _ in range(400):  # row by row, with other draws
        rows = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        again = {name: score[rows] for name, score in scores.items()}
        drawn.append(scod_table(again, error[rows], is_ood[rows], COSTS[:2], SHARES[1:3]).area)
    expected = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(table.interval, expected, rtol=0.25)
    assert (table.interval[0] < table.area).all()
    assert (table.interval[1] > table.area).all()
    same = scod_table(scores, error, is_ood, COSTS[:2], SHARES[1:3], resamples=400, seed=3)
    np.testing.assert_array_equal(table.interval, same.interval)
    narrow = scod_table(scores, error, is_ood, COSTS[:2], SHARES[1:3], resamples=400, seed=3, level=0.5)
    assert (np.diff(narrow.interval, axis=0) < np.diff(table.interval, axis=0)).all()


def test_one_ood_example_is_in_every_resample():
    scores, error, _ = sample()
    table = scod_table(scores, error, np.arange(60) == 4, COSTS, SHARES, resamples=50)
    assert np.isfinite(table.interval).all()


def test_a_band_is_the_joint_risk_at_its_coverages():
    scores, error, is_ood = sample()
    how = {"ood_cost": 0.75, "id_cost": 0.25, "ood_share": 0.3}
    for score in scores.values():
        band = joint_risk_band(score, error, is_ood, [0.3, "0.55", 1], **how, resamples=300)
        loss = np.where(is_ood, 0.75, 0.25 * error)
        weight = ops.mixture_weight(is_ood, 0.3)
        expected = [float(ops.risk_at_coverage(score, loss, c, weight=weight)) for c in (0.3, 0.55, 1)]
        np.testing.assert_allclose(band.risk, expected, rtol=1e-12)
        np.testing.assert_array_equal(band.coverage, [0.3, 0.55, 1])
        assert (band.low < band.risk).all()
        assert (band.risk < band.high).all()
    # Everything is accepted at 1: the OOD part is fixed, the ID part has the deviation of its error rate.
    scores, error, is_ood = sample(1, 2000)
    band = joint_risk_band(scores["fine"], error, is_ood, [1], **how, resamples=1000)
    rate = error[~is_ood].mean()
    half = 1.96 * 0.25 * 0.7 * (rate * (1 - rate) / (~is_ood).sum()) ** 0.5
    assert (band.high - band.low)[0] / 2 == pytest.approx(half, rel=0.12)
    with pytest.raises(ValueError, match="there must be both"):
        joint_risk_band(scores["fine"], error, np.ones(2000, bool), [1], **how, resamples=10)


def test_tables_of_nothing_are_refused():
    scores, error, is_ood = sample()
    for given in (({}, COSTS, SHARES), (scores, [], SHARES), (scores, COSTS, [])):
        with pytest.raises(ValueError, match="at least"):
            scod_table(given[0], error, is_ood, *given[1:])
    with pytest.raises(ValueError, match="there must be both"):
        scod_table(scores, error, np.zeros(60, bool), COSTS, [0], resamples=10)
    with pytest.raises(ValueError, match="no OOD input"):
        scod_table(scores, error, np.zeros(60, bool), COSTS, [0.5])
