"""What the study of SCOD computes beside the pipe: outcomes of frozen rejectors, by the definitions; and which outliers are of which kind."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT

from sc_jax import ops
from sc_jax.predictions import Predictions


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
