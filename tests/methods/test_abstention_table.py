"""The table of selective error is what the curves hold at its coverages."""

import numpy as np
import pytest
from made_up import SETTINGS, runs

from sc_jax import ops
from sc_jax.methods import study
from sc_jax.methods.abstention_table import COVERAGES, of_interest, selective_errors


@pytest.fixture(scope="module")
def members():
    return runs(alphas=(0.0, "deep_gamblers=2"))


@pytest.fixture(scope="module")
def document(members):
    return study.evaluate(members, SETTINGS, ())


def test_values_are_the_mean_selective_error_over_seeds(members, document):
    found = selective_errors(document)
    assert found[0].treatment == {"alpha": 0.0}
    assert {"objective": "deep_gamblers=2"} in [row.treatment for row in found]
    for row in found:
        if row.score != "msp":
            continue
        mine = [run.test for run in members if run.alpha == (row.treatment.get("objective") or 0.0)]
        for coverage, risk, low, high in zip(COVERAGES, row.risk, row.low, row.high, strict=True):
            each = [
                ops.risk_at_coverage(ops.msp(t.logits), ops.predicted_class(t.logits) != t.label, (coverage, 100))
                for t in mine
            ]
            assert risk == pytest.approx(np.mean(each), abs=1e-6)
            assert low <= risk + 1e-6
            assert high >= risk - 1e-6


def test_other_coverages_are_refused(document):
    with pytest.raises(ValueError, match="coverage 101 %"):
        selective_errors(document, (101,))


def test_each_method_is_shown_by_its_own_scores(document):
    row = selective_errors(document)[0]
    shown = lambda treatment, score: of_interest(row._replace(treatment=treatment, score=score))  # noqa: E731
    assert shown({"alpha": 0.0}, "msp")
    assert shown({"alpha": 0.0}, "confidnet")
    assert not shown({"alpha": 0.0}, "sparsemax")
    assert shown({"objective": "entmax=2"}, "sparsemax")
    assert not shown({"objective": "entmax=2"}, "entmax15")
    assert shown({"objective": "deep_gamblers=2"}, "model_confidence")
    assert not shown({"objective": "deep_gamblers=2"}, "confidnet")
