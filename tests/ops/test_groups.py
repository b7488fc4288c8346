"""The report on groups against counting by hand, sample by sample."""

import math
from fractions import Fraction

import brute_force
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from brute_force import SCORES, SOFT_LOSSES, reproducible
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from sc_jax.ops.groups import GroupReport, group_report
from sc_jax.ops.risk_coverage import coverage_at_risk, risk_at_coverage

COVERAGES = (0.001, "0.2", Fraction(1, 3), 0.5, 0.7, 0.9, 1)
FLOATS = ("error", "aurc", "failure_auroc", "risk_at_coverage", "coverage", "selective_risk", "reference_risk")


@pytest.fixture(params=["jax.numpy", "torch", "array_api_strict"])
def device(request):
    return pytest.importorskip(request.param)


def cases(losses=(0, 1), max_size=9):
    """(score [n], loss [n], group [n]) with ties within and across groups."""
    rows = st.lists(
        st.tuples(st.sampled_from(SCORES), st.sampled_from(losses), st.integers(0, 2)), min_size=1, max_size=max_size
    )
    return rows.map(lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True)))


def ratio(part, whole):
    return Fraction(part) / Fraction(whole) if whole else math.nan


def by_hand(score, loss, group, g, coverage):
    """A row of the report by counting."""
    rows = [(s, Fraction(float(e)), h) for s, e, h in zip(score.tolist(), loss, group.tolist(), strict=True)]
    needed = math.ceil(Fraction(str(coverage)) * len(rows))
    threshold = max(t for t, _, _ in rows if sum(s >= t for s, _, _ in rows) >= needed)
    mine = [(s, e) for s, e, h in rows if h == g]
    accepted = [e for s, e in mine if s >= threshold]
    total, total_accepted = sum(e for _, e in mine), sum(accepted)
    own_score, own_loss = score[group == g], loss[group == g]
    hard = set(loss.tolist()) <= {0, 1}
    everyone, everyone_accepted = [e for _, e, _ in rows], [e for s, e, _ in rows if s >= threshold]
    reference = math.nan
    if hard:
        of_wrong = Fraction(everyone_accepted.count(1), everyone.count(1) or 1)
        of_right = Fraction(everyone_accepted.count(0), everyone.count(0) or 1)
        wrong, right = total * of_wrong, (len(mine) - total) * of_right
        reference = ratio(wrong, wrong + right)
    return {
        "n": len(mine),
        "loss": total,
        "error": total / len(mine),
        "aurc": brute_force.aurc(own_score, own_loss),
        "failure_auroc": brute_force.failure_auroc(own_score, own_loss) if hard else math.nan,
        "risk_at_coverage": brute_force.risk_at_coverage(own_score, own_loss, Fraction(str(coverage))),
        "accepted": len(accepted),
        "accepted_loss": total_accepted,
        "coverage": Fraction(len(accepted), len(mine)),
        "selective_risk": ratio(total_accepted, len(accepted)),
        "reference_risk": reference,
    }


def assert_same(report, other, rtol=1e-12):
    for name in GroupReport._fields:
        value, expected = np.asarray(getattr(report, name)), np.asarray(getattr(other, name))
        if name in FLOATS:
            np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol / 10, err_msg=name)
        else:
            np.testing.assert_array_equal(value, expected, err_msg=name)


@given(st.one_of(cases(max_size=7), cases(SOFT_LOSSES, max_size=7)), st.sampled_from(COVERAGES))
@reproducible
def test_report_counts_by_hand(case, coverage):
    score, loss, group = case
    report = group_report(score, loss, group, coverage)
    assert report.group.tolist() == sorted(set(group.tolist()))
    for row, g in enumerate(report.group):
        for name, value in by_hand(score, loss, group, g, coverage).items():
            got = getattr(report, name)[row]
            np.testing.assert_allclose(got, float(value), rtol=1e-12, atol=1e-14, err_msg=name)


