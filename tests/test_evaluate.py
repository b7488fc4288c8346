"""`evaluate` on files from anywhere: label and logits are enough, whatever is wrong is refused, and nothing is half done."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, run_door
from made_up import CLASSES, best_p, errors, metrics_of, predictions, with_head

from sc_jax import evaluate, files, ops, report
from sc_jax import predictions as predictions_lib
from sc_jax.files import InputError
from sc_jax.methods import guarantees, selector, streaming
from sc_jax.methods.scores import SCORES
from sc_jax.ops import resampling

RESAMPLES = 40
GRID = tuple(range(1, 11))
OF_LOGITS = (
    "msp",
    "margin",
    "logit_margin",
    "negative_entropy",
    "negative_gini",
    "doctor_alpha",
    "doctor_beta",
    "max_logit",
    "energy",
    "sparsemax",
    "entmax15",
)
OF_MEMBERS = ("expected_entropy", "mutual_information", "variation_ratio", "disagreement", "mean_max_probability")
TUNED = ("max_logit_pnorm", "max_logit_pnorm_or_msp")


def write(path, given, ids=False, **more):
    """A file as another tool would write it: no sidecar, ids only where asked for."""
    arrays = {"label": given.label, "logits": given.logits, **more}
    if ids:
        arrays["example_id"] = given.example_id
    np.savez(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    """Files are named by short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def test_file():
    return write("test.npz", predictions(0))


@pytest.fixture
def calibration_file():
    return write("val.npz", predictions(1, n=50))


def run(*argv, workdir="out"):
    """Runs the door and returns what it wrote."""
    evaluate.main([*argv, f"--resamples={RESAMPLES}", f"--workdir={workdir}"])
    return files.read_json(f"{workdir}/metrics.json")


def refusal(*argv):
    """The message of the refusal, which leaves the folder as it was."""
    before = snapshot()
    with pytest.raises(InputError) as caught:
        evaluate.main([*argv, f"--resamples={RESAMPLES}", "--workdir=out"])
    assert snapshot() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def snapshot():
    paths = (path for path in Path().rglob("*") if path.name != ".lock")
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


# --- label and logits alone -------------------------------------------------------------------------------------------


def test_a_process_evaluates_label_and_logits_and_says_what_it_leaves_out(in_a_folder, test_file):
    done = run_door("evaluate", f"--predictions={in_a_folder / test_file}", f"--workdir={in_a_folder / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for said in (
        "left out: msp_temperature, max_logit_pnorm, max_logit_pnorm_or_msp, msp_pnorm of ",
        "--calibration",
        "NAURC",
        "AURC %",
    ):
        assert said in done.stdout
    document = files.read_json("out/metrics.json")
    assert [row["score"] for row in document["runs"]] == list(OF_LOGITS)
    reasons = {row["score"]: row["reason"] for row in document["left_out"]}
    assert set(reasons) == set(SCORES) - set(OF_LOGITS)
    assert {name for name in reasons if "--calibration" in reasons[name]} == {"msp_temperature", *TUNED, "msp_pnorm"}
    features = {name for name, score in SCORES.items() if "features" in score.needs}
    assert {name for name in reasons if "needs features" in reasons[name]} == features
    assert {name for name in reasons if "members" in reasons[name]} == set(OF_MEMBERS)


@pytest.mark.parametrize("arguments", [["--predictions=test.npz"], ["--predictions", "test.npz"]])
def test_without_a_workdir_the_table_is_printed_and_nothing_written(capsys, test_file, arguments):
    before = snapshot()
    evaluate.main([*arguments, f"--resamples={RESAMPLES}"])
    assert "AURC" in capsys.readouterr().out
    assert snapshot() == before


def test_metrics_json_follows_its_schema(test_file, calibration_file):
    document = run("--predictions=test.npz", "--calibration=val.npz")
    assert document["schema"] == 1
    assert [row["score"] for row in document["runs"]] == [
        name for name in SCORES if name in (*OF_LOGITS, "msp_temperature", *TUNED, "msp_pnorm")
    ]
    for row in document["runs"]:
        assert row["predictions"] == "test.npz"
        assert row["split"] is None
        assert row["tags"] == {}
        assert row["n"] == 60
        assert row["fitted_on"] == ("val.npz" if row["score"] not in OF_LOGITS else None)
        assert row["intervals"].keys() < row["metrics"].keys()
        without = row["metrics"].keys() - row["intervals"].keys()
        assert without.isdisjoint({"error", "aurc", "naurc", "augrc", "failure_auroc", "coverage_at_risk_0.05", "ece"})
        assert not {name for name in without if name.startswith("threshold")}
        assert {"error", "aurc", "e_aurc", "naurc", "augrc", "failure_auroc"} <= row["metrics"].keys()
        assert {f"coverage_at_risk_{r}" for r in ("0.01", "0.02", "0.05")} <= row["metrics"].keys()
        assert {f"risk_at_coverage_{c}" for c in ("0.8", "0.9")} <= row["metrics"].keys()
        assert ({"ece", "nll", "brier"} <= row["metrics"].keys()) == (row["score"] == "msp")
        for metric, (low, high) in row["intervals"].items():
            assert low is not None or metric.startswith("threshold_at_risk")  # which may accept nothing
            assert (low is None) == (high is None)
            assert low is None or low <= high
    assert {row["score"] for row in document["left_out"]} == set(SCORES) - {row["score"] for row in document["runs"]}
    assert document["match_error"] is None
    (table,) = document["reliability"]
    assert table["predictions"] == "test.npz"
    assert sum(table["weight"]) == 60
    for curve in document["curves"]:
        assert len(curve["coverage"]) == len(curve["risk"]) == len(curve["low"]) == len(curve["high"]) == 100


