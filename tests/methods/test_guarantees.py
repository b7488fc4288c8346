"""Choices against brute force over every threshold, and promises against exact sums over calibration sets."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction

import made_up
import numpy as np
import pytest
from scipy import stats

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import guarantees, selector
from sc_jax.predictions import Predictions, select

LTT = ("ltt_fixed_sequence", "ltt_bonferroni", "ltt_holm")


def cells(seed, n=40, values=12, rate=0.6):
    """Scores with ties, whose errors are rarer the higher they are."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, values, n) / values
    return score, rng.random(n) < rate * (1 - score)


def sgr_by_hand(score, error, risk, delta):
    """The algorithm as it is written, on sorted examples; the answer is the set of accepted rows, or None."""
    s = np.sort(score)
    m, low, high, answer = len(s), 0, len(s) - 1, None
    steps = math.ceil(math.log2(m)) if m > 1 else 1
    for _ in range(steps):
        middle = math.ceil((low + high) / 2)
        accepted = score >= s[middle]
        k, size = int(error[accepted].sum()), int(accepted.sum())
        bound = 1.0 if k == size else stats.beta.ppf(1 - delta / steps, k + 1, size - k)
        if bound > risk:
            low = middle
        else:
            high = middle
            if answer is None or size > answer[0].sum():
                answer = accepted, bound
    return answer


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 60, 200])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.6, 1.5])
def test_sgr_is_its_algorithm(n, rate):
    for seed in range(6):
        score, error = cells(seed, n, 30, rate)
        attained = guarantees.Cells.attained(score, error)
        chosen = guarantees.sgr(attained.n, attained.errors, 0.3, 0.1)
        expected = sgr_by_hand(score, error, 0.3, 0.1)
        if expected is None:
            assert chosen.last == -1
            assert np.isnan(chosen.bound)
        else:
            np.testing.assert_array_equal(score >= attained.score[chosen.last], expected[0])
            np.testing.assert_allclose(chosen.bound, expected[1], rtol=1e-9)
            assert chosen.bound <= 0.3


def test_sgr_accepts_nothing_where_nothing_is_feasible():
    """The last probed threshold accepts the most confident example alone, whose bound is far above the target."""
    n, errors = np.ones(64, int), np.arange(64) % 5 == 2
    assert guarantees.sgr(n, errors, 0.02, 0.05).last == -1


def test_rows_of_counts_are_chosen_one_by_one():
    rng = np.random.default_rng(0)
    n = rng.multinomial(80, np.ones(10) / 10, 30)
    errors = rng.binomial(n, np.linspace(0, 0.5, 10))
    rows = guarantees.sgr(n, errors, 0.2, 0.1)
    assert len(set(rows.last)) > 2
    for i in range(30):
        one = guarantees.sgr(n[i], errors[i], 0.2, 0.1)
        assert one.last == rows.last[i]
        np.testing.assert_equal(one.bound, rows.bound[i])
        for alpha in (0.05, 0.2):
            one = guarantees.conformal_risk_control(n[i], errors[i], alpha)
            assert one == guarantees.conformal_risk_control(n, errors, alpha)[i]
    p = ops.binomial_p_value(errors.cumsum(axis=1), n.cumsum(axis=1), 0.2)
    for procedure in ("fixed_sequence", "bonferroni", "holm"):
        together = guarantees.learn_then_test(p, 0.1, procedure)
        np.testing.assert_array_equal(together, [guarantees.learn_then_test(row, 0.1, procedure) for row in p])


def test_empty_cells_change_nothing():
    rng = np.random.default_rng(1)
    for _ in range(20):
        n = rng.integers(1, 5, 12)
        errors = rng.binomial(n, 0.1)
        wide = np.zeros((2, 30), int)
        at = np.sort(rng.permutation(30)[:12])
        wide[0, at], wide[1, at] = n, errors
        for choose in (
            lambda n, e: guarantees.sgr(n, e, 0.3, 0.2).last,
            lambda n, e: guarantees.conformal_risk_control(n, e, 0.15),
        ):
            narrow = int(choose(n, errors))
            assert int(choose(*wide)) == (-1 if narrow < 0 else at[narrow])