@given(cases(max_size=30), st.sampled_from(COVERAGES))
@reproducible
def test_counts_are_integers_and_add_up(case, coverage):
    score, error, group = case
    report = group_report(score, error, group, coverage)
    for name in ("n", "loss", "accepted", "accepted_loss"):
        assert getattr(report, name).dtype == np.int64
    accept = score >= report.threshold
    totals = (len(score), error.sum(), accept.sum(), error[accept].sum())
    assert tuple(x.sum() for x in (report.n, report.loss, report.accepted, report.accepted_loss)) == totals
    assert accept.sum() >= math.ceil(Fraction(str(coverage)) * len(score))
    # the same errors and right ones are accepted in the reference: its risks, weighted by its coverages, are those accepted
    right, wrong = (error == 0).sum(), error.sum()
    of_wrong = error[accept].sum() / wrong if wrong else 0
    of_right = (error[accept] == 0).sum() / right if right else 0
    weight = report.loss * of_wrong + (report.n - report.loss) * of_right
    there = weight > 0
    np.testing.assert_allclose((report.reference_risk * weight)[there].sum(), error[accept].sum(), rtol=1e-12)


def test_one_group_is_its_own_reference():
    rng = np.random.default_rng(0)
    score, error = rng.integers(0, 9, 50), rng.integers(0, 2, 50)
    report = group_report(score, error, np.zeros(50, int), 0.6)
    np.testing.assert_allclose(report.reference_risk, report.selective_risk, rtol=1e-12)


def test_a_score_blind_to_groups_meets_the_reference():
    """Two groups of unequal error, each with the same scores among its right and among its wrong predictions."""
    of_right, of_wrong = np.array([9, 8, 7, 6, 3]), np.array([8, 5, 3, 2])
    score = np.concatenate([of_right, of_wrong, *[of_right] * 7, of_wrong])
    error = np.repeat([0, 1, 0, 1], [5, 4, 35, 4])
    report = group_report(score, error, np.repeat([0, 1], [9, 39]), 0.55)
    assert 0 < report.accepted_loss[0] < 4
    np.testing.assert_allclose(report.selective_risk, report.reference_risk, rtol=1e-12)
    # and with the second group's errors the most confident, it fares worse than its reference
    report = group_report(score + 3 * np.repeat([0, 0, 0, 1], [5, 4, 35, 4]), error, np.repeat([0, 1], [9, 39]), 0.55)
    assert report.selective_risk[1] > report.reference_risk[1]
    assert report.selective_risk[0] < report.reference_risk[0]


def test_selective_classification_can_magnify_a_disparity():
    """A group whose errors are the confident ones gets worse as coverage falls, while the whole gets better."""
    score = np.array([9, 8, 7, 6, 5, 4, 3, 2.5, 9.5, 1])
    error = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 0])
    group = np.array([0] * 8 + [1] * 2)
    everything, half = (group_report(score, error, group, c) for c in (1, 0.5))
    assert risk_at_coverage(score, error, 0.5) < error.mean()
    assert half.selective_risk[1] == 1 > everything.selective_risk[1] == 0.5
    assert half.selective_risk[0] == 0 < everything.selective_risk[0]


def test_a_tie_block_is_accepted_whole_in_every_group():
    score, error = np.array([0.9, 0.5, 0.5, 0.5, 0.1]), np.array([0, 1, 0, 1, 0])
    report = group_report(score, error, np.array([0, 0, 1, 1, 1]), 0.4)
    assert report.threshold == 0.5
    assert report.accepted.tolist() == [2, 2]
    assert report.accepted_loss.tolist() == [1, 1]


def test_groups_may_be_predicted_classes_strings_or_sparse_numbers():
    rng = np.random.default_rng(1)
    score, error, group = rng.normal(size=40), rng.integers(0, 2, 40), rng.integers(0, 3, 40)
    report = group_report(score, error, group)
    for names in (np.array(["ant", "bee", "cat"]), np.array([-7, 0, 2**40]), np.array([3, 200, 255], np.uint8)):
        named = group_report(score, error, names[group])
        assert named.group.tolist() == names.tolist()
        assert_same(named._replace(group=report.group), report)
        assert named.worst()["error"][0] == names[int(np.argmax(report.error))]


def test_group_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(2)
    score, error, group = rng.integers(0, 50, 2000), rng.random(2000) < 0.2, rng.integers(0, 5, 2000)
    report = group_report(score, error, group)
    expected = [roc_auc_score(~error[group == g], score[group == g]) for g in range(5)]
    np.testing.assert_allclose(report.failure_auroc, expected, rtol=1e-12)


