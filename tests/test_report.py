"""The report of a study and of any files: self-contained, complete, written once, and never in the way of a file name."""

import csv
import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up import ALPHAS, PRIMARY, SETTINGS, predictions, runs, with_head
from PIL import Image

from sc_jax import evaluate, figures, files, pages, report, tables
from sc_jax.config import Contrast
from sc_jax.files import InputError
from sc_jax.methods import streaming, study
from sc_jax.methods.scores import SCORES


def write_study(workdir, members=None, how=SETTINGS, primary=PRIMARY):
    document = study.evaluate(members or runs(), how, primary)
    files.write_json(workdir / "metrics.json", {"schema": 1, "built_from": "here", **document})


def write_files(workdir, *names, given=None):
    for i, name in enumerate(names):
        one = given or predictions(i)
        np.savez(name, label=one.label, logits=one.logits)
    np.savez("val.npz", label=predictions(9).label, logits=predictions(9).logits)
    arguments = [f"--predictions={','.join(names)}", "--calibration=val.npz", "--scores=msp,max_logit,max_logit_pnorm"]
    evaluate.main([*arguments, "--resamples=40", f"--workdir={workdir}"])


@pytest.fixture(scope="module")
def study_report(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    write_study(workdir)
    files.write_json(workdir / "config.json", {"study": "made up", "training": {"epochs": 3}})
    report.main([f"--workdir={workdir}"])
    return workdir


@pytest.fixture(scope="module")
def files_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_files(folder / "out", "a.npz", "b.npz")
        report.main(["--workdir=out"])
    finally:
        os.chdir(before)
    return folder / "out"


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Two files with groups, OOD examples, weights, features and the last layer."""
    folder = tmp_path_factory.mktemp("everything")
    before = Path.cwd()
    os.chdir(folder)
    rng = np.random.default_rng(0)
    try:
        for name, seed, n in (("a.npz", 0, 60), ("b.npz", 1, 60), ("val.npz", 2, 50)):
            given = with_head(seed, n, group=rng.choice(["<b>x", "y|z"], n), is_ood=rng.random(n) < 0.2)
            np.savez(name, **{k: v for k, v in given.arrays().items() if k != "example_id"}, weight=rng.random(n))
        evaluate.main(["--predictions=a.npz,b.npz", "--calibration=val.npz", "--resamples=20", "--workdir=out"])
        report.main(["--workdir=out"])
    finally:
        os.chdir(before)
    return folder / "out"


def test_a_study_without_smoothing_shows_what_its_contrasts_compare(tmp_path):
    """No line of "smoothing α = 0" beside cross-entropy, no reason of smoothing, and each side of a contrast once."""
    sides = [("focal=2", "msp"), ("max_suppression=0.2", "max_logit")]
    primary = tuple(
        Contrast(f"{name} is less", "aurc", 0.0, score, 0.0, "msp", "less", 0.0, treatment_objective=name)
        for name, score in sides
    )
    settings = dataclasses.replace(SETTINGS, scores=("msp", "max_logit"))
    write_study(tmp_path, runs((0.0, *(name for name, _ in sides))), settings, primary)
    report.main([f"--workdir={tmp_path}"])
    text = (tmp_path / "report.md").read_text()
    tiles = [line.partition("**:")[0] for line in text.splitlines() if line.startswith("- **")]
    assert tiles == ["- **α = 0, MSP", "- **focal loss, γ = 2, MSP", "- **MaxSup, α = 0.2, max logit"]
    assert "The reason" not in text
    assert "smoothing" not in tiles[0]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["finding.png", "objectives.png"]


both = pytest.mark.parametrize("kind", ["study_report", "files_report", "everything"])


class Page(HTMLParser):
    """What a page loads, what its elements are, and what a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "action") or (
                name.endswith("href") and not value.startswith("#")
            ):
                self.loads.append((tag, value))
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.text += data


def page(workdir):
    return Page((workdir / "report.html").read_text(encoding="utf-8"))


# --- what is written --------------------------------------------------------------------------------------------------


