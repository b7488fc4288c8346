"""`evaluate` on files from anywhere: label and logits are enough, whatever is wrong is refused, and nothing is half done."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, run_door
from made_up import CLASSES, best_p, metrics_of, predictions

from sc_jax import evaluate, files, ops
from sc_jax import predictions as predictions_lib
from sc_jax.files import InputError
from sc_jax.ops import resampling

RESAMPLES = 40
GRID = tuple(range(1, 11))


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
    for said in ("left out: max_logit_pnorm ", "left out: max_logit_pnorm_or_msp ", "--calibration", "naurc"):
        assert said in done.stdout.replace("\n", " ")
    document = files.read_json("out/metrics.json")
    assert [row["score"] for row in document["runs"]] == ["msp"]
    assert {row["score"] for row in document["left_out"]} == {"max_logit_pnorm", "max_logit_pnorm_or_msp"}
    assert all("--calibration" in row["reason"] for row in document["left_out"])


@pytest.mark.parametrize("arguments", [["--predictions=test.npz"], ["--predictions", "test.npz"]])
def test_without_a_workdir_the_table_is_printed_and_nothing_written(capsys, test_file, arguments):
    before = snapshot()
    evaluate.main([*arguments, f"--resamples={RESAMPLES}"])
    assert "aurc" in capsys.readouterr().out
    assert snapshot() == before


def test_metrics_json_follows_its_schema(test_file, calibration_file):
    document = run("--predictions=test.npz", "--calibration=val.npz")
    assert document["schema"] == 1
    assert len(document["runs"]) == 3
    for row in document["runs"]:
        assert row["predictions"] == "test.npz"
        assert row["split"] is None
        assert row["tags"] == {}
        assert row["n"] == 60
        assert row["fitted_on"] == (None if row["score"] == "msp" else "val.npz")
        assert row["intervals"].keys() == row["metrics"].keys()
        assert {"error", "aurc", "e_aurc", "naurc", "augrc", "failure_auroc"} <= row["metrics"].keys()
        assert {f"coverage_at_risk_{r}" for r in ("0.01", "0.02", "0.05")} <= row["metrics"].keys()
        assert {f"risk_at_coverage_{c}" for c in ("0.8", "0.9")} <= row["metrics"].keys()
        assert ({"ece", "nll", "brier"} <= row["metrics"].keys()) == (row["score"] == "msp")
        for low, high in row["intervals"].values():
            assert low <= high
    assert document["left_out"] == []
    for curve in document["curves"]:
        assert len(curve["coverage"]) == len(curve["risk"]) == len(curve["low"]) == len(curve["high"]) == 100


def test_the_numbers_are_those_of_the_definitions(test_file, calibration_file):
    document = run("--predictions=test.npz", "--calibration=val.npz", "--seed=5")
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
    assert [row["score"] for row in document["runs"]] == ["msp"]
    assert all("k = 2" in row["reason"] for row in document["left_out"])


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
    naurc = next(line for line in capsys.readouterr().out.splitlines() if "naurc" in line)
    assert naurc.count("nan") == 3  # the value and both ends of its interval


@pytest.mark.parametrize("name", ["[bold]x.npz", "a[/b]c.npz", "x:smile:.npz", "<b>.npz", "ä b.npz"])
def test_any_file_name_is_printed_as_it_is(capsys, name):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    write(name, predictions(0))
    assert run(f"--predictions={name}")["runs"][0]["predictions"] == name
    assert capsys.readouterr().out.count(name) == 3  # the table, and two scores left out


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
    assert run("--predictions=test.npz", "--calibration=other.npz")["runs"][1]["fitted_on"] == "val"


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


def test_a_part_of_the_test_file_without_ids_is_no_calibration_file():
    write("test.npz", predictions(0))
    write("part.npz", predictions_lib.select(predictions(0), np.arange(20, 40)))
    assert "20 of its 20 rows" in refusal("--predictions=test.npz", "--calibration=part.npz")


def test_row_numbers_are_no_ids_that_files_could_share(test_file, calibration_file):
    """Both files count their rows 0, 1, 2 …; they are different examples all the same."""
    assert len(run("--predictions=test.npz", "--calibration=val.npz")["runs"]) == 3


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
    [("mps", "did you mean 'msp'"), ("msp,max_logits", "did you mean 'max_logit'"), ("", "there are msp, max_logit")],
)
def test_a_misspelt_score_names_the_nearest(test_file, scores, hint):
    assert hint in refusal("--predictions=test.npz", f"--scores={scores}")


@pytest.mark.parametrize(
    "argument", ["--resamples=19", "--resamples=many", "--seed=-1", "--seed=x", "--score=msp", "--bins=3", "extra.npz"]
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


# --- the workdir ------------------------------------------------------------------------------------------------------


def test_an_earlier_result_outlives_a_failing_run(test_file):
    run("--predictions=test.npz")
    np.savez("test.npz", **{**GOOD, "logits": put(GOOD["logits"], 0, np.nan)})
    refusal("--predictions=test.npz")
    assert files.read_json("out/metrics.json")["runs"][0]["n"] == 60


def test_a_new_result_replaces_an_earlier_one(test_file):
    write("other.npz", predictions(7, n=45))
    run("--predictions=test.npz")
    assert [row["n"] for row in run("--predictions=other.npz")["runs"]] == [45]


def test_a_full_disk_leaves_the_earlier_result(test_file, monkeypatch):
    run("--predictions=test.npz")
    before = snapshot()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"out/metrics\.json: cannot write it"):
        evaluate.main(["--predictions=test.npz", "--seed=3", "--workdir=out"])
    assert snapshot() == before


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