def holm_by_hand(p, delta):
    """Rejected hypotheses, as the paper has it: stop at the first that is not."""
    rejected = []
    for i, j in enumerate(np.argsort(p, kind="stable")):
        if p[j] > delta / (len(p) - i):
            break
        rejected.append(j)
    return rejected


def test_tests_of_many_thresholds_by_hand():
    rng = np.random.default_rng(0)
    for g in (1, 2, 7):
        for _ in range(60):
            p = rng.random(g) * rng.choice([0.01, 0.1, 1.0], g)
            walked = 0
            while walked < g and p[walked] <= 0.1:
                walked += 1
            assert guarantees.learn_then_test(p, 0.1) == walked - 1
            assert guarantees.learn_then_test(p, 0.1, "bonferroni") == max(np.flatnonzero(p <= 0.1 / g), default=-1)
            assert guarantees.learn_then_test(p, 0.1, "holm") == max(holm_by_hand(p, 0.1), default=-1)
            assert guarantees.learn_then_test(p, 0.1, "holm") >= guarantees.learn_then_test(p, 0.1, "bonferroni")


def test_walks_from_several_starts_share_delta():
    p = np.array([0.5, 0.04, 0.2, 0.03, 0.045, 0.9])
    assert guarantees.learn_then_test(p, 0.1) == -1
    assert guarantees.learn_then_test(p, 0.1, starts=(1,)) == 1
    assert guarantees.learn_then_test(p, 0.1, starts=(1, 3)) == 4
    assert guarantees.learn_then_test(p, 0.08, starts=(1, 3)) == 3  # 0.045 > 0.08/2
    with pytest.raises(ValueError, match="has no starts"):
        guarantees.learn_then_test(p, 0.1, "holm", (1,))
    with pytest.raises(ValueError, match="there are"):
        guarantees.learn_then_test(p, 0.1, "sidak")


@pytest.mark.parametrize("alpha", ["0.1", "0.05", "0.25"])
def test_risk_control_by_brute_force(alpha):
    for seed, n in itertools.product(range(10), (1, 9, 19, 60)):
        score, error = cells(seed, n)
        attained = guarantees.Cells.attained(score, error)
        last = int(guarantees.conformal_risk_control(attained.n, attained.errors, float(alpha)))
        met = [t for t in score if Fraction(int((error & (score >= t)).sum()) + 1, n + 1) <= Fraction(alpha)]
        assert (last < 0) == (not met)
        if met:
            assert attained.score[last] == min(met)


def mean_risk(choose, p_cell, risk_cell, n):
    """E of P(accepted and wrong) over all calibration sets of n, by enumeration of (cell, error) outcomes."""
    outcomes = [(c, e) for c in range(len(p_cell)) for e in (0, 1)]
    chance = [p_cell[c] * (risk_cell[c] if e else 1 - risk_cell[c]) for c, e in outcomes]
    total = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(outcomes)):
        if sum(counts) != n:
            continue
        size, wrong = np.zeros(len(p_cell), int), np.zeros(len(p_cell), int)
        for (c, e), count in zip(outcomes, counts, strict=True):
            size[c] += count
            wrong[c] += e * count
        last = int(choose(size, wrong))
        total += stats.multinomial.pmf(counts, n, chance) * np.dot(p_cell[: last + 1], risk_cell[: last + 1])
    return total


@pytest.mark.parametrize("n", [3, 4, 7, 9])
def test_risk_control_keeps_its_promise_exactly(n):
    """With ties; and the infimum over all thresholds, which stops within a tied cell and takes it all, does not."""
    p_cell, risk_cell = np.array([0.5, 0.5]), np.array([0.1, 0.6])
    for alpha in (0.25, 0.4):
        assert mean_risk(lambda n, e: guarantees.conformal_risk_control(n, e, alpha), p_cell, risk_cell, n) <= alpha  # noqa: B023

    def infimum(size, wrong):
        met = (np.cumsum(wrong) + 1) / (size.sum() + 1) <= 0.25
        return -1 if 1 / (size.sum() + 1) > 0.25 else min(int(met.sum()), 1)

    assert mean_risk(infimum, p_cell, risk_cell, n) > 0.25