def test_the_numbers_are_those_of_the_definitions(test_file, calibration_file):
    document = run(
        "--predictions=test.npz", "--calibration=val.npz", "--seed=5", "--scores=" + ",".join(("msp", *TUNED))
    )
    counts = resampling.resample_counts(5, 60, RESAMPLES)
    test, calibration = predictions(0), predictions(1, n=50)
    for row in document["runs"]:
        p = best_p(row["score"], calibration, GRID)
        assert (row["fitted"] or {}).get("p") == (p or None)
        expected = metrics_of(row["score"], test, p)
        for metric in ("error", "aurc", "naurc", "coverage_at_risk_0.05", "risk_at_coverage_0.9"):
            assert row["metrics"][metric] == pytest.approx(expected[metric], rel=1e-10)
        score = ops.msp(test.logits) if p == 0 else ops.max_logit_pnorm(test.logits, p)
        error = test.logits.argmax(axis=1) != test.label
        low, high = np.quantile(ops.aurc(score, error, weight=counts), [0.025, 0.975])
        assert row["intervals"]["aurc"] == pytest.approx([low, high], rel=1e-10)


def test_the_same_command_gives_the_same_bytes(test_file, calibration_file):
    arguments = ("--predictions=test.npz", "--calibration=val.npz")
    run(*arguments, workdir="a")
    run(*arguments, workdir="b")
    assert Path("a/metrics.json").read_bytes() == Path("b/metrics.json").read_bytes()
    other = run(*arguments, "--seed=1", workdir="c")
    assert other["runs"][0]["intervals"] != files.read_json("a/metrics.json")["runs"][0]["intervals"]


def test_the_order_of_rows_does_not_matter_where_examples_have_ids(test_file, calibration_file):
    rng = np.random.default_rng(0)
    for name, given in (("test", predictions(0)), ("val", predictions(1, n=50))):
        given = dataclasses.replace(given, example_id=rng.permutation(1000)[: len(given)] + (name == "val") * 1000)
        write(f"ordered-{name}.npz", given, ids=True)
        write(f"mixed-{name}.npz", predictions_lib.select(given, rng.permutation(len(given))), ids=True)
    ordered = run("--predictions=ordered-test.npz", "--calibration=ordered-val.npz", workdir="a")
    mixed = run("--predictions=mixed-test.npz", "--calibration=mixed-val.npz", workdir="b")
    for a, b in zip(ordered["runs"], mixed["runs"], strict=True):
        assert (a["metrics"], a["intervals"]) == (b["metrics"], b["intervals"])
    for a, b in zip(ordered["curves"], mixed["curves"], strict=True):
        assert (a["risk"], a["low"], a["high"]) == (b["risk"], b["low"], b["high"])


def test_two_files_are_evaluated_each_by_itself(test_file):
    write("other.npz", predictions(7, n=45))
    both = run("--predictions=test.npz,other.npz", "--scores=msp,max_logit")
    assert [(row["predictions"], row["score"], row["n"]) for row in both["runs"]] == [
        ("test.npz", "msp", 60),
        ("test.npz", "max_logit", 60),
        ("other.npz", "msp", 45),
        ("other.npz", "max_logit", 45),
    ]
    alone = run("--predictions=other.npz", "--scores=msp,max_logit", workdir="alone")
    matched = [row["metrics"].pop("aurc_at_matched_error") for row in both["runs"]]
    assert [row["intervals"].pop("aurc_at_matched_error")[0] <= m for row, m in zip(both["runs"], matched, strict=True)]
    assert alone["runs"] == both["runs"][2:]


def test_tags_and_split_come_from_the_sidecar():
    given = predictions(0, provenance={"split": "dev", "tags": {"model": "resnet", "seed": 3}})
    predictions_lib.save("tagged.npz", given)
    row = run("--predictions=tagged.npz")["runs"][0]
    assert (row["split"], row["tags"]) == ("dev", {"model": "resnet", "seed": 3})


# --- what there is decides what can be computed -----------------------------------------------------------------------


