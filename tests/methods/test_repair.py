"""The analyses of what logit normalisation repairs, against brute force over runs, resamples and draws."""

import dataclasses
import itertools

import numpy as np
import pytest
from made_up import ALPHAS, CALIBRATION, CLASSES, SEEDS, TEST, errors, resampled, runs

from sc_jax import files, ops
from sc_jax.methods import logit_norm, repair
from sc_jax.ops import resampling
from sc_jax.predictions import select

GRID, B, LEVEL = (1, 2, 5), 30, 0.9
TAILS = [0.05, 0.95]
COUNTS = resampling.resample_counts(0, TEST, B)
CALIBRATION_COUNTS = resampling.resample_counts(1, CALIBRATION, B)
SEED_COUNTS = resampling.resample_counts(2, len(SEEDS), B)
SIZES, DRAWS = (5, 20, CALIBRATION, CALIBRATION + 1), 12


def shifted():
    """The made-up runs with shifts of their own, so that some max logits are negative."""
    return [
        dataclasses.replace(run, test=dataclasses.replace(run.test, logits=run.test.logits - 1.5)) for run in runs()
    ]


ANALYSES = {
    "norms": lambda given: repair.norms(given, GRID, COUNTS, SEED_COUNTS, LEVEL),
    "shifts": lambda given: repair.shifts(given, GRID, COUNTS, SEED_COUNTS, LEVEL),
    "learning_curve": lambda given: repair.learning_curve(given, GRID, SIZES, DRAWS, 0, SEED_COUNTS, LEVEL),
    "ensembles": lambda given: repair.ensembles(given, GRID, COUNTS, CALIBRATION_COUNTS, LEVEL),
    "subsets": lambda given: repair.subsets(given, GRID, 0),
}


def of_alpha(alpha, given=None):
    return [run for run in given or runs() if run.alpha == alpha]


def crossed(values):
    """Ends of the interval of values [s, b], seed by drawn seed."""
    drawn = [[s for s in range(len(SEEDS)) for _ in range(times[s])] for times in SEED_COUNTS]
    return np.quantile([values[seeds, b].mean() for b, seeds in enumerate(drawn)], TAILS)


def area(score, given, metric="aurc"):
    return float(getattr(ops, metric)(score, errors(given)))


@pytest.mark.parametrize("name", ANALYSES)
def test_the_order_of_the_runs_does_not_matter_and_rows_can_be_written(name, tmp_path):
    rows = ANALYSES[name](runs())
    assert [row["alpha"] for row in rows] == sorted(row["alpha"] for row in rows)
    assert {row["alpha"] for row in rows} == set(ALPHAS)
    again = ANALYSES[name](runs()[::-1])
    files.write_json(tmp_path / "rows.json", rows)
    files.write_json(tmp_path / "again.json", again)
    assert files.read_json(tmp_path / "again.json") == files.read_json(tmp_path / "rows.json")


def weighted(times, split):
    """Runs whose examples of one split weigh so much, and runs in which each is repeated so often."""
    weighing, repeated = [], []
    for run in runs():
        given = getattr(run, split)
        weighing.append(dataclasses.replace(run, **{split: dataclasses.replace(given, weight=times.astype(float))}))
        repeated.append(dataclasses.replace(run, **{split: resampled(given, times)}))
    return weighing, repeated