def test_soft_losses_are_controlled_too():
    n, loss = np.array([3, 4, 2]), np.array([0.2, 0.5, 1.5])
    assert guarantees.conformal_risk_control(n, loss, 0.2) == 1  # (0.7 + 1)/10 ≤ 0.2 < (2.2 + 1)/10


@pytest.mark.parametrize("procedure", ["fixed_sequence", "bonferroni", "holm"])
def test_learn_then_test_keeps_its_promise_exactly(procedure):
    """Two thresholds, n = 30: P(population risk of the choice > r), summed over all counts."""
    n, share, risk, r, delta = 30, 0.5, (0.12, 0.25), 0.15, 0.2
    population = np.array([risk[0], share * risk[0] + (1 - share) * risk[1]])  # .12, .185: the second is no good
    bad = 0.0
    for first in range(n + 1):
        k1, k2 = np.arange(first + 1), np.arange(n - first + 1)
        chance = stats.binom.pmf(first, n, share) * np.outer(
            stats.binom.pmf(k1, first, risk[0]), stats.binom.pmf(k2, n - first, risk[1])
        )
        errors = np.stack(np.broadcast_arrays(k1[:, None], k1[:, None] + k2), axis=-1)
        p = ops.binomial_p_value(errors, np.array([first, n]), r)
        last = guarantees.learn_then_test(p, delta, procedure)
        bad += chance[(last >= 0) & (population[last] > r)].sum()
    assert 0 < bad <= delta


def split(seed, n=600, **changes):
    return made_up.predictions(
        seed, n, signal=2.6, example_id=seed * 10_000 + np.arange(n), source=f"{seed}.npz", **changes
    )


@pytest.mark.parametrize("method", guarantees.METHODS)
def test_a_fit_is_the_choice_on_its_scores(method):
    calibration, tuning = split(1), split(2)
    delta, risk = (None, 0.07) if method == "crc" else (0.1, 0.1)
    chosen = guarantees.fit(calibration, method, risk=risk, delta=delta, tuning=tuning)
    decision = chosen(split(3))
    assert 0.1 < decision.accept.mean() < 1
    assert chosen.promise.kind == ("marginal" if method == "crc" else "pac")
    about, score = chosen.about["all"], ops.msp(calibration.logits)
    error = made_up.errors(calibration)
    accepted = score >= chosen.thresholds["all"]
    assert (about["accepted"], about["errors"]) == (accepted.sum(), error[accepted].sum())
    assert about["bound"] is None if method == "crc" else about["bound"] <= risk
    if method == "crc":
        assert (error[accepted].sum() + 1) / 601 <= risk
        assert chosen.thresholds["all"] in score
    if method == "sgr":
        accepted_by_hand, bound = sgr_by_hand(score, error, 0.1, 0.1)
        np.testing.assert_array_equal(accepted, accepted_by_hand)
        np.testing.assert_allclose(about["bound"], bound)
    if method == "ltt_fixed_sequence":
        ladder = guarantees.thresholds_at(ops.msp(tuning.logits), [c / 100 for c in range(50, 101)])
        passed = list(
            itertools.takewhile(
                lambda t: ops.binomial_p_value(error[score >= t].sum(), (score >= t).sum(), 0.1) <= 0.1, ladder
            )
        )
        assert chosen.thresholds["all"] == passed[-1]


@pytest.mark.parametrize("method", guarantees.METHODS)
def test_groups_have_thresholds_at_a_share_of_delta(method):
    group = np.arange(600) % 2
    calibration, tuning = split(1, group=group), split(2, group=group)
    delta = None if method == "crc" else 0.1
    both = guarantees.fit(calibration, method, risk=0.15, delta=delta, tuning=tuning, within="group")
    assert set(both.thresholds) == {"0", "1"}
    for g in (0, 1):
        parts = [dataclasses.replace(select(p, group == g), source=p.source) for p in (calibration, tuning)]
        alone = guarantees.fit(parts[0], method, risk=0.15, delta=delta and delta / 2, tuning=parts[1])
        assert alone.thresholds["all"] == both.thresholds[str(g)]
    assert both.promise.within == "group"
    by_class = guarantees.fit(calibration, method, risk=0.3, delta=delta, tuning=tuning, within="predicted_class")
    assert set(by_class.thresholds) == {str(k) for k in range(made_up.CLASSES)}