def test_two_classes_leave_out_p_norm():
    write("test.npz", predictions(0, k=2))
    write("val.npz", predictions(1, k=2))
    document = run("--predictions=test.npz", "--calibration=val.npz")
    assert [row["score"] for row in document["runs"]] == [
        name for name in SCORES if name in (*OF_LOGITS, "msp_temperature")
    ]
    assert {r["score"] for r in document["left_out"] if "k = 2" in r["reason"]} == {*TUNED, "msp_pnorm"}
    rows = {row["score"]: row["metrics"] for row in document["runs"]}
    for name in (*OF_LOGITS[1:7], "msp_temperature"):  # all but the max logit and the energy, which see a shift
        assert rows[name]["aurc"] == pytest.approx(rows["msp"]["aurc"], rel=1e-9)  # two classes have one order


def test_probabilities_leave_out_the_max_logit_and_give_the_same_msp(test_file):
    given = predictions(0)
    np.savez("probs.npz", label=given.label, probs=np.exp(ops.log_softmax(given.logits)))
    document = run("--predictions=probs.npz,test.npz", "--scores=max_logit,msp")
    assert [(r["predictions"], r["score"]) for r in document["left_out"]] == [("probs.npz", "max_logit")]
    assert "true logits" in document["left_out"][0]["reason"]
    rows = {(row["predictions"], row["score"]): row for row in document["runs"]}
    for metric, value in rows["test.npz", "msp"]["metrics"].items():
        assert rows["probs.npz", "msp"]["metrics"][metric] == pytest.approx(value, rel=1e-9)


def test_a_certain_mistake_is_an_infinite_log_loss_and_does_not_end_the_run(capsys):
    """Forests and nearest neighbours say 0 and mean it."""
    probs = np.tile([[0.6, 0.4, 0.0]], (30, 1))
    probs[:5] = [0.0, 0.0, 1.0]
    label = np.zeros(30, int)
    label[0], label[4] = 1, 2
    np.savez("forest.npz", label=label, probs=probs)
    document = run("--predictions=forest.npz")
    metrics = document["runs"][0]["metrics"]
    assert metrics["nll"] is None  # JSON has no word for infinity
    assert metrics["error"] == pytest.approx(4 / 30)
    assert "inf" in capsys.readouterr().out
    assert any("probability is exactly 0" in row["reason"] for row in document["left_out"])


def test_an_ensemble_is_evaluated_as_its_mean_probabilities():
    members = np.stack([predictions(seed).logits for seed in (0, 1, 2)])
    label = predictions(0).label
    np.savez("ensemble.npz", label=label, logits=members)
    np.savez("mean.npz", label=label, probs=np.exp(ops.log_softmax(members)).mean(axis=0))
    document = run("--predictions=ensemble.npz,mean.npz", "--scores=msp")
    ensemble, mean = document["runs"]
    for metric, value in mean["metrics"].items():
        assert ensemble["metrics"][metric] == pytest.approx(value, rel=1e-9)
    assert (
        "true logits"
        in run("--predictions=ensemble.npz", "--scores=max_logit,msp", workdir="b")["left_out"][0]["reason"]
    )


def test_all_right_predictions_are_evaluated_and_what_is_undefined_is_shown_as_such(capsys):
    given = predictions(0)
    write("right.npz", dataclasses.replace(given, label=given.logits.argmax(axis=1)))
    document = run("--predictions=right.npz")
    assert document["runs"][0]["metrics"]["naurc"] is None
    assert document["runs"][0]["metrics"]["aurc"] == 0
    printed = capsys.readouterr().out
    msp = next(line for line in printed.splitlines() if "msp" in line)
    assert msp.count("undefined [undefined, undefined]") == 2  # NAURC and AUROC_f
    assert "nan" not in printed.replace("nan_", "")


@pytest.mark.parametrize("name", ["[bold]x.npz", "a[/b]c.npz", "x:smile:.npz", "<b>.npz", "ä b.npz"])
def test_any_file_name_is_printed_as_it_is(capsys, name):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    write(name, predictions(0))
    document = run(f"--predictions={name}")
    assert document["runs"][0]["predictions"] == name
    reasons = {row["reason"] for row in document["left_out"]}
    assert capsys.readouterr().out.count(name) == 1 + len(reasons)  # the table, and a line for each


# --- calibration ------------------------------------------------------------------------------------------------------


def save(name, given, **provenance):
    predictions_lib.save(name, dataclasses.replace(given, provenance=provenance))


def test_the_test_file_itself_is_no_calibration_file(test_file):
    os.symlink("test.npz", "link.npz")
    for same in ("test.npz", "./test.npz", "link.npz"):
        assert "calibration file is of the same split" in refusal("--predictions=test.npz", f"--calibration={same}")


@pytest.mark.parametrize("ids", [False, True])
def test_the_same_content_under_another_name_is_no_calibration_file(ids):
    rng = np.random.default_rng(0)
    given = predictions(0)
    write("test.npz", given, ids=ids)
    mixed = predictions_lib.select(given, rng.permutation(60))
    write("copy.npz", dataclasses.replace(mixed, example_id=mixed.example_id + 1000), ids=ids)
    message = refusal("--predictions=test.npz", "--calibration=copy.npz")
    assert message.startswith("copy.npz: 60 of its 60 rows")