@both
def test_the_page_loads_nothing(kind, request):
    workdir = request.getfixturevalue(kind)
    shown = page(workdir)
    assert shown.loads == []
    assert not {"script", "img", "link", "iframe", "object"} & set(shown.tags)
    text = (workdir / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert "url(http" not in text
    assert shown.tags.count("svg") == (3 if kind == "study_report" else 2)


@both
def test_the_page_is_whole(kind, request):
    shown = page(request.getfixturevalue(kind))
    assert shown.open == []
    assert shown.tags.count("h1") == 1
    assert "{" not in shown.text.replace("{}", "")


@both
def test_the_pictures_of_report_md_are_there(kind, request):
    workdir = request.getfixturevalue(kind)
    text = (workdir / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) == (3 if kind == "study_report" else 2)
    assert sorted(pictures) == sorted(f"figures/{name}" for name in os.listdir(workdir / "figures"))
    for picture in pictures:
        with Image.open(workdir / picture) as image:
            assert np.asarray(image.convert("L"), float).std() > 5


@both
def test_tables_of_report_md_have_as_many_cells_in_every_row(kind, request):
    text = (request.getfixturevalue(kind) / "report.md").read_text(encoding="utf-8")
    found = [block.split("\n") for block in text.strip().split("\n\n") if block.startswith("|")]
    assert len(found) >= 1
    for table in found:
        assert set(table[1].replace(" ", "")) == {"|", "-"}
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


@both
def test_metrics_csv_holds_the_values_of_metrics_json(kind, request):
    workdir = request.getfixturevalue(kind)
    document = files.read_json(workdir / "metrics.json")
    with open(workdir / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def number(text):
        return float(text) if text else None

    told = {
        (r["predictions"], r["score"], r["metric"]): [number(r[column]) for column in ("value", "low", "high")]
        for r in rows
    }
    expected = {
        (r["predictions"], r["score"], metric): [value, *r["intervals"].get(metric, (None, None))]
        for r in document["runs"]
        for metric, value in r["metrics"].items()
    }
    assert told == expected
    assert len(rows) == len(expected)
    for row in rows:
        run = next(r for r in document["runs"] if (r["predictions"], r["score"]) == (row["predictions"], row["score"]))
        assert (row["split"], row["n"], row["fitted_on"]) == (run["split"] or "", str(run["n"]), run["fitted_on"] or "")
        assert {tag: row[tag] for tag in run["tags"]} == {tag: str(value) for tag, value in run["tags"].items()}


def test_every_metric_of_the_evaluation_has_a_column(study_report, everything):
    of_study = {name for name, _, _ in tables.TABLE}
    of_files = {name for _, _, columns in tables.FILES_TABLES for name, _, _ in columns}
    for row in files.read_json(everything / "metrics.json")["runs"]:
        assert row["metrics"].keys() <= of_files
    for row in files.read_json(study_report / "metrics.json")["runs"]:
        assert row["metrics"].keys() <= of_files
    for row in files.read_json(study_report / "metrics.json")["aggregates"]:
        assert row["metrics"].keys() - of_study <= {"e_augrc"} | {name for name in of_files if name.startswith("aurc_")}


def test_a_study_shows_its_primary_contrasts_every_setting_and_the_versions(study_report):
    text = page(study_report).text
    for contrast in PRIMARY:
        assert contrast.claim in text
    document = files.read_json(study_report / "metrics.json")
    for row in document["contrasts"][: len(PRIMARY)]:
        assert row["verdict"] in text
    for row in document["aggregates"]:
        for metric in ("naurc", "nll"):
            if metric in row["metrics"]:
                assert f"{row['metrics'][metric]['estimate']:.3f}" in text
    assert "training.epochs" in text


def test_a_study_says_plainly_where_an_interval_includes_0(study_report):
    document = files.read_json(study_report / "metrics.json")
    said = (study_report / "report.md").read_text(encoding="utf-8").count("(includes 0)")
    assert said == sum(row["includes_0"] for row in document["contrasts"]) > 0


def test_files_are_shown_with_what_was_fitted_and_what_was_left_out(files_report):
    text = page(files_report).text
    for shown in ("a.npz", "b.npz", "MSP", "max logit", "p-norm", "val.npz"):
        assert shown in text


def test_each_table_of_files_is_there_with_its_values(everything):
    document = files.read_json(everything / "metrics.json")
    text = (everything / "report.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n\n", 1) for part in text.split("## ")[1:])
    assert list(parts) == [title for title, _, _ in tables.FILES_TABLES] + ["Groups", "Left out"]
    for title, _, columns in tables.FILES_TABLES:
        lines = parts[title].split("\n\n")[0].split("\n")
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        for line in rows[2:]:
            run = next(
                r
                for r in document["runs"]
                if (r["predictions"], figures.SCORE_NAMES[r["score"]]) == (line[0].strip(), line[1])
            )
            shown = dict(zip(rows[0], line, strict=True))
            for metric, heading, factor in columns:
                if metric not in run["metrics"] or list(rows[0]).count(tables.heading(metric)) > 1 or metric == "aurc":
                    continue
                heading += " %" * (factor == 100 and not heading.endswith("%"))
                if heading == "realisable %":
                    continue
                value = run["metrics"][metric]
                said = (
                    "undefined"
                    if value is None
                    else f"{factor * value:.{2 if factor == 100 else 3}f}".replace("-", "−")
                )
                assert shown[heading].split(" [")[0] == said, (title, metric)
                assert ("[" in shown[heading]) == (metric in run["intervals"])
        assert len(rows) - 2 == sum(
            any(metric in run["metrics"] for metric, _, _ in columns if metric != "aurc") for run in document["runs"]
        )


def test_groups_are_shown_as_they_are_named(everything):
    document = files.read_json(everything / "metrics.json")
    shown = page(everything)
    assert "<b>x" in shown.text
    assert "b" not in shown.tags
    text = (everything / "report.md").read_text(encoding="utf-8")
    for run in document["runs"]:
        for group in run["groups"]:
            name = group["group"].replace("|", r"\|")
            row = f"| {run['predictions']} | {figures.SCORE_NAMES[run['score']]} | {name} | {group['n']:g} | {100 * group['error']:.2f} |"
            assert row in text


def test_every_score_has_a_name(everything):
    assert list(figures.SCORE_NAMES) == list(SCORES)
    assert len(set(figures.SCORE_NAMES.values())) == len(SCORES)


def curves(*names, scores=("msp", "energy"), risk=None):
    return [
        {"predictions": name, "score": score, "risk": [0.1 * i + 0.01 * j] if risk is None else risk}
        for i, name in enumerate(names)
        for j, score in enumerate(scores)
    ]


def drawn(curves):
    runs = [{**c, "metrics": {"aurc": c["risk"][0]}} for c in curves]
    return [(c["predictions"], c["score"]) for c in pages._drawn({"curves": curves, "runs": runs})]


def test_msp_and_the_best_scores_are_drawn_and_no_curve_twice():
    scores = ("energy", "margin", "vim", "sirc", "msp", "residual", "max_logit", "doctor_beta")
    assert [score for _, score in drawn(curves("a", scores=scores))] == ["msp", *scores[:4], "residual"]
    assert drawn(curves("a", scores=scores, risk=[0.5])) == [("a", "msp")]
    several = drawn(curves(*"abcdef", scores=scores))
    assert several == [(name, score) for name in "abcdef" for score in ("msp", "energy")]
    assert len(drawn(curves(*map(str, range(40))))) == 40  # of each file one


@pytest.mark.parametrize("soft", [False, True])
def test_a_file_of_scores_is_reported(in_a_folder, soft):
    rng = np.random.default_rng(0)
    loss = rng.random(50) if soft else rng.random(50) < 0.3
    np.savez("s.npz", loss=loss, **{"score_<b>$x|_": rng.random(50), "score__y": rng.random(50)})
    evaluate.main(["--predictions=s.npz", "--resamples=20", "--workdir=out"])
    report.main(["--workdir=out"])
    shown = page(Path("out"))
    assert "<b>$x|_" in shown.text
    assert "_y" in shown.text
    assert shown.tags.count("svg") == 1  # there are no probabilities
    text = Path("out/report.md").read_text(encoding="utf-8")
    assert "reliability.png" not in text
    assert "Probabilities" not in text
    report.main(["--workdir=out"])


def test_an_infinite_log_loss_is_reported_with_its_number(in_a_folder):
    probs = np.tile([[0.6, 0.4, 0.0]], (30, 1))
    np.savez("a.npz", label=np.repeat([0, 2], [27, 3]), probs=probs)
    for long in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "MOST_COUNTS", 0 if long else 10**9)
            evaluate.main(["--predictions=a.npz", "--resamples=20", "--workdir=out"])
        report.main(["--workdir=out"])
        assert "infinite (3 of 30 true classes have probability 0)" in page(Path("out")).text