def test_groups_without_samples_have_counts_of_0_and_nothing_else():
    score, error = np.array([0.9, 0.8, 0.7]), np.array([0, 1, 0])
    for function in (group_report, jax.jit(group_report, static_argnums=3, static_argnames="groups")):
        report = function(score, error, np.array([2, 0, 2]), 0.5, groups=4)
        assert report.group.tolist() == [0, 1, 2, 3]
        assert report.n.tolist() == [1, 0, 2, 0]
        assert report.accepted.tolist() == [1, 0, 1, 0]
        for name in FLOATS:
            assert np.isnan(getattr(report, name)[1]), name
            assert np.isnan(getattr(report, name)[3]), name


@given(cases(max_size=20), st.integers(0, 2**32 - 1), st.sampled_from(COVERAGES))
@reproducible
def test_weight_is_repeated_rows_and_where_a_selection(case, seed, coverage):
    score, error, group = case
    rng = np.random.default_rng(seed)
    weight = rng.integers(0, 4, len(score))
    weight[rng.integers(len(score))] += 1
    rows = np.repeat(np.arange(len(score)), weight)
    repeated = group_report(score[rows], error[rows], group[rows], coverage, groups=3)
    for dtype in (np.int64, np.uint8, np.float64):
        weighted = group_report(score, error, group, coverage, groups=3, weight=weight.astype(dtype))
        assert weighted.n.dtype == weighted.accepted_loss.dtype == np.int64
        assert_same(weighted, repeated)
    where = weight > 0
    kept = group_report(score[where], error[where], group[where], coverage)
    anything = np.where(where, score, np.nan)
    assert_same(group_report(anything, error, np.where(where, group, 99), coverage, where=where), kept)


def test_real_weights_count_in_their_unit():
    rng = np.random.default_rng(3)
    score, error, group = rng.integers(0, 9, 60), rng.integers(0, 2, 60), rng.integers(0, 3, 60)
    weight = rng.random(60)
    report = group_report(score, error, group, 0.7, weight=weight)
    accept = score >= report.threshold
    assert weight[accept].sum() >= 0.7 * weight.sum() > weight[score > report.threshold].sum()
    for g in range(3):
        mine = group == g
        np.testing.assert_allclose(report.n[g], weight[mine].sum())
        np.testing.assert_allclose(
            report.selective_risk[g], np.average(error[mine & accept], weights=weight[mine & accept])
        )


@given(cases(max_size=25), st.sampled_from(COVERAGES))
@reproducible
def test_the_worst_group_is_the_worst(case, coverage):
    report = group_report(*case, coverage)
    worst = report.worst()
    assert set(worst) == {"error", "aurc", "risk_at_coverage", "selective_risk", "failure_auroc", "coverage"}
    for name, (label, value) in worst.items():
        values = getattr(report, name)
        known = values[~np.isnan(values)]
        if len(known) == 0:
            assert np.isnan(value)
            continue
        assert value == (known.min() if name in ("failure_auroc", "coverage") else known.max())
        assert values[list(report.group).index(label)] == value


def test_a_looser_threshold_accepts_no_fewer_of_any_group():
    rng = np.random.default_rng(4)
    score, error, group = rng.integers(0, 30, 200), rng.integers(0, 2, 200), rng.integers(0, 4, 200)
    accepted = [group_report(score, error, group, c).accepted for c in (0.1, 0.3, 0.6, 0.9, 1)]
    assert (np.diff(accepted, axis=0) >= 0).all()
    assert accepted[-1].tolist() == np.bincount(group).tolist()
    assert coverage_at_risk(score, error, 1) == 1


# Devices and dtypes


def sample_of(seed, n=60):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 15, n) / 4, rng.integers(0, 2, n), rng.integers(0, 4, n)


def test_devices_agree_with_the_host(device):
    case = sample_of(5)
    on_device = [device.asarray(array) for array in case]
    where = np.arange(60) % 7 > 0
    weight = np.arange(60) % 4
    report = jax.jit(group_report, static_argnames="groups") if device is jnp else group_report
    rtol = 3e-6 if device is jnp else 1e-12
    selections = ({}, {"weight": weight}, {"where": where}, {"weight": weight, "where": where})
    for options in selections[:2] if device.__name__ == "array_api_strict" else selections[1:]:
        moved = {name: device.asarray(value) for name, value in options.items()}
        value = report(*on_device, groups=5, **moved)
        assert "int" in str(value.n.dtype)
        assert "int" in str(value.accepted_loss.dtype)
        assert_same(value, group_report(*case, groups=5, **options), rtol)
    worst = value.worst()["selective_risk"]
    expected = group_report(*case, groups=5, **options).worst()["selective_risk"]
    assert int(worst[0]) == expected[0]
    np.testing.assert_allclose(float(worst[1]), expected[1], rtol=rtol)