def test_the_same_split_by_sidecar_is_no_calibration_file():
    save("test.npz", predictions(0), dataset="d", split="test")
    save("again.npz", dataclasses.replace(predictions(1), example_id=np.arange(60) + 100), dataset="d", split="test")
    assert "again.npz: the calibration file is of the same split" in refusal(
        "--predictions=test.npz", "--calibration=again.npz"
    )
    save("other.npz", dataclasses.replace(predictions(1), example_id=np.arange(60) + 100), dataset="d", split="val")
    rows = run("--predictions=test.npz", "--calibration=other.npz")["runs"]
    assert {row["fitted_on"] for row in rows if row["score"] in TUNED} == {"val"}


def test_another_model_by_sidecar_is_no_calibration_file():
    save("test.npz", predictions(0), split="test", tags={"seed": 0})
    save("val.npz", dataclasses.replace(predictions(1), example_id=np.arange(60) + 100), split="val", tags={"seed": 1})
    message = refusal("--predictions=test.npz", "--calibration=val.npz")
    assert "val.npz: is of another model than test.npz (tags differ" in message


@pytest.mark.parametrize("shared", [1, 10])
def test_ids_that_both_files_give_are_no_calibration_examples(shared):
    test = predictions(0)
    write("test.npz", test, ids=True)
    ids = np.concatenate([test.example_id[-shared:], 1000 + np.arange(50 - shared)])
    write("val.npz", dataclasses.replace(predictions(1, n=50), example_id=ids), ids=True)
    message = refusal("--predictions=test.npz", "--calibration=val.npz")
    assert f"val.npz, field 'example_id': {shared} ids are in test.npz too (first {60 - shared})" in message


@pytest.mark.parametrize("one_data_set", [True, False])
def test_rows_alike_are_allowed_where_ids_of_one_data_set_name_them(one_data_set):
    """A table may hold the same row twice; each has its id, and its split."""
    test = predictions(0)
    save("test.npz", test, dataset="d", split="test", data_fingerprint="a")
    alike = dataclasses.replace(test, example_id=test.example_id + 1000)
    save("val.npz", alike, dataset="d", split="val", data_fingerprint="a" if one_data_set else "b")
    command = ("--predictions=test.npz", "--calibration=val.npz")
    if one_data_set:
        assert run(*command)["runs"]
    else:
        assert "60 of its 60 rows" in refusal(*command)


def test_a_part_of_the_test_file_without_ids_is_no_calibration_file():
    write("test.npz", predictions(0))
    write("part.npz", predictions_lib.select(predictions(0), np.arange(20, 40)))
    assert "20 of its 20 rows" in refusal("--predictions=test.npz", "--calibration=part.npz")


def test_row_numbers_are_no_ids_that_files_could_share(test_file, calibration_file):
    """Both files count their rows 0, 1, 2 …; they are different examples all the same."""
    assert {*TUNED} < {row["score"] for row in run("--predictions=test.npz", "--calibration=val.npz")["runs"]}


def test_another_number_of_classes_is_no_calibration_file(test_file):
    write("val.npz", predictions(1, k=CLASSES + 1))
    assert "val.npz, field 'logits': k = 6 classes, test.npz has 5" in refusal(
        "--predictions=test.npz", "--calibration=val.npz"
    )


def test_the_calibration_file_is_held_against_every_file(test_file):
    write("other.npz", predictions(7))
    assert "other.npz: " in refusal("--predictions=test.npz,other.npz", "--calibration=other.npz")


# --- refusals through the door ----------------------------------------------------------------------------------------

GOOD = {"label": predictions(0).label, "logits": predictions(0).logits}


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        ({"logits": put(GOOD["logits"], [3, 8], np.nan)}, ["'logits'", "2 of 60", "first example_id 3"]),
        ({"logits": put(GOOD["logits"], (5, 2), np.inf)}, ["'logits'", "1 of 60", "first example_id 5"]),
        ({"label": put(GOOD["label"], 4, 5)}, ["'label'", "outside 0..4", "example_id 4"]),
        ({"label": put(GOOD["label"], 4, -1)}, ["'label'", "outside 0..4"]),
        ({"label": GOOD["label"] * 1.0}, ["'label'", "integers are needed"]),
        ({"label": GOOD["label"][:-1]}, ["'logits'", "label has 59"]),
        ({"example_id": np.zeros(60, int)}, ["'example_id'", "59 of 60 are repeated"]),
        ({"example_id": np.arange(59)}, ["'example_id'", "60 examples"]),
        ({"label": GOOD["label"][:0], "logits": GOOD["logits"][:0]}, ["'label'", "empty"]),
        ({"logits": GOOD["logits"][:, :1], "label": np.zeros(60, int)}, ["'logits'", "k = 1"]),
        ({"logits": GOOD["logits"].astype(object)}, ["'logits'", "pickled"]),
    ],
)
@pytest.mark.parametrize("role", ["predictions", "calibration"])
def test_a_broken_file_is_refused_in_either_role_before_any_work(role, arrays, parts, monkeypatch):
    np.savez("broken.npz", **{**GOOD, **arrays})
    write("fine.npz", predictions(1))
    monkeypatch.setattr(evaluate.evaluation, "evaluate", lambda *_: pytest.fail("work began"))
    given = ("broken.npz", "fine.npz") if role == "predictions" else ("fine.npz", "broken.npz")
    message = refusal(f"--predictions={given[0]}", f"--calibration={given[1]}")
    assert message.startswith("broken.npz")
    for part in parts:
        assert part in message