@pytest.mark.parametrize("method", [*LTT, "crc"])
def test_within_true_classes_the_worst_decides(method):
    calibration, tuning = split(1, n=2000), split(2)
    delta = None if method == "crc" else 0.1
    chosen = guarantees.fit(calibration, method, risk=0.25, delta=delta, tuning=tuning, within="label")
    assert set(chosen.thresholds) == {"all"}
    accepted = ops.msp(calibration.logits) >= chosen.thresholds["all"]
    assert accepted.any()
    error = made_up.errors(calibration)
    for k in range(made_up.CLASSES):
        mine = calibration.label == k
        if method == "crc":
            assert (error[accepted & mine].sum() + 1) / (mine.sum() + 1) <= 0.25
        else:
            level = 0.1
            p = ops.binomial_p_value(error[accepted & mine].sum(), (accepted & mine).sum(), 0.25)
            assert p <= level
    without = select(calibration, calibration.label != 4)
    none = guarantees.fit(without, method, risk=0.25, delta=delta, tuning=tuning, within="label")
    assert math.isnan(none.thresholds["all"])  # nothing is known of class 4
    whole = guarantees.fit(calibration, method, risk=0.25, delta=delta, tuning=tuning)
    assert chosen.thresholds["all"] >= whole.thresholds["all"]


@pytest.mark.parametrize("method", guarantees.METHODS)
@pytest.mark.parametrize("n", [1, 2, 30])
def test_all_wrong_and_all_right(method, n):
    calibration, tuning, test = split(1, n), split(2), split(3)
    delta = None if method == "crc" else 0.1
    wrong = dataclasses.replace(calibration, label=(calibration.logits.argmax(axis=1) + 1) % 5)
    chosen = guarantees.fit(wrong, method, risk=0.03, delta=delta, tuning=tuning)
    assert math.isnan(chosen.thresholds["all"])
    assert chosen.about["all"]["bound"] is None
    assert not chosen(test).accept.any()
    right = dataclasses.replace(calibration, label=calibration.logits.argmax(axis=1))
    chosen = guarantees.fit(right, method, risk=0.5, delta=delta, tuning=tuning)
    assert chosen(test).accept.any() == (n > 2 or (method == "crc"))  # 1/(n + 1) ≤ ½; 0.5² > 0.1


def test_ood_rows_certify_nothing():
    calibration, tuning = split(1), split(2)
    odd = np.random.default_rng(0).random(600) < 0.3
    marked = dataclasses.replace(calibration, is_ood=odd)
    for method in ("sgr", "crc", "ltt_fixed_sequence"):
        delta = None if method == "crc" else 0.1
        with_ood = guarantees.fit(marked, method, risk=0.1, delta=delta, tuning=tuning)
        without = guarantees.fit(select(calibration, ~odd), method, risk=0.1, delta=delta, tuning=tuning)
        assert with_ood.thresholds == without.thresholds
        assert with_ood.fitted_on.n == (~odd).sum()
        with pytest.raises(InputError, match="was fitted on"):
            with_ood(marked)


def test_a_fitted_score_and_several_starts():
    calibration, tuning = split(1), split(2)
    chosen = guarantees.fit(
        calibration, "ltt_fixed_sequence", "max_logit_pnorm", risk=0.1, delta=0.1, tuning=tuning, starts=(0.3, 0.6)
    )
    assert set(chosen.state) == {"p"}
    assert chosen(split(3)).accept.any()
    loose = guarantees.fit(
        calibration, "ltt_bonferroni", risk=0.2, delta=0.1, tuning=tuning, p_value="hoeffding_bentkus"
    )
    exact = guarantees.fit(calibration, "ltt_bonferroni", risk=0.2, delta=0.1, tuning=tuning)
    assert loose.thresholds["all"] >= exact.thresholds["all"]