def estimates(value):
    """Every number under "estimate", "mean", "chosen" or "p", in order."""
    if isinstance(value, list):
        return [x for item in value for x in estimates(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("estimate", "mean", "p") if isinstance(value.get(key), float | int)]
    return own + [x for item in value.values() for x in estimates(item)]


@pytest.mark.parametrize("name", ["norms", "shifts", "ensembles", "subsets"])
def test_a_weight_is_so_many_rows_of_the_test_split(name):
    times = np.random.default_rng(0).integers(0, 4, TEST)
    weighing, repeated = weighted(times, "test")
    counts = resampling.resample_counts(0, times.sum(), B)
    by_name = {
        "norms": lambda: repair.norms(repeated, GRID, counts, SEED_COUNTS, LEVEL),
        "shifts": lambda: repair.shifts(repeated, GRID, counts, SEED_COUNTS, LEVEL),
        "ensembles": lambda: repair.ensembles(repeated, GRID, counts, CALIBRATION_COUNTS, LEVEL),
        "subsets": lambda: repair.subsets(repeated, GRID, 0),
    }

    def without_tests(rows):  # p-values of contrasts are of other resamples
        return [{name: None if name.startswith("minus_") else value for name, value in row.items()} for row in rows]

    told = [estimates(without_tests(rows)) for rows in (ANALYSES[name](weighing), by_name[name]())]
    np.testing.assert_allclose(told[0], told[1], rtol=1e-9, atol=1e-12)
    assert not np.allclose(told[0], estimates(without_tests(ANALYSES[name](runs()))))


def test_a_draw_brings_its_weight():
    times = np.random.default_rng(0).integers(0, 4, TEST)
    rows = {(r["alpha"], r["p"], r["centred"]): r for r in ANALYSES["norms"](weighted(times, "test")[0])}
    slopes = {r["alpha"]: r["norms"][0] for r in ANALYSES["shifts"](weighted(times, "test")[0])}
    for alpha in ALPHAS:
        drawn = [[resampled(run.test, c * times) for c in COUNTS] for run in of_alpha(alpha)]
        told = rows[alpha, None, None]["metrics"]["naurc"]["interval"]
        values = np.array([[area(ops.msp(t.logits), t, "naurc") for t in each] for each in drawn])
        np.testing.assert_allclose(told, crossed(values), rtol=1e-9)
        values = np.array([[mean_slope(t, "right", GRID[0]) for t in each] for each in drawn])
        np.testing.assert_allclose(slopes[alpha]["right"]["interval"], crossed(values), rtol=1e-9)


def mean_slope(given, kind, p):
    return ops.log_score_shift_derivative(of_kind(positive(given), kind).logits, p).mean()


def test_a_weight_is_so_many_rows_of_the_calibration_split():
    times = np.random.default_rng(1).integers(0, 4, CALIBRATION)
    weighing, repeated = weighted(times, "calibration")
    whole = repair.learning_curve(weighing, GRID, (CALIBRATION,), 2, 0, SEED_COUNTS, LEVEL)
    n = int(times.sum())
    assert whole[0]["size"] == CALIBRATION
    for row, other in zip(whole, repair.learning_curve(repeated, GRID, (n,), 2, 0, SEED_COUNTS, LEVEL), strict=True):
        assert row["chosen"] == other["chosen"]
        assert row["regret"] == other["regret"]
    ps = [
        [row["p"] for row in repair.ensembles(given, GRID, COUNTS, counts, LEVEL)]
        for given, counts in ((weighing, CALIBRATION_COUNTS), (repeated, resampling.resample_counts(1, n, B)))
    ]
    assert ps[0] == ps[1]


# --- norms ------------------------------------------------------------------------------------------------------------


def test_norms_are_those_of_each_score_and_nothing_is_chosen():
    rows = ANALYSES["norms"](runs())
    keys = [(None, None)] + [(centred, p) for centred in (True, False) for p in GRID]
    assert [(row["alpha"], row["centred"], row["p"]) for row in rows] == [(a, *key) for a in ALPHAS for key in keys]
    for row in rows:

        def score(given, row=row):
            if row["p"] is None:
                return ops.msp(given.logits)
            return ops.max_logit_pnorm(given.logits, row["p"], center=row["centred"])

        for metric in ("aurc", "naurc"):
            members = [run.test for run in of_alpha(row["alpha"])]
            mine = np.array([area(score(t), t, metric) for t in members])
            msp = np.array([area(ops.msp(t.logits), t, metric) for t in members])
            drawn = [[resampled(t, c) for c in COUNTS] for t in members]
            mine_drawn = np.array([[area(score(t), t, metric) for t in each] for each in drawn])
            msp_drawn = np.array([[area(ops.msp(t.logits), t, metric) for t in each] for each in drawn])
            told = row["metrics"][metric]
            np.testing.assert_allclose(told["per_seed"], mine, rtol=1e-9)
            np.testing.assert_allclose(told["interval"], crossed(mine_drawn), rtol=1e-9)
            if row["p"] is None:
                assert row["minus_msp"] is None
                continue
            told = row["minus_msp"][metric]
            np.testing.assert_allclose(told["per_seed"], mine - msp, atol=1e-12)
            np.testing.assert_allclose(told["interval"], crossed(mine_drawn - msp_drawn), atol=1e-12)


def test_a_shift_of_each_example_is_seen_without_centring_alone():
    shift = np.random.default_rng(0).normal(size=(TEST, 1))
    moved = [
        dataclasses.replace(run, test=dataclasses.replace(run.test, logits=run.test.logits.astype(float) + shift))
        for run in runs()
    ]
    for row, other in zip(ANALYSES["norms"](runs()), ANALYSES["norms"](moved), strict=True):
        same = np.isclose(row["metrics"]["aurc"]["estimate"], other["metrics"]["aurc"]["estimate"], rtol=1e-9)
        assert same == (row["centred"] is not False)


# --- shifts -----------------------------------------------------------------------------------------------------------


def slope(given, p, h=1e-5):
    """Central differences of the uncentred log-score of examples with v_max > h."""
    v = given.logits.astype(float)
    ends = [np.log(ops.max_logit_pnorm(v + sign * h, p, center=False)) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * h)


def test_shifts_are_means_of_the_slopes_of_the_log_score():
    given = shifted()
    for row in ANALYSES["shifts"](given):
        tests = [run.test for run in of_alpha(row["alpha"], given)]
        negative = [t.logits.max(axis=1) <= 0 for t in tests]
        assert row["undefined"] == [part.sum() for part in negative]
        assert sum(row["undefined"]) > 0
        np.testing.assert_allclose(row["share_undefined"]["per_seed"], [part.mean() for part in negative])
        for kind in ("all", "right", "wrong"):
            shift = [of_kind(t, kind).logits.astype(float).mean() for t in tests]
            np.testing.assert_allclose(row["mean_logit"][kind]["per_seed"], shift, rtol=1e-6)
        assert [told["p"] for told in row["norms"]] == list(GRID)
        for told in row["norms"]:
            for kind in ("right", "wrong"):
                means = [slope(of_kind(positive(t), kind), told["p"]).mean() for t in tests]
                np.testing.assert_allclose(told[kind]["per_seed"], means, rtol=1e-4)
            gap = told["right"]["estimate"] - told["wrong"]["estimate"]
            assert told["right_minus_wrong"]["estimate"] == pytest.approx(gap)


def positive(given):
    return select(given, given.logits.max(axis=1) > 0)


def of_kind(given, kind):
    keep = {"all": errors(given) | True, "right": ~errors(given), "wrong": errors(given)}[kind]
    return select(given, keep)


def test_intervals_of_shifts_are_of_resamples_written_out():
    given = shifted()
    for row in ANALYSES["shifts"](given):
        tests = [run.test for run in of_alpha(row["alpha"], given)]
        told = row["norms"][1]

        def means(kind, p=told["p"], tests=tests):
            return np.array([[mean_slope(resampled(t, c), kind, p) for c in COUNTS] for t in tests])

        np.testing.assert_allclose(told["right"]["interval"], crossed(means("right")), rtol=1e-9)
        gap = means("right") - means("wrong")
        np.testing.assert_allclose(told["right_minus_wrong"]["interval"], crossed(gap), rtol=1e-9)


# --- how many calibration examples ------------------------------------------------------------------------------------


def candidate_areas(given, fallback, metric="aurc"):
    scores = logit_norm.candidates(given.logits, GRID, fallback)
    return {p: area(score, given, metric) for p, score in scores.items()}


def calibrated():
    """The made-up runs with labels drawn from their probabilities, so that MSP is the best of all scores."""
    rng = np.random.default_rng(0)

    def of(given):
        noise = rng.gumbel(size=given.logits.shape)
        return dataclasses.replace(given, label=(given.logits + noise).argmax(axis=1))

    return [dataclasses.replace(run, test=of(run.test), calibration=of(run.calibration)) for run in runs()]


@pytest.mark.parametrize("given", [runs(), calibrated()], ids=["runs", "calibrated"])
def test_the_learning_curve_is_what_fitting_on_the_drawn_examples_gives(given):
    order = np.random.default_rng(0).permuted(np.tile(np.arange(CALIBRATION), (DRAWS, 1)), axis=1)
    draw_counts = resampling.resample_counts(1, DRAWS, B)
    rows = ANALYSES["learning_curve"](given)
    keys = [(row["alpha"], row["fallback"], row["size"]) for row in rows]
    assert keys == list(itertools.product(ALPHAS, (False, True), SIZES[:-1]))  # one size is beyond the split
    for row, (alpha, fallback, size) in zip(rows, keys, strict=True):
        members = of_alpha(alpha, given)
        ps = [
            [logit_norm.fit(select(run.calibration, place < size), GRID, fallback=fallback).p for place in order]
            for run in members
        ]
        shares = {p: np.mean(np.array(ps) == p) for p in ((0, *GRID) if fallback else GRID)}
        assert row["chosen"] == {("msp" if p == 0 else f"p={p}"): share for p, share in shares.items()}
        for metric in ("aurc", "naurc"):
            areas = [candidate_areas(run.test, fallback, metric) for run in members]
            chosen = np.array([[of[p] for p in each] for of, each in zip(areas, ps, strict=True)])
            regret = chosen - np.array([[min(of.values())] for of in areas])
            assert regret.min() >= 0
            told = row["regret"][metric]
            np.testing.assert_allclose(told["per_seed"], regret.mean(axis=1), atol=1e-12)
            drawn = np.array([[np.repeat(each, c).mean() for c in draw_counts] for each in regret])
            np.testing.assert_allclose(told["interval"], crossed(drawn), atol=1e-12)
            np.testing.assert_allclose(row["quartiles"][metric], np.quantile(regret, [0.25, 0.5, 0.75]), atol=1e-12)
            msp = np.array([[area(ops.msp(run.test.logits), run.test, metric)] for run in members])
            assert row["minus_msp"][metric]["estimate"] == pytest.approx((chosen - msp).mean(), abs=1e-12)


def test_msp_may_be_the_best_candidate():
    for row in ANALYSES["learning_curve"](calibrated()):
        if row["fallback"] and row["size"] == CALIBRATION:
            assert row["chosen"]["msp"] == 1
            assert row["regret"]["aurc"]["estimate"] == row["minus_msp"]["aurc"]["estimate"] == 0


def test_all_calibration_examples_are_one_draw():
    for row in ANALYSES["learning_curve"](runs()):
        if row["size"] == CALIBRATION:
            assert sum(share > 0 for share in row["chosen"].values()) <= len(SEEDS)
            assert row["regret"]["aurc"]["se_draws"] == pytest.approx(0, abs=1e-15)
    assert any(row["regret"]["aurc"]["se_draws"] > 1e-6 for row in ANALYSES["learning_curve"](runs()))


def test_sizes_that_are_all_beyond_the_split_give_no_row():
    assert repair.learning_curve(runs(), GRID, (CALIBRATION + 1,), 3, 0, SEED_COUNTS, LEVEL) == []


# --- ensembles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("p", GRID)
def test_the_mean_of_normalised_logits_is_a_mean_over_members(p, center):
    logits = np.random.default_rng(0).normal(size=(3, 7, CLASSES)) + 0.4
    expected = np.zeros((7, CLASSES))
    for member, example in np.ndindex(3, 7):
        v = logits[member, example] - (logits[member, example].mean() if center else 0)
        expected[example] += v / np.linalg.norm(v, p) / 3
    np.testing.assert_allclose(repair.mean_normalised(logits, p, center), expected, rtol=1e-12)
    one = repair.mean_normalised(logits[:1], p, center).max(axis=-1)
    np.testing.assert_allclose(one, ops.max_logit_pnorm(logits[0], p, center=center), rtol=1e-12)


@pytest.mark.parametrize("p", GRID)
def test_the_mean_of_normalised_logits_sees_neither_scales_nor_shifts_nor_the_order_of_members(p):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 7, CLASSES))
    told = repair.mean_normalised(logits, p)
    moved = logits * rng.lognormal(sigma=3, size=(3, 7, 1)) + rng.normal(size=(3, 7, 1))
    np.testing.assert_allclose(repair.mean_normalised(moved, p), told, atol=1e-9)
    np.testing.assert_allclose(repair.mean_normalised(logits[::-1], p), told, atol=1e-14)
    np.testing.assert_allclose(repair.mean_normalised(logits * 1e300, p), told, atol=1e-12)