def test_the_second_of_two_files_is_checked_before_the_first_is_worked_on(test_file, monkeypatch):
    monkeypatch.setattr(evaluate.evaluation, "evaluate", lambda *_: pytest.fail("work began"))
    assert refusal("--predictions=test.npz,none.npz") == "none.npz: no such file"


@pytest.mark.parametrize(
    ("scores", "hint"),
    [
        ("mps", "did you mean 'msp'"),
        ("msp,max_logits", "did you mean 'max_logit'"),
        ("", "there are msp, max_probability_as_stored"),
    ],
)
def test_a_misspelt_score_names_the_nearest(test_file, scores, hint):
    assert hint in refusal("--predictions=test.npz", f"--scores={scores}")


@pytest.mark.parametrize(
    "argument",
    ["--resamples=19", "--resamples=many", "--seed=-1", "--seed=x", "--score=msp", "--bins=3", "extra.npz"]
    + [f"--match-error={wrong}" for wrong in ("-0.1", "1.1", "x", "nan", "")],
)
def test_a_wrong_argument_is_refused_with_status_2(capsys, test_file, argument):
    before = snapshot()
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["--predictions=test.npz", "--workdir=out", argument])
    assert caught.value.code == 2
    assert argument.partition("=")[0] in capsys.readouterr().err
    assert snapshot() == before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda whole: b"", "the file is empty"),
        (lambda whole: whole[: len(whole) // 2], "truncated, corrupt or not an npz"),
        (lambda whole: whole[:1000] + bytes([whole[1000] ^ 8]) + whole[1001:], "truncated, corrupt or not an npz"),
    ],
)
def test_a_damaged_file_is_refused(test_file, damage, said):
    path = Path(test_file)
    path.write_bytes(damage(path.read_bytes()))
    message = refusal(f"--predictions={path}")
    assert message.startswith("test.npz")
    assert said in message


def test_a_process_given_a_damaged_file_ends_with_status_2_and_one_line(in_a_folder, test_file):
    path = in_a_folder / test_file
    path.write_bytes(path.read_bytes()[:-100])
    done = run_door("evaluate", f"--predictions={path}", f"--workdir={in_a_folder / 'out'}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: truncated, corrupt or not an npz")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (in_a_folder / "out").exists()


def test_a_file_named_twice_is_refused(test_file):
    assert "./test.npz: named twice" in refusal("--predictions=test.npz,./test.npz")


# --- a calibration file of another form -------------------------------------------------------------------------------


def test_probabilities_do_not_calibrate_logits_nor_one_model_an_ensemble(test_file):
    given = predictions(1)
    np.savez("probs.npz", label=given.label, probs=np.exp(ops.log_softmax(given.logits)))
    message = refusal("--predictions=test.npz", "--calibration=probs.npz")
    assert message.startswith("probs.npz: holds probabilities, test.npz holds logits; ")
    for m in (2, 3):
        np.savez(f"{m}.npz", label=given.label, logits=np.stack([predictions(m + i).logits for i in range(m)]))
    assert "holds logits, 3.npz holds logits of 3 members" in refusal("--predictions=3.npz", "--calibration=test.npz")
    assert "holds logits of 2 members, 3.npz" in refusal("--predictions=3.npz", "--calibration=2.npz")


# --- what may be in a file besides ------------------------------------------------------------------------------------


def save_whole(name, given, **more):
    arrays = {
        field: getattr(given, field) for field in ("features", "head_kernel", "head_bias", "group", "is_ood", "weight")
    }
    np.savez(name, label=given.label, logits=given.logits, **{k: v for k, v in arrays.items() if v is not None}, **more)


def test_a_file_with_everything_gets_every_score_of_one_model():
    rng = np.random.default_rng(0)
    extra = {"group": rng.choice(["a", "b"], 60), "is_ood": rng.random(60) < 0.2, "weight": rng.random(60)}
    save_whole("test.npz", with_head(0, **extra))
    save_whole("val.npz", with_head(1, n=50))
    document = run("--predictions=test.npz", "--calibration=val.npz", "--scores=all")
    wanted = set(SCORES) - set(OF_MEMBERS) - {"max_probability_as_stored", "model_confidence"}
    assert {row["score"] for row in document["runs"]} == wanted
    for row in document["runs"]:
        assert row["n"] == (~extra["is_ood"]).sum()
        assert [group["group"] for group in row["groups"]] == ["a", "b"]
        assert row["metrics"]["scod_ood_share"] == pytest.approx(np.average(extra["is_ood"], weights=extra["weight"]))
        assert all(value is not None for name, value in row["metrics"].items() if "threshold" not in name), row["score"]


