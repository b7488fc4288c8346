"""The door: what it prints is what it writes, what it writes is what the selector decides, and what is wrong is refused."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import run_door
from made_up import predictions

from sc_jax import files, select
from sc_jax import predictions as predictions_lib
from sc_jax.files import InputError
from sc_jax.methods import guarantees, selector

CERTAIN = ("--risk=0.15", "--delta=0.1")


def made(seed, n=800, **changes):
    return predictions(seed, n, signal=2.6, example_id=seed * 10_000 + np.arange(n), **changes)


@pytest.fixture(autouse=True)
def files_of_three_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("tuning", "val", "test")):
        predictions_lib.save(f"{name}.npz", made(seed, group=np.arange(800) % 2))


def run(*arguments):
    select.main(["--calibration=val.npz", "--predictions=test.npz", *arguments])


def refusal(*arguments):
    with pytest.raises(InputError) as error:
        run(*arguments)
    return str(error.value)


@pytest.mark.parametrize("method", select.METHODS)
def test_what_is_written_is_what_the_selector_decides(method, capsys):
    marginal = method == "crc" or method.startswith("singleton")
    run(f"--method={method}", "--workdir=out", *(["--risk=0.07"] if marginal else CERTAIN))
    chosen = selector.load("out/selector.json")
    test = predictions_lib.load("test.npz")
    decision, written = chosen(test), files.read_npz("out/decisions.npz")
    for name, array in decision._asdict().items():
        np.testing.assert_array_equal(written[name], array)
    np.testing.assert_array_equal(written["example_id"], test.example_id)
    about = files.read_json("out/decisions.json")
    assert about["fingerprint"] == files.fingerprint(written)
    accept, wrong = decision.accept, decision.prediction != test.label
    assert accept.any() or method.startswith("singleton_")
    (found,) = about["test"]
    assert found["coverage"] == accept.mean()
    assert found["errors"] == (accept & wrong).sum()
    assert found["accepted_and_wrong"] == (accept & wrong).mean()
    printed = capsys.readouterr().out
    assert str(chosen.promise) in printed
    assert f"coverage {found['coverage']:.4f}" in printed
    if chosen.rule == "threshold":
        assert f"≥ {chosen.thresholds['all']:.6g}" in printed


def test_the_fit_is_that_of_the_files():
    run("--method=ltt_fixed_sequence", "--tuning=tuning.npz", "--starts=0.4,0.7", "--workdir=out", *CERTAIN)
    by_hand = guarantees.fit(
        predictions_lib.load("val.npz"),
        "ltt_fixed_sequence",
        risk=0.15,
        delta=0.1,
        tuning=predictions_lib.load("tuning.npz"),
        starts=(0.4, 0.7),
    )
    assert selector.load("out/selector.json").thresholds == by_hand.thresholds
    run("--method=ltt_fixed_sequence", "--workdir=drawn", "--tuning-share=0.3", *CERTAIN)
    drawn = selector.load("drawn/selector.json")
    assert drawn.fitted_on.n == 560
    with pytest.raises(InputError, match="was fitted on"):
        drawn(predictions_lib.load("val.npz"))


def test_fitted_scores_take_examples_of_their_own():
    run("--method=sgr", "--score=max_logit_pnorm", "--tuning=tuning.npz", "--workdir=out", *CERTAIN)
    assert selector.load("out/selector.json").fitted_on.n == 800
    run("--method=sgr", "--score=max_logit_pnorm", "--workdir=out", *CERTAIN)
    assert selector.load("out/selector.json").fitted_on.n == 640


def test_groups_are_printed_and_nothing_may_be_certified(capsys):
    run("--method=sgr", "--within=group", *CERTAIN)
    printed = capsys.readouterr().out
    assert "group 0: threshold" in printed
    assert "within each group" in printed
    run("--method=sgr", "--risk=0.0001", "--delta=0.01")
    printed = capsys.readouterr().out
    assert "no threshold can be certified on 800 examples: nothing is accepted" in printed
    assert "coverage 0.0000 (0 of 800), realised no risk" in printed


def test_ood_rows_are_decided_and_not_counted(capsys):
    odd = np.arange(800) % 4 == 0
    predictions_lib.save("test.npz", made(2, is_ood=odd))
    run("--method=crc", "--risk=0.07", "--workdir=out")
    accept = files.read_npz("out/decisions.npz")["accept"]
    assert len(accept) == 800
    assert files.read_json("out/decisions.json")["test"][0]["accepted"] == accept[~odd].sum()


@pytest.mark.parametrize("method", ["crc", "singleton_lac"])
def test_a_marginal_method_has_no_delta(method):
    assert "has no δ" in refusal(f"--method={method}", *CERTAIN)


def test_what_is_wrong_is_refused():
    assert "delta must lie" in refusal("--method=sgr", "--risk=0.1")
    assert "risk must lie" in refusal("--method=sgr", "--risk=1.5", "--delta=0.1")
    assert "leave the score out" in refusal("--method=singleton_lac", "--risk=0.1", "--score=msp")
    assert "did you mean 'msp'" in refusal("--method=sgr", "--score=mps", *CERTAIN)
    assert "needs features" in refusal("--method=sgr", "--score=mahalanobis", *CERTAIN)
    assert "one path" in refusal("--method=sgr", "--within=label", *CERTAIN)
    for name in ("val", "test"):
        assert "tuning file is of the same split" in refusal(
            "--method=ltt_holm", f"--tuning={name}.npz", "--risk=0.15", "--delta=0.1"
        )
    with pytest.raises(InputError, match="calibration file is of the same split"):
        select.main(["--calibration=val.npz", "--predictions=val.npz", "--method=sgr", *CERTAIN])
    predictions_lib.save("weighed.npz", made(7, weight=np.random.default_rng(0).random(800)))
    with pytest.raises(InputError, match="weights differ"):
        select.main(["--calibration=weighed.npz", "--predictions=test.npz", "--method=sgr", *CERTAIN])
    predictions_lib.save("overlap.npz", dataclasses.replace(made(7), example_id=10_790 + np.arange(800)))
    with pytest.raises(InputError, match="10 ids are in"):
        select.main(["--calibration=val.npz", "--predictions=overlap.npz", "--method=sgr", *CERTAIN])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("--method=ltt_holm", "--starts=0.3", *CERTAIN), "starts"),
        (("--method=sgr", "--starts=0.3", *CERTAIN), "starts"),
        (("--method=sgr", "--tuning=tuning.npz", *CERTAIN), "tuning"),
        (("--method=sgr", "--tuning-share=0.3", *CERTAIN), "tuning-share"),
        (("--method=singleton_lac", "--tuning=tuning.npz", "--risk=0.07"), "tuning"),
        (("--method=crc", "--p-value=binomial", "--risk=0.07"), "p-value"),
        (("--method=sgr", "--p-value=hoeffding_bentkus", *CERTAIN), "p-value"),
        (("--method=ltt_holm", "--tuning=tuning.npz", "--tuning-share=0.3", *CERTAIN), "tuning-share"),
    ],
    ids=str,
)
def test_what_a_method_does_not_use_is_refused(arguments, name):
    assert refusal(*arguments).startswith(f"--{name}: is not used with ")


@pytest.mark.parametrize("method", [method for method in select.METHODS if method.startswith("ltt")])
def test_the_p_value_is_chosen(method):
    for name in guarantees.P_VALUES:
        run(f"--method={method}", "--tuning=tuning.npz", f"--p-value={name}", "--workdir=out", *CERTAIN)
        splits = (predictions_lib.load(f"{split}.npz") for split in ("val", "tuning"))
        by_hand = guarantees.fit(next(splits), method, risk=0.15, delta=0.1, tuning=next(splits), p_value=name)
        assert selector.load("out/selector.json").thresholds == by_hand.thresholds


def test_a_marginal_method_certifies_no_bound(capsys):
    run("--method=crc", "--risk=0.07", "--workdir=out")
    printed = capsys.readouterr().out
    about = selector.load("out/selector.json").about["all"]
    assert about["bound"] is None
    assert "certified" not in printed
    stated = f"({about['errors']} + 1)/({about['n']} + 1) ≤ 0.07, on average over calibration sets"
    assert stated in printed
    assert (about["errors"] + 1) / (about["n"] + 1) <= 0.07
    run("--method=crc", "--risk=0.2", "--within=label")
    assert "of each label ≤ 0.2, on average over calibration sets" in capsys.readouterr().out


def test_refused_runs_write_nothing(tmp_path):
    refusal("--method=crc", "--workdir=out", *CERTAIN)
    assert not (tmp_path / "out").exists()
    (tmp_path / "study").mkdir()
    (tmp_path / "study/config.json").write_text("{}")
    assert "holds the run of a study" in refusal("--method=sgr", "--workdir=study", *CERTAIN)
    assert not (tmp_path / "study/selector.json").exists()


@pytest.mark.parametrize(
    "argument", ["--starts=0", "--starts=a", "--starts=0.5,1.5", "--tuning-share=1", "--method=best"]
)
def test_arguments_out_of_range_exit_with_2(argument):
    with pytest.raises(SystemExit) as exit_:
        run("--method=sgr", *CERTAIN, argument)
    assert exit_.value.code == 2


def test_it_is_a_door(tmp_path):
    arguments = [
        f"--{name}={tmp_path / file}" for name, file in (("calibration", "val.npz"), ("predictions", "test.npz"))
    ]
    done = run_door("select", *arguments, "--method=sgr", *CERTAIN, f"--workdir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/selector.json").read_text())["method"] == "sgr"
    done = run_door("select", *arguments, "--method=crc", *CERTAIN)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --method=crc: a marginal promise")