def test_members_with_equal_logits_add_nothing():
    logits = np.stack([np.full((1, 4), 0.1), [[3.0, 1.0, 0.0, 0.0]]])
    np.testing.assert_allclose(repair.mean_normalised(logits, 2), repair.mean_normalised(logits[1:], 2) / 2)


def test_where_the_maximum_alone_is_positive_the_first_norm_ties_exactly():
    logits = np.random.default_rng(0).uniform(-1, 0, size=(3, 50, CLASSES))
    logits[..., 0] = np.random.default_rng(1).uniform(5, 9, size=(3, 50))
    assert set(repair.mean_normalised(logits, 1).max(axis=-1)) == {0.5}


def averaged(average, splits, p):
    """Error and score of the ensemble by the definitions; p None is MSP."""
    if average == "mean_probabilities":
        odds = [np.exp(s.logits.astype(float)) for s in splits]
        mean = np.log(sum(o / o.sum(axis=1, keepdims=True) for o in odds) / len(splits))
    elif average == "mean_logits":
        mean = sum(s.logits.astype(float) for s in splits) / len(splits)
    else:
        centred = [s.logits.astype(float) - s.logits.astype(float).mean(axis=1, keepdims=True) for s in splits]
        mean = sum(v / np.linalg.norm(v, p, axis=1, keepdims=True) for v in centred) / len(splits)
        return mean.argmax(axis=1) != splits[0].label, mean.max(axis=1)
    score = ops.msp(mean) if p is None else ops.max_logit_pnorm(mean, p)
    return mean.argmax(axis=1) != splits[0].label, score