def test_without_scores_named_all_are_meant(test_file):
    assert run("--predictions=test.npz") == run("--predictions=test.npz", "--scores=all", workdir="b")


def test_all_ood_is_refused_in_either_role(test_file):
    save_whole("ood.npz", predictions(1, is_ood=np.ones(60, bool)))
    for given in (["--predictions=ood.npz"], ["--predictions=test.npz", "--calibration=ood.npz"]):
        assert refusal(*given).startswith("ood.npz, field 'is_ood': all examples are OOD")
    save_whole("light.npz", predictions(1, is_ood=np.arange(60) < 5, weight=(np.arange(60) < 5) * 1.0))
    assert "all examples that are not OOD have weight 0" in refusal("--predictions=light.npz")


def test_true_classes_of_probability_0_are_counted_where_they_weigh(capsys):
    probs = np.full((20, 3), 1 / 3)
    probs[:4] = [0, 0.5, 0.5]
    weight, is_ood = np.ones(20), np.zeros(20, bool)
    weight[0], is_ood[1] = 0, True
    np.savez("test.npz", label=np.zeros(20, int), probs=probs, weight=weight, is_ood=is_ood)
    row = run("--predictions=test.npz", "--scores=msp")["runs"][0]
    assert row["infinite_log_losses"] == 2
    np.savez("test.npz", label=np.zeros(20, int)[:2], probs=probs[3:5], weight=weight[:2])
    row = run("--predictions=test.npz", "--scores=msp")["runs"][0]
    assert (row["infinite_log_losses"], row["metrics"]["nll"]) == (0, pytest.approx(np.log(3)))


# --- a common error rate ----------------------------------------------------------------------------------------------


def test_several_files_are_compared_at_the_mean_of_their_error_rates():
    rng = np.random.default_rng(0)
    given = [
        predictions(seed, signal=signal, weight=rng.random(60), is_ood=rng.random(60) < 0.2)
        for seed, signal in ((0, 0.5), (1, 3))
    ]
    for i, one in enumerate(given):
        save_whole(f"{i}.npz", one)
    document = run("--predictions=0.npz,1.npz", "--scores=msp")
    rates = [np.average(errors(p)[~p.is_ood], weights=p.weight[~p.is_ood]) for p in given]
    assert document["match_error"] == pytest.approx(np.mean(rates))
    for row, p, rate in zip(document["runs"], given, rates, strict=True):
        assert row["metrics"]["error"] == pytest.approx(rate)
        score, error = ops.msp(p.logits)[~p.is_ood], errors(p)[~p.is_ood]
        value = float(ops.aurc_at_error(score, error, np.mean(rates), weight=p.weight[~p.is_ood]))
        assert row["metrics"]["aurc_at_matched_error"] == pytest.approx(value, rel=1e-9)


def test_a_common_error_can_be_named(test_file):
    document = run("--predictions=test.npz", "--match-error=0.3", "--scores=msp")
    p = predictions(0)
    value = float(ops.aurc_at_error(ops.msp(p.logits), errors(p), 0.3))
    assert document["match_error"] == 0.3
    assert document["runs"][0]["metrics"]["aurc_at_matched_error"] == pytest.approx(value, rel=1e-12)


# --- files of scores, and long files ----------------------------------------------------------------------------------


def write_scored(name="scored.npz", **more):
    rng = np.random.default_rng(0)
    loss = rng.random(80) < 0.3
    scores = {"score_mine": rng.random(80) - loss / 2, "score_<b>_$x$": rng.random(80).astype(np.float32)}
    np.savez(name, **{"loss": loss, **scores, **more})
    return loss, scores


def test_a_file_of_scores_is_evaluated():
    loss, scores = write_scored()
    document = run("--predictions=scored.npz")
    assert [row["score"] for row in document["runs"]] == ["mine", "<b>_$x$"]
    counts = resampling.resample_counts(0, 80, RESAMPLES)
    for row, score in zip(document["runs"], scores.values(), strict=True):
        for metric, value in ops.summarise(score, loss).items():
            assert row["metrics"][metric] == pytest.approx(float(value), rel=1e-12), metric
            drawn = ops.summarise(score, loss, weight=counts)[metric]
            assert row["intervals"][metric] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])), rel=1e-9), metric
        assert (row["n"], row["fitted"], row["predictions"]) == (80, None, "scored.npz")
    assert [curve["low"] for curve in document["curves"]] == [None, None]