# --- once is enough ---------------------------------------------------------------------------------------------------


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stamps(workdir):
    return {
        path.name: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_a_second_report_of_the_same_metrics_writes_nothing(in_a_folder, capsys):
    write_files(Path("out"), "a.npz")
    report.main(["--workdir=out"])
    before = stamps(Path("out"))
    capsys.readouterr()
    report.main(["--workdir=out"])
    assert capsys.readouterr().out == "report: done\n"
    assert stamps(Path("out")) == before


def test_changed_metrics_are_reported_anew(in_a_folder):
    write_files(Path("out"), "a.npz")
    report.main(["--workdir=out"])
    first = {name: Path("out", name).read_bytes() for name in ("report.html", "report.md", "metrics.csv")}
    document = files.read_json("out/metrics.json")
    document["runs"][0]["metrics"]["aurc"] += 0.25
    files.write_json("out/metrics.json", document)
    report.main(["--workdir=out"])
    for name, content in first.items():
        assert Path("out", name).read_bytes() != content


@pytest.mark.parametrize(
    "lost", ["report.html", "report.md", "metrics.csv", "figures/risk_coverage.png", "figures/reliability.png"]
)
def test_a_part_that_is_missing_is_written_again(in_a_folder, lost):
    write_files(Path("out"), "a.npz")
    report.main(["--workdir=out"])
    content = Path("out", lost).read_bytes()
    Path("out", lost).unlink()
    report.main(["--workdir=out"])
    assert Path("out", lost).read_bytes() == content


def test_the_hashes_are_written_last(in_a_folder, monkeypatch):
    """They say what was built from what, so whatever belongs to the report must be there."""
    write_files(Path("out"), "a.npz")
    order = []
    write = files.write_bytes
    monkeypatch.setattr(files, "write_bytes", lambda path, data: (order.append(Path(path).name), write(path, data)))
    report.main(["--workdir=out"])
    written = ["metrics.csv", "reliability.png", "report.html", "report.json", "report.md", "risk_coverage.png"]
    assert sorted(order) == written
    assert order[-1] == "report.json"


@pytest.mark.parametrize("part", ["report.html", "metrics.csv", "figures/risk_coverage.png", "report.json"])
def test_a_part_that_was_damaged_is_written_again(in_a_folder, part):
    """One bit of the middle of the file."""
    write_files(Path("out"), "a.npz")
    report.main(["--workdir=out"])
    content = Path("out", part).read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    Path("out", part).write_bytes(damaged)
    report.main(["--workdir=out"])
    assert Path("out", part).read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("curves"),
        lambda document: document["runs"][0].pop("metrics"),
        lambda document: document["runs"].insert(0, 3),
        lambda document: document["curves"][0].update(coverage="abc"),
        lambda document: document.update(contrasts=[{}]),
        lambda document: document.update(contrasts=[{"kind": "primary"}], max_logit_gap=[1]),
        lambda document: document.update(cascades=None),
    ],
    ids=[
        "no curves",
        "no metrics",
        "no row",
        "a curve of text",
        "a contrast without a kind",
        "no study",
        "no cascades",
    ],
)
def test_a_metrics_json_of_another_form_is_refused(in_a_folder, change):
    write_files(Path("out"), "a.npz")
    document = files.read_json("out/metrics.json")
    change(document)
    files.write_json("out/metrics.json", document)
    with pytest.raises(InputError, match=r"out/metrics\.json: not a metrics\.json"):
        report.main(["--workdir=out"])
    assert not Path("out/report.html").exists()


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_workdir_without_metrics_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.json: no such file; run `python -m sc_jax\.evaluate"):
        report.main([f"--workdir={tmp_path}"])
    with pytest.raises(InputError, match="nowhere: no such workdir"):
        report.main([f"--workdir={tmp_path / 'nowhere'}"])
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{}", '{"schema": 2, "runs": [{}]}', '{"schema": 1, "runs": []}', '{"schema": 1}', '{"schema": 1, "ru'],
)
def test_metrics_that_are_none_of_ours_are_refused_and_an_earlier_report_kept(in_a_folder, content):
    write_files(Path("out"), "a.npz")
    report.main(["--workdir=out"])
    Path("out/metrics.json").write_text(content)
    before = stamps(Path("out"))
    with pytest.raises(InputError, match=r"out/metrics\.json: not "):
        report.main(["--workdir=out"])
    assert stamps(Path("out")) == before


# --- names and values that are awkward --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["<b>x.npz", "&amp;.npz", "a|b.npz", r"$\nope{$.npz", "_x.npz", "ü [1].npz", "{0}.npz"]
)
def test_any_file_name_is_shown_as_it_is(in_a_folder, name):
    write_files(Path("out"), name, "other.npz")
    report.main(["--workdir=out"])
    shown = page(Path("out"))
    assert name in shown.text
    assert "b" not in shown.tags
    assert name.replace("|", r"\|") in Path("out/report.md").read_text(encoding="utf-8")


def test_all_right_predictions_are_reported_as_undefined_rankings(in_a_folder):
    given = predictions(0)
    write_files(Path("out"), "a.npz", given=dataclasses.replace(given, label=given.logits.argmax(axis=1)))
    report.main(["--workdir=out"])
    assert "undefined" in page(Path("out")).text
    with open("out/metrics.csv", newline="") as file:
        naurc = [row for row in csv.DictReader(file) if row["metric"] == "naurc"]
    assert {row["value"] for row in naurc} == {""}


def test_a_study_of_all_right_predictions_is_reported(tmp_path):
    right = [
        dataclasses.replace(run, test=dataclasses.replace(run.test, label=run.test.logits.argmax(axis=1)))
        for run in runs()
    ]
    write_study(tmp_path, right)
    report.main([f"--workdir={tmp_path}"])
    assert "undefined" in page(tmp_path).text


@pytest.mark.parametrize(
    ("alphas", "scores", "contrast"),
    [
        (ALPHAS, ("msp",), PRIMARY[0]),
        ((0.1, 0.2), SETTINGS.scores, dataclasses.replace(PRIMARY[0], control_alpha=0.1)),
        ((0.0,), SETTINGS.scores, dataclasses.replace(PRIMARY[1], treatment_alpha=0.0, control_alpha=0.0)),
    ],
)
def test_a_study_without_cross_entropy_smoothing_or_p_norm_is_reported(tmp_path, alphas, scores, contrast):
    write_study(tmp_path, runs(alphas), dataclasses.replace(SETTINGS, scores=scores), (contrast,))
    report.main([f"--workdir={tmp_path}"])
    assert contrast.claim in page(tmp_path).text


def test_a_study_of_two_classes_says_that_its_gap_is_not_defined(tmp_path):
    write_study(tmp_path)
    document = files.read_json(tmp_path / "metrics.json")
    files.write_json(tmp_path / "metrics.json", {**document, "max_logit_gap": []})
    report.main([f"--workdir={tmp_path}"])
    text = (tmp_path / "report.md").read_text()
    assert "the gap at equal MSP is not defined" in text
    assert "the gap at equal MSP is not defined" in page(tmp_path).text
    assert "the next figure" not in text
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["finding.png", "suppression.png"]


def test_one_seed_is_reported_without_an_interval_over_seeds(tmp_path):
    write_study(tmp_path, runs(seeds=(3,)))
    report.main([f"--workdir={tmp_path}"])
    assert "undefined" in page(tmp_path).text  # the t interval


def test_other_objectives_have_a_section_with_their_words(tmp_path):
    objectives = ("max_suppression=0.2", "left_out=3")
    side = Contrast("ranks better", "naurc", 0.0, "msp", 0.0, "msp", "less", 0.0, treatment_objective=objectives[0])
    write_study(tmp_path, runs((*ALPHAS, *objectives)), primary=(side,))
    report.main([f"--workdir={tmp_path}"])
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    for words in ("## Other objectives", "MaxSup, α = 0.2", "without fold 3", "MaxSup, α = 0.2 − α = 0: MSP"):
        assert words in text
        assert words.removeprefix("## ") in page
    assert (tmp_path / "figures" / "objectives.png").stat().st_size > 0
    assert text.startswith(("# Confirmed here: ranks better", "# Not all of the claim is confirmed here: ranks better"))
    rows = files.read_json(tmp_path / "metrics.json")["objectives"]["aggregates"]
    assert sum(line.startswith("| MaxSup, α = 0.2 |") for line in text.splitlines()) == len(rows) / 2


def test_the_repair_has_a_section_with_every_way_and_size(tmp_path):
    document = study.evaluate(runs(), SETTINGS, PRIMARY, with_repair=True)
    files.write_json(tmp_path / "metrics.json", {"schema": 1, "built_from": "here", **document})
    report.main([f"--workdir={tmp_path}"])
    text, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "## Logit normalisation: norms, calibration, ensembles" in text
    for name in pages.REPAIR_PICTURES:
        assert (tmp_path / "figures" / name).stat().st_size > 0
        assert f"figures/{name}" in text
    for row in document["repair"]["ensembles"]:
        name = pages.AVERAGES[row["average"]]
        assert text.count(f"| {name} |") == page.count(f"<td>{name}</td>") > 0
    assert "| 50 |" in text  # the one size that the made-up calibration split has
    ensemble = next(r for r in document["repair"]["ensembles"] if r["average"] == "mean_logits" and r["alpha"] == 0.2)
    assert f"| {ensemble['metrics']['naurc']['estimate']:.3f} [" in text


def test_every_objective_has_a_name():
    from sc_jax.training import objectives

    assert set(figures.OBJECTIVE_NAMES) == set(objectives.registry(10))