def best(average, splits):
    areas = [float(ops.aurc(score, error)) for error, score in (averaged(average, splits, p) for p in GRID)]
    return GRID[int(np.argmin(np.round(areas, 12)))]


@pytest.fixture(scope="module")
def brute():
    """(α, way) → p, metrics, those of each resample with p held fixed, and with p chosen anew."""

    def metrics(average, splits, p):
        error, score = averaged(average, splits, p)
        return {m: float(v) for m, v in ops.summarise(score, error).items()}

    table = {}
    for alpha, (average, score) in itertools.product(ALPHAS, repair.WAYS):
        members = of_alpha(alpha)
        tests, calibrations = [run.test for run in members], [run.calibration for run in members]
        drawn = [[resampled(t, c) for t in tests] for c in COUNTS]
        p, anew = None, [None] * B
        if score != "msp":
            p = best(average, calibrations)
            anew = [best(average, [resampled(s, c) for s in calibrations]) for c in CALIBRATION_COUNTS]
        fixed = [metrics(average, splits, p) for splits in drawn]
        chosen = [metrics(average, splits, q) for splits, q in zip(drawn, anew, strict=True)]
        table[alpha, average, score] = (p, metrics(average, tests, p), fixed, chosen)
    return table


def test_ensembles_are_those_of_the_definitions(brute):
    rows = [row for row in ANALYSES["ensembles"](runs()) if row["average"] != "single_members"]
    assert [(row["alpha"], row["average"], row["score"]) for row in rows] == list(brute)
    assert any(fixed != chosen for _, _, fixed, chosen in brute.values())
    for row in rows:
        p, whole, fixed, chosen = brute[row["alpha"], row["average"], row["score"]]
        assert row["p"] == p
        assert row["members"] == len(SEEDS)
        assert row["prediction"] == repair.PREDICTIONS[row["average"]]
        assert ("choice of p" in row["contrasts_cover"]) == (p is not None)
        assert row["metrics"].keys() == {"error", "aurc", "naurc", "failure_auroc"}
        for metric, told in row["metrics"].items():
            assert told["estimate"] == pytest.approx(whole[metric], rel=1e-9)
            ends = np.quantile([of[metric] for of in fixed], TAILS)
            np.testing.assert_allclose(told["interval"], ends, rtol=1e-9)
            assert ("interval_p_chosen_anew" in told) == (p is not None)
            ends = np.quantile([of[metric] for of in chosen], TAILS)
            np.testing.assert_allclose(told.get("interval_p_chosen_anew", told["interval"]), ends, rtol=1e-9)