def test_what_cannot_be_certified_is_refused():
    calibration, tuning = split(1), split(2)
    for changes, message in (
        ({"weight": np.random.default_rng(0).random(600)}, "weights differ"),
        ({"cluster": np.arange(600) // 2}, "come together"),
    ):
        with pytest.raises(InputError, match=message):
            guarantees.fit(dataclasses.replace(calibration, **changes), "crc", risk=0.1)
    guarantees.fit(dataclasses.replace(calibration, weight=np.full(600, 2.0), cluster=np.arange(600)), "crc", risk=0.1)
    with pytest.raises(InputError, match="--tuning"):
        guarantees.fit(calibration, "ltt_holm", risk=0.1, delta=0.1)
    with pytest.raises(ValueError, match="has no δ"):
        guarantees.fit(calibration, "crc", risk=0.1, delta=0.1)
    with pytest.raises(ValueError, match="delta must lie"):
        guarantees.fit(calibration, "sgr", risk=0.1)
    with pytest.raises(ValueError, match="there are sgr"):
        guarantees.fit(calibration, "sgd", risk=0.1, delta=0.1)
    with pytest.raises(ValueError, match="one path"):
        guarantees.fit(calibration, "sgr", risk=0.1, delta=0.1, within="label")
    with pytest.raises(InputError, match="was fitted on"):
        guarantees.fit(calibration, "crc", risk=0.1)(calibration)
    with pytest.raises(ValueError, match="no examples"):
        guarantees.sgr(np.zeros(3, int), np.zeros(3, int), 0.1, 0.1)
    assert tuning.ids_given


@pytest.mark.parametrize(
    ("method", "score"), [("sgr", "confidnet"), ("crc", "max_logit_pnorm"), ("ltt_fixed_sequence", "msp")]
)
def test_a_score_fitted_on_the_examples_that_certify_is_refused(method, score):
    """The head of this one is fitted to 400 rows of 64 features: the risk it certifies on them is far below that of others."""
    calibration, tuning, pool = (
        made_up.with_head(seed, n, d=64, example_id=10**6 * seed + np.arange(n), source=f"{seed}.npz")
        for seed, n in ((1, 400), (2, 400), (3, 4000))
    )
    promise = {"risk": 0.15, "delta": None if method == "crc" else 0.05}
    guarantees.fit(calibration, method, score, tuning=tuning, **promise)(pool)
    part = np.random.default_rng(0).permutation(400)[:200]
    without = dataclasses.replace(calibration, ids_given=False, source="a copy.npz")
    for own in (calibration, without, dataclasses.replace(select(calibration, part), source="a part.npz")):
        with pytest.raises(InputError, match=r"same split|ids are in|rows \(label and logits\) are in"):
            guarantees.fit(calibration, method, score, tuning=own, **promise)
    with pytest.raises(InputError, match="both parts of"):
        guarantees.fit(calibration, method, score, tuning=calibration, whole=calibration, **promise)
    with pytest.raises(InputError, match="k = 4 classes"):
        guarantees.fit(calibration, method, score, tuning=made_up.predictions(9, k=4), **promise)


def test_parts_of_one_split_may_certify_and_tune():
    about = {"dataset": "made_up", "split": "validation", "data_fingerprint": "a"}
    for ids_given in (True, False):
        calibration = dataclasses.replace(split(1, provenance=about), ids_given=ids_given)
        mine, rest = guarantees.divide(calibration, 0.2, 0)
        chosen = guarantees.fit(rest, "ltt_fixed_sequence", risk=0.15, delta=0.1, tuning=mine, whole=calibration)
        assert (chosen.fitted_on.n, chosen.tuned_on[0].n) == (480, 120)
        chosen(dataclasses.replace(split(2), example_id=np.arange(600), ids_given=not ids_given))
        for own in (mine, rest, calibration):
            with pytest.raises(InputError, match="was fitted on"):
                chosen(dataclasses.replace(own, provenance={}))


@pytest.mark.parametrize("method", guarantees.METHODS)
def test_examples_that_say_nothing_of_others_are_refused(method):
    calibration, delta = split(1), None if method == "crc" else 0.1
    for changes, message in (
        ({"provenance": {"split": "train"}}, "trained on these examples"),
        ({"is_ood": np.ones(600, bool)}, "all examples are OOD"),
        ({"weight": np.zeros(600)}, "weight 0"),
    ):
        with pytest.raises(InputError, match=message):
            guarantees.fit(dataclasses.replace(calibration, **changes), method, risk=0.1, delta=delta, tuning=split(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guarantees.learn_then_test(np.ones(3), 5.0, "holm"), "delta must lie"),
        (lambda: guarantees.learn_then_test(np.ones(3), 0.0), "delta must lie"),
        (lambda: guarantees.learn_then_test(np.zeros(3), 0.1, starts=()), "one index or more"),
        (lambda: guarantees.learn_then_test(np.zeros(3), 0.1, starts=(-1,)), "one index or more"),
        (lambda: guarantees.learn_then_test(np.zeros(3), 0.1, starts=(3,)), "one index or more"),
        (lambda: guarantees.conformal_risk_control(np.array([5]), np.array([1]), -0.1), "alpha must lie"),
        (lambda: guarantees.conformal_risk_control(np.array([5]), np.array([1]), 2.0), "alpha must lie"),
        *(
            (
                lambda starts=starts: guarantees.fit(
                    split(1), "ltt_fixed_sequence", risk=0.1, delta=0.1, tuning=split(2), starts=starts
                ),
                "one coverage or more",
            )
            for starts in ((), (2.0,), (-1.0,), (0.5, 0.0))
        ),
        (
            lambda: guarantees.fit(split(1), "ltt_holm", risk=0.1, delta=0.1, tuning=split(2), p_value="nope"),
            "p_value 'nope': there are binomial",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sgr_never_probes_all_examples():
    """Of m different scores, all right, it accepts m − 1 where m > 1; its bound is feasible from far fewer on."""
    for m in (2, 5, 90, 1000):
        assert guarantees.sgr(np.ones(m, int), np.zeros(m, int), 0.9, 0.5).last == m - 2
    assert guarantees.sgr(np.ones(1, int), np.zeros(1, int), 0.9, 0.5).last == 0


def test_a_share_is_drawn_to_tune_on():
    calibration = split(1)
    mine, rest = guarantees.divide(calibration, 0.2, 0)
    assert (len(mine), len(rest)) == (120, 480)
    np.testing.assert_array_equal(np.sort(np.concatenate([mine.example_id, rest.example_id])), calibration.example_id)
    np.testing.assert_array_equal(guarantees.divide(calibration, 0.2, 0)[0].example_id, mine.example_id)
    assert (guarantees.divide(calibration, 0.2, 1)[0].example_id != mine.example_id).any()
    with pytest.raises(InputError, match="cannot be divided"):
        guarantees.divide(split(1, 2), 0.2, 0)
    chosen = guarantees.fit(rest, "ltt_fixed_sequence", risk=0.1, delta=0.1, tuning=mine, whole=calibration)
    with pytest.raises(InputError, match="was fitted on"):
        chosen(calibration)


def test_cells_between_thresholds_count_what_each_accepts():
    score, error = cells(0, 200)
    thresholds = np.array([0.9, 0.75, 0.5, 0.41])
    between = guarantees.Cells.between(thresholds, score, error)
    np.testing.assert_array_equal(between.n.cumsum(), [(score >= t).sum() for t in thresholds])
    np.testing.assert_array_equal(between.errors.cumsum(), [error[score >= t].sum() for t in thresholds])


def test_a_monitor_does_not_care_how_its_stream_is_cut():
    rng = np.random.default_rng(0)
    losses = (rng.random(800) < 0.1).astype(float)
    whole = guarantees.update(guarantees.monitor(0.02, 0.01), losses)
    assert whole.alarm
    for size in (1, 7, 800):
        state = guarantees.monitor(0.02, 0.01)
        for part in np.split(losses, range(size, 800, size)):
            state = guarantees.update(guarantees.Monitor(*json.loads(json.dumps(state))), part)
        assert state == whole
    at = whole.alarm_at
    assert not guarantees.update(guarantees.monitor(0.02, 0.01), losses[: at - 1]).alarm
    assert guarantees.update(whole, np.zeros(10_000)).alarm_at == at  # it stays
    assert guarantees.update(whole, []) == whole
    np.testing.assert_array_equal(whole.interval, ops.confidence_sequence(losses.sum(), 800, 0.01))
    low, high = whole.interval
    assert 0.02 < low < 0.1 < high
    assert whole.promise.kind == "time-uniform"


def test_a_monitor_is_rarely_wrong():
    """At the promised risk, 1,000 streams of 300, and sometimes it is."""
    rng = np.random.default_rng(0)
    alarms = sum(
        guarantees.update(guarantees.monitor(0.1, 0.05), row).alarm for row in (rng.random((1000, 300)) < 0.1) * 1.0
    )
    assert stats.binomtest(alarms, 1000, 0.05, alternative="greater").pvalue > 0.01
    assert alarms > 0


@pytest.mark.parametrize("losses", [[0.5, 1.5], [-0.1], [np.nan]])
def test_a_monitor_refuses_what_is_no_share(losses):
    with pytest.raises(ValueError, match="losses must lie"):
        guarantees.update(guarantees.monitor(0.1, 0.1), losses)


@pytest.mark.parametrize(("risk", "delta"), [(0.0, 0.1), (0.1, 0.0), (1.0, 0.1), (0.1, 1.0)])
def test_a_monitor_has_a_promise(risk, delta):
    with pytest.raises(ValueError, match="must lie"):
        guarantees.monitor(risk, delta)


def test_saved_and_loaded_it_decides_the_same(tmp_path):
    group = np.arange(600) % 3
    chosen = guarantees.fit(split(1, group=group), "sgr", risk=0.1, delta=0.1, within="group")
    selector.save(tmp_path / "s.json", chosen)
    test = split(3, group=group)
    for a, b in zip(chosen(test), selector.load(tmp_path / "s.json")(test), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_decisions_came_to_is_counted(tmp_path):
    calibration, test = split(1), split(3)
    chosen = guarantees.fit(calibration, "sgr", risk=0.2, delta=0.1, within="predicted_class")
    test = dataclasses.replace(test, is_ood=np.arange(len(test)) % 5 == 0)
    decision = chosen(test)
    whole, *classes = guarantees.realised(chosen, decision, test)
    mine = decision.accept & ~test.is_ood
    wrong = (decision.prediction != test.label)[mine]
    assert (whole.stratum, whole.n, whole.accepted, whole.errors) == (
        "all",
        (~test.is_ood).sum(),
        mine.sum(),
        wrong.sum(),
    )
    assert (whole.coverage, whole.risk) == (mine.sum() / whole.n, wrong.mean())
    assert whole.accepted_and_wrong == wrong.sum() / whole.n
    np.testing.assert_array_equal(whole.risk_interval, ops.clopper_pearson_interval(wrong.sum(), mine.sum()))
    assert [row.stratum for row in classes] == [str(k) for k in np.unique(decision.prediction[~test.is_ood])]
    assert [sum(getattr(row, name) for row in classes) for name in ("n", "accepted", "errors")] == list(whole[1:4])


@pytest.mark.parametrize(
    ("errors", "verdict"), [(0, "held"), (20, "open"), (60, "did not hold")], ids=lambda value: str(value)
)
@pytest.mark.parametrize("method", ["sgr", "crc"])
def test_the_verdict_is_of_what_was_promised(method, errors, verdict):
    label = np.zeros(200, int)
    logits = np.tile([5.0, 0.0], (200, 1))
    chosen = guarantees.fit(
        Predictions(label, logits, np.arange(200)), method, risk=0.1, delta=0.1 if method == "sgr" else None
    )
    label[:errors] = 1
    test = Predictions(label, logits, 1000 + np.arange(200))
    half = chosen(test)._replace(accept=np.arange(200) < (200 if method == "sgr" else 100))
    (row,) = guarantees.realised(chosen, half, test)
    assert (
        row.verdict == verdict
    )  # of crc the denominator is all: that half is rejected does not raise what was promised
    (none,) = guarantees.realised(chosen, half._replace(accept=np.zeros(200, bool)), test)
    assert none.verdict == "nothing accepted"
    assert np.isnan(none.risk)
    weight = 1 + np.arange(200) % 2
    (weighed,) = guarantees.realised(chosen, half, dataclasses.replace(test, weight=weight.astype(float)))
    assert np.isnan(weighed.risk_interval).all()
    assert weighed.verdict == "open"
    assert weighed.risk == np.average(label[half.accept], weights=weight[half.accept])
    (together,) = guarantees.realised(chosen, half, dataclasses.replace(test, cluster=np.arange(200) // 2))
    assert np.isnan(together.accepted_and_wrong_interval).all()
