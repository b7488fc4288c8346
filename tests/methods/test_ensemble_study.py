"""What an ensemble buys: rows of every member and combination are those of its outputs, and what is fitted never sees the test split."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.methods import ensemble, ensemble_study
from sc_jax.methods.evaluation import Settings
from sc_jax.predictions import Predictions

SCORES = ("msp", "energy", "msp_temperature", "mutual_information")
SETTINGS = Settings(SCORES, (1, 2), 10, 20, 0.95, 0)


def split(name: str, first_id: int, members: int = 3, n: int = 300, k: int = 4) -> list[Predictions]:
    label = np.random.default_rng(first_id).integers(0, k, n)
    made = []
    for i in range(members):
        noise = np.random.default_rng([first_id, i]).normal(size=(n, k))
        logits = 2 * np.eye(k)[label] + (1 + i) * noise
        about = {"split": name, "tags": {"seed": i}}
        ids = np.arange(first_id, first_id + n)
        made.append(Predictions(label, logits, ids, provenance=about, source=f"{i}/{name}.npz"))
    return made


@pytest.fixture(scope="module")
def found() -> tuple[dict, dict[str, Predictions]]:
    document, combined = ensemble_study.evaluate(split("test", 1000), split("validation", 0), SETTINGS, most=3)
    return json.loads(json.dumps(document, default=np.ndarray.tolist)), combined


def row(document: dict, name: str, score: str) -> dict:
    (one,) = [r for r in document["runs"] if (r["predictions"], r["score"]) == (name, score)]
    return one["metrics"]


def test_every_member_and_every_combination_has_rows(found: tuple) -> None:
    document, _ = found
    names = [f"member {i}" for i in (1, 2, 3)]
    names += [f"{what}, {space}" for space in ("probability", "logit") for what in ("mean", "weighted")]
    assert list(dict.fromkeys(r["predictions"] for r in document["runs"])) == names
    told = {(r["predictions"], r["score"]) for r in document["runs"]}
    for name in names:
        assert {(name, "msp"), (name, "msp_temperature")} <= told
        assert ((name, "mutual_information") in told) == (name == "mean, probability")
        assert ((name, "energy") in told) == (not name.endswith("probability"))  # a mean of probabilities has no logits
    assert document["ensemble"]["members"] == [f"{i}/test.npz" for i in range(3)]


def test_rows_are_those_of_the_outputs(found: tuple) -> None:
    document, combined = found
    tests, tuning = split("test", 1000), ensemble.stack(split("validation", 0))
    label = tests[0].label
    stacked = np.stack([one.logits for one in tests])
    expected = {f"member {i + 1}": one for i, one in enumerate(stacked)}
    for space in ("probability", "logit"):
        weights = ensemble.fit_weights(tuning, space).weights
        expected[f"mean, {space}"] = ensemble.combine(stacked, space=space)
        expected[f"weighted, {space}"] = ensemble.combine(stacked, weights, space)
        np.testing.assert_allclose(combined[space].logits, expected[f"weighted, {space}"], rtol=1e-12)
    for name, logits in expected.items():
        told = row(document, name, "msp")
        error = ops.predicted_class(logits) != label
        assert told["error"] == pytest.approx(error.mean())
        assert told["nll"] == pytest.approx(ops.negative_log_likelihood(logits, label))
        assert told["aurc"] == pytest.approx(ops.aurc(ops.msp(logits), error))


def test_weights_are_of_the_calibration_split_alone(found: tuple) -> None:
    document, _ = found
    other = [dataclasses.replace(one, logits=-one.logits) for one in split("test", 1000)]
    again, _ = ensemble_study.evaluate(other, split("validation", 0), SETTINGS, most=3)
    assert [w["weights"] for w in again["ensemble"]["weights"]] == [
        w["weights"] for w in document["ensemble"]["weights"]
    ]
    for told in document["ensemble"]["weights"]:
        assert told["log_loss"] < told["equal_log_loss"]
        assert told["fitted_on"] == "validation"


def test_diversity_and_curves_are_those_of_the_members(found: tuple) -> None:
    document, _ = found
    told = document["ensemble"]
    stacked, label = np.stack([one.logits for one in split("test", 1000)]), split("test", 1000)[0].label
    for part in told["diversity"]:
        direct = ensemble.diversity(stacked, label, part["space"])
        assert part["nll_gap"] == pytest.approx(direct.nll_gap)
        assert part["q_statistic"] == pytest.approx(direct.pair_means()["q_statistic"])
        assert part["member_nll"] - part["ensemble_nll"] == pytest.approx(part["nll_gap"])
    nll = {(r["name"], r["members"]): r for r in told["curves"] if r["metric"] == "nll"}
    assert set(nll) == {(f"mean of {what}", m) for what in ("probabilities", "logits") for m in (1, 2, 3)}
    one = nll["mean of probabilities", 1]
    singles = [ops.negative_log_likelihood(logits, label) for logits in stacked]
    assert one["mean"] == pytest.approx(np.mean(singles))
    assert min(singles) <= one["interval"][0] < one["interval"][1] <= max(singles)
    assert one["interval_covers"] == "subsets of these members"


def test_a_file_of_members_is_as_good_as_files_of_one() -> None:
    parts = split("test", 1000)
    whole = ensemble.stack(parts)
    told = [ensemble_study.evaluate(given, None, SETTINGS, most=3)[0] for given in (parts, [whole])]
    assert told[0]["ensemble"]["diversity"] == told[1]["ensemble"]["diversity"]
    assert told[0]["ensemble"]["weights"] == []
    for name in ("member 2", "mean, logit"):
        assert row(told[0], name, "msp")["aurc"] == row(told[1], name, "msp")["aurc"]
    assert told[1]["ensemble"]["members"] == [f"{whole.source}, member {i}" for i in (1, 2, 3)]


def test_probabilities_are_combined_as_such_and_ood_examples_do_not_count() -> None:
    is_ood = np.arange(300) % 3 == 0
    parts = [
        dataclasses.replace(one, logits=ops.log_softmax(one.logits), log_probabilities=True, is_ood=is_ood)
        for one in split("test", 1000)
    ]
    document, combined = ensemble_study.evaluate(parts, None, SETTINGS, most=3)
    assert set(combined) == {"probability"}
    assert document["ensemble"]["n"] == 200
    stacked = np.stack([one.logits[~is_ood] for one in parts])
    error = ops.predicted_class(ensemble.combine(stacked)) != parts[0].label[~is_ood]
    assert document["ensemble"]["diversity"][0]["ensemble_error"] == pytest.approx(error.mean())


def test_members_of_other_examples_are_refused_by_name() -> None:
    parts = split("test", 1000)
    parts[2] = dataclasses.replace(parts[2], example_id=parts[2].example_id + 1)
    with pytest.raises(InputError, match=r"2/test\.npz.*example_id"):
        ensemble_study.evaluate(parts, None, SETTINGS)