def test_contrasts_of_ensembles_are_paired_by_resample(brute):
    for row in ANALYSES["ensembles"](runs()):
        if row["average"] == "single_members":
            continue
        way = (row["average"], row["score"])
        controls = {"minus_alpha_0": (0.0, *way), "minus_msp": (row["alpha"], "mean_probabilities", "msp")}
        controls["minus_alpha_0_msp"] = (0.0, "mean_probabilities", "msp")
        before = row["average"] == "mean_normalised"
        controls["minus_after"] = (row["alpha"], "mean_logits" if before else way[0], way[1])
        for field, control in controls.items():
            if control == (row["alpha"], *way):
                assert row[field] is None
                continue
            for metric, told in row[field].items():
                pairs = zip(brute[row["alpha"], *way][3], brute[control][3], strict=True)
                drawn = np.array([a[metric] - b[metric] for a, b in pairs])
                difference = brute[row["alpha"], *way][1][metric] - brute[control][1][metric]
                assert told["estimate"] == pytest.approx(difference, abs=1e-12)
                np.testing.assert_allclose(told["interval"], np.quantile(drawn, TAILS), atol=1e-12)


def test_single_members_are_the_mean_of_ensembles_of_one():
    rows = {(r["alpha"], r["average"], r["score"]): r for r in ANALYSES["ensembles"](runs())}
    for alpha, score in itertools.product(ALPHAS, ("msp", "max_logit_pnorm")):
        mean = rows[alpha, "single_members", score]
        alone = []
        for member in of_alpha(alpha):
            others = repair.ensembles([member], GRID, COUNTS, CALIBRATION_COUNTS, LEVEL)
            for row in (row for row in others if row["score"] == score):  # one member is itself by any average
                p = row["p"] if row["average"] != "single_members" or score == "msp" else row["p"][0]
                fitted = None if score == "msp" else logit_norm.fit(member.calibration, GRID, fallback=False).p
                assert p == fitted
                for metric, told in row["metrics"].items():
                    expected = others[0 if score == "msp" else 2]["metrics"][metric]
                    assert told["estimate"] == pytest.approx(expected["estimate"], rel=1e-9)
                    np.testing.assert_allclose(told["interval"], expected["interval"], rtol=1e-9)
            alone.append(others[0 if score == "msp" else 2])
        if score != "msp":
            assert mean["p"] == [row["p"] for row in alone]
        assert mean["minus_after"] is None
        for metric, told in mean["minus_alpha_0_msp"].items():
            plain = rows[0.0, "mean_probabilities", "msp"]["metrics"][metric]["estimate"]
            assert told["estimate"] == pytest.approx(mean["metrics"][metric]["estimate"] - plain, abs=1e-12)
        for metric, told in mean["metrics"].items():
            assert told["estimate"] == pytest.approx(np.mean([r["metrics"][metric]["estimate"] for r in alone]))


