"""What the study of SCOD computes beside the pipe: outcomes of frozen rejectors, by the definitions; and which outliers are of which kind."""

from __future__ import annotations

import dataclasses
import importlib.util
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from made_up import with_head

from sc_jax import ops
from sc_jax.methods import scod
from sc_jax.predictions import Predictions, select


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scod_{name}", ROOT / f"experiments/scod/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_outcomes_are_means_of_their_definitions_in_every_resample() -> None:
    shifts = script("shifts")
    rng = np.random.default_rng(0)
    n, is_ood = 80, np.arange(80) >= 50
    outcomes = [[shifts.Outcome(*(rng.random((2, n)) < 0.5)) for _ in range(2)] for _ in range(3)]
    counts = np.ones((21, n), np.uint8)
    for kind in (False, True):
        mine = np.flatnonzero(is_ood == kind)
        for row in counts[1:]:
            row[mine] = np.bincount(rng.integers(0, len(mine), len(mine)), minlength=len(mine))
    found = shifts.described(outcomes, is_ood, counts)

    def by_hand(weight: np.ndarray) -> list[float]:
        values = []
        for accept, wrong in (one for family in outcomes for one in family):
            inside, outside = weight * ~is_ood, weight * is_ood
            loss = ops.scod_loss(wrong, is_ood, shifts.RULE.ood_cost, shifts.RULE.id_cost)
            mixed = ops.mixture_weight(is_ood, shifts.RULE.ood_share, weight=weight)
            risk = np.average(wrong, weights=inside * accept), np.average(accept, weights=outside)
            values.append([np.average(accept, weights=inside), *risk, np.average(loss, weights=mixed * accept)])
        return np.mean(values, axis=0)

    expected = np.array([by_hand(row.astype(float)) for row in counts])
    for i, name in enumerate(shifts.METRICS):
        assert found[name] == pytest.approx(expected[0, i], rel=1e-5)
        np.testing.assert_allclose(found[f"{name}_interval"], np.quantile(expected[1:, i], [0.025, 0.975]), rtol=1e-5)


def test_a_rejector_that_accepts_nothing_has_no_risk() -> None:
    shifts = script("shifts")
    none, some = np.zeros(6, bool), np.arange(6) % 2 == 0
    found = shifts.described([[shifts.Outcome(none, some)]], np.arange(6) >= 4, np.ones((3, 6), np.uint8))
    assert (found["coverage"], found["outliers_accepted"]) == (0, 0)
    assert np.isnan([found["risk"], found["joint_risk"]]).all()


def test_kinds_divide_the_outliers() -> None:
    compare = script("compare")
    ids, is_ood = np.array([60_000, 60_001, 70_000, 70_001]), np.array([False, True, True, True])
    test = Predictions(np.zeros(4, int), np.zeros((4, 3)), ids, is_ood=is_ood)
    kinds = compare.kinds("scod", test)
    np.testing.assert_array_equal(kinds["near"], [True, True, False, False])
    np.testing.assert_array_equal(kinds["far"], [True, False, True, True])
    assert compare.kinds("scod_clinc150", test)["outside"].all()


def test_a_cell_has_the_rule_made_for_it() -> None:
    compare = script("compare")
    rng = np.random.default_rng(1)
    d, r = -rng.random((2, 90))
    error, is_ood = rng.random(90) < np.exp(d) / 2, np.arange(90) >= 60
    rejectors = {"rule": lambda rule: ops.joint_scod_score(d, r, **rule._asdict()), "doubt": lambda rule: -d}
    keep = np.arange(90) % 10 > 0
    made = compare.table(rejectors, keep, error, is_ood, 20)
    area = np.array(made["area"])
    assert area.shape == (2, len(compare.COSTS), len(compare.SHARES))
    assert np.shape(made["interval"]) == (2, *area.shape)
    for c, (ood, wrong) in enumerate(compare.COSTS):
        for p, share in enumerate(compare.SHARES):
            for s, score in enumerate((ops.joint_scod_score(d, r, ood_cost=ood, id_cost=wrong, ood_share=share), -d)):
                given = score[keep], error[keep], is_ood[keep]
                expected = ops.scod_aurc(*given, ood_cost=ood, id_cost=wrong, ood_share=share).area
                assert area[s, c, p] == pytest.approx(float(expected))


def test_rejectors_are_those_of_the_methods_fitted_one_by_one() -> None:
    """Fits and estimates that are shared change nothing; POSCOD has no example of its reference."""
    compare = script("compare")
    calibration = with_head(0, 120)
    wild, test = (dataclasses.replace(with_head(seed, 90), is_ood=np.arange(90) >= 60) for seed in (1, 2))
    outliers = dataclasses.replace(with_head(3, 30), example_id=1000 + np.arange(30), is_ood=np.ones(30, bool))
    found, estimated = compare.rejectors(calibration, wild, test, outliers)
    rule = scod.JointRisk(0.75, 0.25, 0.2)
    vim = scod.score_of(scod.fit_score("vim", calibration), calibration)
    strict = select(calibration, vim >= np.sort(vim)[-12])
    halves = [select(calibration, np.arange(120) % 2 == half) for half in (0, 1)]
    joined = [np.concatenate([getattr(part, name) for part in (halves[0], outliers)]) for name in ("label", "logits")]
    both = Predictions(*joined, np.arange(90), is_ood=np.arange(90) >= 60)
    known = scod.fit_loss_based(calibration, wild, rule, on="vim", mixing=2 / 3)
    guessed = scod.fit_loss_based(calibration, wild, rule, on="vim", strict=strict)
    expected = {
        "sirc": scod.fit_sirc(calibration, second="residual"),
        "black-box (ViM)": scod.fit_black_box(calibration, rule, ood="vim"),
        "black-box (energy, 30 outliers)": scod.fit_black_box(calibration, rule, ood="energy", outliers=outliers),
        "POSCOD (energy, 30 outliers)": scod.fit_linear(both, target=rule, reference=halves[1]),
        "loss-based (ViM)": known,
        "loss-based (ViM, π_mix estimated)": guessed,
    }
    for name, state in expected.items():
        np.testing.assert_allclose(found[name](rule), scod.apply(state, test), rtol=1e-12, err_msg=name)
    assert estimated == guessed.ratio.mixing
    assert set(compare.PLAIN) < set(found)
    without = compare.rejectors(calibration, wild, test, None)[0]
    assert set(found) - set(without) == {name for name in found if "outliers" in name}