def test_what_a_file_of_scores_cannot_do_is_refused():
    write_scored()
    write("test.npz", predictions(0))
    for argument in ("--calibration=test.npz", "--scores=msp"):
        assert f"leave out {argument.partition('=')[0]}" in refusal("--predictions=scored.npz", argument)
    assert "--match-error is not computed" in refusal("--predictions=scored.npz", "--match-error=0.1")
    for both in ("scored.npz,test.npz", "test.npz,scored.npz"):
        assert "scored.npz: files of scores" in refusal(f"--predictions={both}")
    write_scored("ood.npz", is_ood=np.ones(80, bool))
    assert "ood.npz, field 'is_ood': all examples are OOD" in refusal("--predictions=ood.npz")
    write_scored("nan.npz", score_mine=np.full(80, np.nan))
    assert "80 of 80 are NaN" in refusal("--predictions=nan.npz")


@pytest.fixture
def long_from_50(monkeypatch):
    """Files of 50 examples are long already."""
    monkeypatch.setattr(streaming, "MOST_COUNTS", 50 * RESAMPLES - 1)


def test_long_files_are_checked_as_others_are(test_file, calibration_file, long_from_50, monkeypatch):
    monkeypatch.setattr(streaming, "score_stream", lambda *_: pytest.fail("work began"))
    write("other.npz", predictions(7))
    for several in ("test.npz,other.npz", "other.npz,test.npz"):
        assert "evaluated one at a time" in refusal(f"--predictions={several}")
    assert "--match-error is not computed" in refusal("--predictions=test.npz", "--match-error=0.1")
    assert "same split" in refusal("--predictions=test.npz", "--calibration=test.npz")
    write("k6.npz", predictions(1, k=CLASSES + 1))
    assert "k = 6 classes, test.npz has 5" in refusal("--predictions=test.npz", "--calibration=k6.npz")
    write("ids.npz", predictions(0), ids=True)
    write("val-ids.npz", predictions(1), ids=True)
    assert "60 ids are in ids.npz too" in refusal("--predictions=ids.npz", "--calibration=val-ids.npz")
    save_whole("ood.npz", predictions(1, is_ood=np.ones(60, bool)))
    assert "all examples are OOD" in refusal("--predictions=ood.npz")
    assert "no score 'mps'" in refusal("--predictions=test.npz", "--scores=mps")


def test_a_long_file_gets_the_values_of_a_short_one(monkeypatch):
    rng = np.random.default_rng(0)
    extra = {"is_ood": rng.random(60) < 0.2, "group": rng.integers(0, 2, 60)}
    save_whole("test.npz", with_head(0, **extra))
    save_whole("val.npz", with_head(1, n=50))
    short = run("--predictions=test.npz", "--calibration=val.npz")
    monkeypatch.setattr(streaming, "MOST_COUNTS", 0)
    long = run("--predictions=test.npz", "--calibration=val.npz", workdir="long")
    assert long["left_out"] == short["left_out"]
    assert [row["score"] for row in long["runs"]] == [row["score"] for row in short["runs"]]
    for a, b in zip(long["runs"], short["runs"], strict=True):
        same = ("predictions", "split", "tags", "n", "argmax_ties", "infinite_log_losses", "fitted_on", "fitted")
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
        shared = {
            "aurc",
            "error",
            "coverage_at_risk_0.05",
            "aurc_sele",
            "ood_auroc",
            "scod_aurc",
            "ood_fpr_at_tpr_0.95",
        }
        assert (
            shared | ({"ece", "nll", "brier"} if a["score"] == "msp" else set())
            <= a["metrics"].keys()
            <= b["metrics"].keys()
        )
        for metric, value in a["metrics"].items():
            assert value == pytest.approx(b["metrics"][metric], rel=1e-9), (a["score"], metric)
        assert a["intervals_by"] == "jackknife over examples"
    for a, b in zip(long["curves"], short["curves"], strict=True):
        assert a["risk"] == pytest.approx(b["risk"], rel=1e-9)


def test_progress_is_told_of_each_kind_of_work(test_file, monkeypatch):
    told = []

    class Told:
        def __init__(self, total, done, what):
            told.append([what, total])

        def update(self, done, note=""):
            told[-1].append(done)

        def close(self):
            told[-1].append("closed")

    monkeypatch.setattr(evaluate, "Progress", Told)
    run("--predictions=test.npz", "--scores=msp,energy")
    assert told == [["evaluating files", 1, 1, "closed"]]
    told.clear()
    monkeypatch.setattr(streaming, "MOST_COUNTS", 0)
    run("--predictions=test.npz", "--scores=msp,energy", workdir="b")
    assert told == [["scoring examples", 60, 60, "closed"], ["evaluating scores", 2, 1, 2, "closed"]]


# --- the workdir ------------------------------------------------------------------------------------------------------


def test_an_earlier_result_outlives_a_failing_run(test_file):
    run("--predictions=test.npz")
    np.savez("test.npz", **{**GOOD, "logits": put(GOOD["logits"], 0, np.nan)})
    refusal("--predictions=test.npz")
    assert files.read_json("out/metrics.json")["runs"][0]["n"] == 60