def test_without_cross_entropy_there_is_nothing_to_compare_with():
    rows = repair.ensembles(of_alpha(0.2), GRID, COUNTS, CALIBRATION_COUNTS, LEVEL)
    assert all(row["minus_alpha_0"] is None for row in rows)


# --- subsets ----------------------------------------------------------------------------------------------------------


def test_subsets_begin_with_the_members_and_end_with_the_ensemble():
    whole = {(r["alpha"], r["average"], r["score"]): r for r in ANALYSES["ensembles"](runs())}
    rows = ANALYSES["subsets"](runs())
    assert [(row["score"], row["members"]) for row in rows] == 2 * [
        (score, size) for score in ("msp", "max_logit_pnorm") for size in (1, 2)
    ]
    for row in rows:
        way = "single_members" if row["members"] == 1 else row["average"]
        expected = whole[row["alpha"], way, row["score"]]["metrics"]
        for metric in ("aurc", "naurc"):
            assert row["metrics"][metric]["mean"] == pytest.approx(expected[metric]["estimate"], rel=1e-9)


def test_subsets_are_as_many_as_asked_for_and_differ():
    seeds = tuple(range(5))
    given = runs((0.0,), seeds)
    rows = repair.subsets(given, GRID, 0, most=6)
    for row in (row for row in rows if row["score"] == "msp"):
        every = (
            averaged("mean_probabilities", [run.test for run in subset], None)
            for subset in itertools.combinations(given, row["members"])
        )
        areas = np.array([float(ops.aurc(score, error)) for error, score in every])
        told = row["metrics"]["aurc"]
        assert row["subsets"] == min(6, len(areas))
        assert all(np.isclose(areas, end, rtol=1e-9).any() for end in told["range"])
        assert told["range"][0] <= told["quartiles"][0] <= told["quartiles"][1] <= told["range"][1]
        if len(areas) <= 6:
            np.testing.assert_allclose(told["range"], [areas.min(), areas.max()], rtol=1e-9)
            assert told["mean"] == pytest.approx(areas.mean(), rel=1e-9)
    assert repair.subsets(given, GRID, 0, most=6) == rows
    assert repair.subsets(given, GRID, 1, most=6) != rows