def test_groups_that_occur_are_found_on_devices_too():
    case = sample_of(6)
    case = case[0], case[1], np.array([3, 5, 8, 13])[case[2]]
    report = group_report(*map(jnp.asarray, case))
    assert report.group.tolist() == [3, 5, 8, 13]
    assert_same(report, group_report(*case), 3e-6)


def test_soft_losses_on_devices():
    score, _, group = sample_of(7)
    loss = np.random.default_rng(7).random(60).astype(np.float32)
    report = jax.jit(lambda *case: group_report(*case, groups=4))(score, loss, group)
    assert_same(
        report._replace(loss=0, accepted_loss=0),
        group_report(score, loss, group)._replace(loss=0, accepted_loss=0),
        3e-6,
    )
    np.testing.assert_allclose(report.accepted_loss, group_report(score, loss, group).accepted_loss, rtol=1e-6)


def test_vmap_over_weights_gives_resamples():
    case = sample_of(8)
    weight = np.random.default_rng(8).multinomial(60, np.full(60, 1 / 60), size=3)
    mapped = jax.jit(jax.vmap(lambda w: group_report(*map(jnp.asarray, case), groups=4, weight=w)))(jnp.asarray(weight))
    for row in range(3):
        one = GroupReport(*(field[row] for field in mapped))
        assert_same(one, group_report(*case, groups=4, weight=weight[row]), 3e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int8, np.uint8, bool])
def test_scores_of_any_dtype_are_ranked_as_they_are(dtype):
    score, error, group = sample_of(9)
    score = (4 * score).astype(dtype)
    wide = group_report(np.asarray(score, np.float64), error, group, 0.4)
    report = group_report(score, error, group, 0.4)
    assert_same(report, wide)


def test_infinite_scores_and_one_sample():
    score, error, group = np.array([np.inf, -np.inf, 0.0, np.inf]), np.array([1, 0, 0, 0]), np.array([0, 0, 1, 1])
    report = group_report(score, error, group, 0.5)
    assert report.accepted.tolist() == [1, 1]
    assert report.selective_risk.tolist() == [1, 0]
    one = group_report(np.array([0.3]), np.array([True]), np.array([4]), 0.01)
    assert (one.n[0], one.accepted[0], one.selective_risk[0], one.aurc[0]) == (1, 1, 1, 1)
    assert np.isnan(one.failure_auroc[0])


def test_what_is_no_report_is_refused():
    score, error, group = np.arange(3.0), np.array([0, 1, 0]), np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"score, loss and group must all be \[n\]"):
        group_report(score, error, group[:2])
    with pytest.raises(ValueError, match=r"weight must be \[n\]"):
        group_report(score, error, group, weight=np.ones((2, 3)))
    for groups in (np.array([0, 1, 2]), np.array([0, -1, 1])):
        with pytest.raises(ValueError, match="must lie in 0 … 1"):
            group_report(score, error, groups, groups=2)
    for coverage in (0, 1.1):
        with pytest.raises(ValueError, match="coverage must lie"):
            group_report(score, error, group, coverage)
    with pytest.raises(ValueError, match="NaN"):
        group_report(np.array([0, np.nan, 1]), error, group)
    with pytest.raises(ValueError, match="weights must be finite"):
        group_report(score, error, group, weight=np.array([1, -1, 1]))
    with pytest.raises(ValueError, match="finite and ≥ 0"):
        group_report(score, np.array([0.5, -1, 0]), group)


def test_nan_scores_on_devices_make_nan():
    case = np.array([0.1, np.nan, 0.3]), np.array([0, 1, 0]), np.array([0, 0, 1])
    report = jax.jit(lambda *case: group_report(*case, groups=2))(*case)
    for name in ("aurc", "risk_at_coverage", "coverage", "selective_risk", "reference_risk", "threshold"):
        assert np.isnan(getattr(report, name)).all(), name