def test_a_new_result_replaces_an_earlier_one(test_file):
    write("other.npz", predictions(7, n=45))
    run("--predictions=test.npz")
    assert {row["n"] for row in run("--predictions=other.npz")["runs"]} == {45}


def test_a_full_disk_leaves_the_earlier_result(test_file, monkeypatch):
    run("--predictions=test.npz")
    before = snapshot()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"out/metrics\.json: cannot write it"):
        evaluate.main(["--predictions=test.npz", "--seed=3", "--workdir=out"])
    assert snapshot() == before


@pytest.mark.parametrize("long", [False, True])
def test_an_interrupted_run_leaves_the_earlier_result(test_file, monkeypatch, long):
    run("--predictions=test.npz")
    before = snapshot()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "MOST_COUNTS", 0 if long else 10**9)
    monkeypatch.setattr(*((streaming, "_row") if long else (evaluate.evaluation, "_result")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(["--predictions=test.npz", "--seed=3", "--workdir=out"])
    assert snapshot() == before
    with files.lock("out"):
        pass  # and nobody holds the workdir


def test_a_workdir_that_cannot_be_used_is_refused_before_any_work(test_file, monkeypatch):
    monkeypatch.setattr(evaluate.evaluation, "evaluate", lambda *_: pytest.fail("work began"))
    os.mkdir("out")
    files.write_json("out/config.json", {})
    assert "out: holds the run of a study; name another --workdir" in refusal("--predictions=test.npz")
    os.unlink("out/config.json")
    with files.lock("out"):
        assert "another run is using this workdir" in refusal("--predictions=test.npz")
    os.unlink("out/.lock")
    os.rmdir("out")
    with open("out", "w"):
        pass
    assert "out: cannot be used as a workdir" in refusal("--predictions=test.npz")


# --- a study's predictions --------------------------------------------------------------------------------------------


def test_a_study_without_predictions_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"not predicted yet; run `python -m sc_jax\.predict`"):
        evaluate.main([f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'study'}"])
    assert not (tmp_path / "study" / "metrics.json").exists()


def ranked(seed, n=400, **changes):
    return predictions(seed, n, signal=2.6, example_id=seed * 10_000 + np.arange(n), **changes)


@pytest.fixture
def selectors():
    """Two selectors on disk, one within groups and one whose score is fitted to arrays, and the splits behind them."""
    group = np.arange(400) % 2
    calibration, tuning = ranked(1, group=group), with_head(2, 400, example_id=20_000 + np.arange(400))
    chosen = guarantees.fit(calibration, "sgr", risk=0.2, delta=0.1, within="group")
    selector.save("groups.json", chosen)
    of_features = with_head(1, 400, example_id=10_000 + np.arange(400))
    selector.save("vim.json", guarantees.fit(of_features, "crc", "vim", risk=0.2, tuning=tuning))
    for name, given in (("calibration", calibration), ("tuning", tuning)):
        predictions_lib.save(f"{name}.npz", given)


def test_a_selector_is_judged_on_other_examples(selectors, capsys):
    test = ranked(3, group=np.arange(400) % 2)
    predictions_lib.save("test.npz", test)
    rows = run("--predictions=test.npz", "--scores=msp", "--selector=groups.json")["selectors"]
    chosen = selector.load("groups.json")
    expected = guarantees.realised(chosen, chosen(test), test)
    assert [row["stratum"] for row in rows] == ["all", "0", "1"]
    for row, by_hand in zip(rows, expected, strict=True):
        assert {name: row[name] for name in ("accepted", "risk", "verdict")} == {
            name: getattr(by_hand, name) for name in ("accepted", "risk", "verdict")
        }
        assert (row["promise"], row["target"], row["delta"]) == (str(chosen.promise), 0.2, 0.1)
        assert (row["selector"], row["predictions"]) == ("groups.json", "test.npz")
    printed = capsys.readouterr().out
    assert rows[0]["verdict"] in printed
    assert str(chosen.promise) in printed
    report.report(Path("out"))
    text = Path("out/report.md").read_text()
    assert "## Selectors" in text
    assert "groups.json, group 1" in text
    assert f"{100 * rows[1]['risk']:.2f} [" in text


def test_a_selector_refuses_what_it_was_fitted_on(selectors, monkeypatch):
    monkeypatch.setattr(evaluate.evaluation, "evaluate", lambda *_, **__: pytest.fail("work began"))
    for name, path in (("calibration", "groups.json"), ("tuning", "vim.json")):
        assert "was fitted on" in refusal(f"--predictions={name}.npz", f"--selector={path}")
    predictions_lib.save("test.npz", ranked(3))
    assert "needs features" in refusal("--predictions=test.npz", "--selector=vim.json")
    assert "none.json" in refusal("--predictions=test.npz", "--selector=none.json")
    np.savez("scored.npz", loss=[0.0, 1.0], score_mine=[0.5, 0.2])
    assert "leave out --selector" in refusal("--predictions=scored.npz", "--selector=groups.json")
