"""Every figure is drawn from small inputs, with what it was given in it, and is written as a picture that is not blank."""

import dataclasses
import functools
import io
import os
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from made_up import ALPHAS, CALIBRATION, PRIMARY, SEEDS, SETTINGS, TEST, predictions, runs
from matplotlib.figure import Figure
from PIL import Image

from sc_jax import figures, files, ops
from sc_jax.files import InputError
from sc_jax.methods import cascade, cascade_study, ensemble, repair, study
from sc_jax.ops import resampling


def curve(**more):
    risk = np.linspace(0.05, 0.3, 100)
    band = {"low": risk * 0.8, "high": risk * 1.2}
    return {"coverage": np.arange(1, 101) / 100, "risk": risk, "predictions": "a.npz", "score": "msp", **band, **more}


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """A study as it is read back from its file: NaN has become None."""
    path = tmp_path_factory.mktemp("figures") / "metrics.json"
    files.write_json(path, study.evaluate(runs(), SETTINGS, PRIMARY))
    return files.read_json(path)


def table(name="a.npz", bins=10):
    """Of 200 confidences; the bins below 0.3 are empty."""
    rng = np.random.default_rng(0)
    confidence = 0.3 + 0.7 * rng.random(200)
    columns = ops.reliability_table(confidence, rng.random(200) > confidence, bins=bins)._asdict()
    return {
        "predictions": name,
        **{k: [None if np.isnan(v) else v for v in column.tolist()] for k, column in columns.items()},
    }


SMOOTHED = {  # right predictions in both bins, wrong ones in the first
    "count": [[3, 1], [4, 0]],
    "extra_gradient": [[0.18, 0.18], [-0.02, None]],
    "centred_max_logit": [[2.0, 6.0], [1.0, None]],
}
ALL_RIGHT = {**SMOOTHED, "count": [[3, 1], [0, 0]], "extra_gradient": [[0.18, 0.18], [None, None]]}
PLAIN = {**SMOOTHED, "extra_gradient": [[0.0, 0.0], [0.0, None]]}
STATISTICS = [
    {
        "epoch": epoch,
        "train": {name: [PLAIN[name], ALL_RIGHT[name]] for name in PLAIN},
        "validation": {
            **{name: [PLAIN[name], SMOOTHED[name]] for name in PLAIN},
            "ranking": {
                "aurc": [0.03, 0.01 * epoch],
                "coverage_at_risk_0.05": [0.7, 0.8],
                "risk_at_coverage_0.8": [0.06, 0.07],
            },
        },
    }
    for epoch in (1.0, 2.0)
]
LINES = [
    {"step": step, "epoch": step / 10, "loss": [2 / step, 3 / step, 4 / step], "accuracy": [0.5, 0.6, 0.7]}
    for step in (1, 2, 3)
]

DRAWN = {
    "error_ranks": lambda d: figures.error_ranks(d["curves"], 0.2),
    "repairs": lambda d: figures.repairs(d["aggregates"], 0.2),
    "objectives": lambda d: figures.objectives([*d["aggregates"], {**d["aggregates"][0], "objective": "focal=2"}]),
    "settings": lambda d: figures.settings({"one": (d["curves"], 0.2), "two": (d["curves"], 0.2)}),
    "finding": lambda d: figures.finding(d["curves"], d["aggregates"], 0.2),
    "suppression": lambda d: figures.suppression(d["suppression"]),
    "max_logit_gap": lambda d: figures.max_logit_gap(d["max_logit_gap"], 0.2),
    "risk_coverage": lambda d: figures.risk_coverage([curve(), curve(score="max_logit")]),
    "reliability": lambda d: figures.reliability([table(), table("b.npz")]),
    "training": lambda d: figures.training(LINES, [0.0, 0.2, 0.2]),
    "logit_statistics": lambda d: figures.logit_statistics(STATISTICS, ["train", "validation"], [0.0, 0.2]),
    "logits_by_confidence": lambda d: figures.logits_by_confidence(by_confidence(), [0.0], 3.0, 0.2),
    "training_ranking": lambda d: figures.training_ranking(STATISTICS, "validation", [0.0, 0.2]),
    "pixels": lambda d: figures.pixels(*pixel_maps()),
    "norms": lambda d: figures.norms(repaired()["norms"], 0.2),
    "shifts": lambda d: figures.shifts(repaired()["shifts"], 0.2),
    "members": lambda d: figures.members(member_rows()),
    "learning_curve": lambda d: figures.learning_curve(repaired()["learning_curve"]),
    "ensembles": lambda d: figures.ensembles(repaired()["ensembles"], repaired()["subsets"]),
    "cascade_trade_off": lambda d: figures.cascade_trade_off(cascades()),
    "cascade_changes": lambda d: figures.cascade_changes(cascades()),
    "cascade_search": lambda d: figures.cascade_search(cascades()),
    "promises": lambda d: figures.promises(choices(), 0.05, 0.8),
    "conditional_coverage": lambda d: figures.conditional_coverage(
        np.random.default_rng(0).beta(90, 10, 500), 0.1, 90, 99
    ),
    "monitored": lambda d: figures.monitored(streams(), 0.05),
    "scod_plane": lambda d: figures.scod_plane(*plane()),
    "severities": lambda d: figures.severities(shifted(), 0.05),
    "cascade_shift": lambda d: figures.cascade_shift(cascades()),
    "selective_errors": lambda d: figures.selective_errors(
        [(name, [r, r / 2], [r / 2, r / 4], [2 * r, r]) for name, r in (("a", 0.2), ("b", 0.1))], (100, 80)
    ),
}


def choices():
    """A method that is above 5 % in a quarter of its sets, one that accepts nothing in half of them, and one that never does."""
    some = {"risk": [0.02, 0.03, 0.04, 0.06], "coverage": [0.5, 0.6, 0.7, 0.9]}
    half = {"risk": [np.nan, np.nan, 0.02, 0.03], "coverage": [0, 0, 0.4, 0.5]}
    none = {"risk": [np.nan] * 4, "coverage": [0] * 4}
    return [
        {"name": name, "broken": name == "some", **row}
        for name, row in (("some", some), ("half", half), ("none", none))
    ]


def streams():
    """One that changes and alarms, one that does neither."""
    n = np.arange(1, 101)
    line = {"n": n, "mean": np.full(100, 0.05), "low": np.full(100, 0.02), "high": np.full(100, 0.09)}
    return [
        {"title": "a", "changed_at": 40, "alarm_at": 80, **line},
        {"title": "b", "changed_at": None, "alarm_at": 0, **line},
    ]


def plane():
    """Three kinds of examples, and a rule that accepts below the diagonal."""
    rng = np.random.default_rng(0)
    return *rng.normal(size=(2, 60)), np.arange(60) % 3, [("sum", lambda d, r: -d - r, 0.0)]


def shifted():
    """Two rejectors under two corruptions at two severities; one accepts nothing at the last."""
    rows = []
    for rejector in ("a", "b"):
        for severity, corruption in (
            (0, "clean"),
            *((s, c) for s in (1, 2) for c in ("contrast", "shot_noise", "mean")),
        ):
            risk = None if (rejector, severity) == ("b", 2) else 0.02 * (1 + severity)
            values = {"coverage": 0.9 - 0.2 * severity, "risk": risk, "joint_risk": risk}
            ends = {f"{name}_interval": [value, value] for name, value in values.items()}
            rows.append({"rejector": rejector, "corruption": corruption, "severity": severity, **values, **ends})
    return rows


@functools.cache
def repaired():
    """Of each analysis in `repair`, the rows of a small study."""
    given, grid, resamples = runs(), (1, 2, 5), 20
    counts, calibration_counts, seed_counts = (
        resampling.resample_counts(i, n, resamples) for i, n in enumerate((TEST, CALIBRATION, len(SEEDS)))
    )
    return {
        "norms": repair.norms(given, grid, counts, seed_counts, 0.9),
        "shifts": repair.shifts(given, grid, counts, seed_counts, 0.9),
        "learning_curve": repair.learning_curve(given, grid, (10, 30, CALIBRATION), 5, 0, seed_counts, 0.9),
        "ensembles": repair.ensembles(given, grid, counts, calibration_counts, 0.9),
        "subsets": repair.subsets(given, grid, 0),
    }


@functools.cache
def cascades():
    """A study of one cascade of two made-up models."""
    given = [predictions(3, n=200, signal=2.5), predictions(3, n=200, signal=3.0)]
    calibration, test = (
        [dataclasses.replace(p, example_id=p.example_id + first) for p in given] for first in (0, 1000)
    )
    flat = [dataclasses.replace(p, logits=p.logits / 3) for p in test]
    one = cascade_study.Candidates(("a", "b"), calibration, test, {"flat": flat})
    settings = cascade_study.Settings(cascade.Task("risk", 0.2), resamples=20)
    return {**cascade_study.evaluate([one], (1.0, 2.0), settings), "unit": "MACs"}


@functools.cache
def member_rows():
    """Two metrics of two ways to average three members."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 80)
    logits = rng.normal(size=(3, 80, 3)) + np.eye(3)[label]
    curve = functools.partial(ensemble.subset_curve, logits, label, ("nll", "error"))
    return [row for space in ("probability", "logit") for row in curve(space=space).rows(space)]


def pixel_maps(images=2):
    """Pixels of every kind: one accepted and right, two accepted and wrong, three rejected and right, four rejected and wrong."""
    outcome = np.repeat(np.array([0, 1, 0, 1, 255], np.uint8), [1, 2, 3, 4, 5]).reshape(3, 5)
    accepted = np.arange(15).reshape(3, 5) < 3
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    return [image] * images, {"CE": [(outcome, accepted)] * images, "LS": [(outcome, ~accepted)] * images}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_public_figure_is_drawn_here():
    public = {
        name
        for name, function in vars(figures).items()
        if callable(function) and getattr(function, "__module__", "") == figures.__name__ and not name.startswith("_")
    }
    assert public - {"to_svg", "to_png", "save_png", "treatment_name"} == set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_becomes_a_picture_and_an_element(tmp_path, document, name):
    figure = DRAWN[name](document)
    assert isinstance(figure, Figure)
    figures.save_png(figure, tmp_path / f"{name}.png")
    assert os.listdir(tmp_path) == [f"{name}.png"]
    with Image.open(tmp_path / f"{name}.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
        assert np.asarray(image.convert("L"), float).std() > 5
    svg = figures.to_svg(figure)
    assert svg.startswith("<svg")
    assert svg.rstrip().endswith("</svg>")
    for axes in [axes for axes in figure.axes if axes.axison]:
        assert axes.get_xlabel()
        assert axes.get_ylabel()


def test_the_same_input_gives_the_same_element_and_leaves_no_style_behind(document):
    before = dict(mpl.rcParams)
    first, second = (figures.to_svg(DRAWN["risk_coverage"](document)) for _ in range(2))
    assert first == second
    assert dict(mpl.rcParams) == before


def test_finding_shows_three_curves_and_naurc_by_alpha(document):
    left, right = figures.finding(document["curves"], document["aggregates"], 0.2).axes
    assert len(left.lines) == 3
    for line, (alpha, score) in zip(left.lines, [(0.0, "msp"), (0.2, "msp"), (0.2, "max_logit_pnorm")], strict=True):
        row = next(r for r in document["curves"] if (r["alpha"], r["score"]) == (alpha, score))
        np.testing.assert_allclose(line.get_xdata(), 100 * np.array(row["coverage"]))
        np.testing.assert_allclose(line.get_ydata(), 100 * np.array(row["risk"]))
    assert len(left.collections) == 3  # bands
    for line, score in zip(
        [line for line in right.lines if line.get_marker() == "o"], ("msp", "max_logit_pnorm"), strict=True
    ):
        told = [row["metrics"]["naurc"]["estimate"] for row in document["aggregates"] if row["score"] == score]
        np.testing.assert_allclose(line.get_xdata(), ALPHAS)
        np.testing.assert_allclose(line.get_ydata(), told)


def test_suppression_draws_dots_on_lines(document):
    (axes,) = figures.suppression(document["suppression"]).axes
    line, dots = axes.lines[:2]
    row = document["suppression"][0]
    np.testing.assert_allclose(dots.get_xdata(), 100 * np.array(row["error"]))
    np.testing.assert_allclose(dots.get_ydata(), row["autodiff"])
    assert (np.diff(line.get_xdata()) >= 0).all()
    np.testing.assert_allclose(sorted(line.get_ydata()), sorted(row["closed_form"]))


def test_the_gap_is_drawn_with_its_intervals(document):
    last = figures.max_logit_gap(document["max_logit_gap"], 0.2).axes[2]
    told = [row["centred"] for row in document["max_logit_gap"]]
    np.testing.assert_allclose(last.lines[0].get_ydata(), [row["estimate"] for row in told])
    bars = last.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([bar[:, 1] for bar in bars], [row["interval"] for row in told], atol=1e-12)


def test_an_interval_need_not_hold_its_estimate(document):
    """That of a bootstrap of a few examples may lie beside it, and is drawn where it lies."""
    rows = [{**row, "centred": {"estimate": 1.0, "interval": [2.0, 3.0]}} for row in document["max_logit_gap"]]
    last = figures.max_logit_gap(rows, 0.2).axes[2]
    for bar in last.containers[0].lines[2][0].get_segments():
        np.testing.assert_allclose(bar[:, 1], [2, 3])


def test_an_alpha_that_was_not_trained_leaves_its_panel_empty(document):
    figure = figures.max_logit_gap([row for row in document["max_logit_gap"] if row["alpha"]], 0.2)
    assert [len(axes.lines) > 0 for axes in figure.axes[:2]] == [False, True]
    assert legend(figure.axes[1]) == ["right predictions", "wrong predictions"]


def test_undefined_values_leave_gaps(document):
    """None is what JSON keeps of NaN."""
    row = {"estimate": None, "interval": [None, None]}
    aggregates = [{**r, "metrics": {**r["metrics"], "naurc": row}} for r in document["aggregates"]]
    figures.to_svg(figures.finding(document["curves"], aggregates, 0.2))
    gaps = [{**r, "centred": row, "raw": row} for r in document["max_logit_gap"]]
    gaps = [{**r, "profile": {**r["profile"], "wrong": [None] * 10}} for r in gaps]
    figures.to_svg(figures.max_logit_gap(gaps, 0.2))


def test_the_legend_names_scores_and_where_there_are_several_the_files():
    (axes,) = figures.risk_coverage([curve(), curve(score="max_logit_pnorm"), curve(score="mine")]).axes
    assert legend(axes) == ["MSP", "p-norm", "mine"]
    (axes,) = figures.risk_coverage([curve(), curve(predictions="b.npz")]).axes
    assert legend(axes) == ["MSP, a.npz", "MSP, b.npz"]


@pytest.mark.parametrize("name", ["_hidden.npz", r"a$\nope{$.npz", "<b>&--b-->.npz"])
def test_any_file_name_can_stand_in_a_legend(name):
    figure = figures.risk_coverage([curve(predictions=name), curve(predictions="b.npz")])
    assert len(legend(figure.axes[0])) == 2
    ElementTree.fromstring(figures.to_svg(figure))


def test_many_curves_are_named_beside_the_axes_which_keep_their_size():
    rows = [curve(predictions=f"model_{i}.npz", score=score) for i in range(6) for score in ("msp", "energy")]
    figure = figures.risk_coverage(rows)
    figures.to_svg(figure)  # lays it out
    (axes,), (named,) = figure.axes, figure.legends
    assert axes.get_legend() is None
    assert [text.get_text() for text in named.get_texts()] == [
        f"{figures.SCORE_NAMES[row['score']]}, {row['predictions']}" for row in rows
    ]
    box = axes.get_position()
    assert min(box.width, box.height) > 0.4
    to_the_right = named.get_window_extent().transformed(figure.transFigure.inverted())
    assert to_the_right.x0 > box.x1
    assert to_the_right.y0 > 0


def test_long_paths_are_shown_by_their_end():
    rows = [curve(predictions=f"/{'long/' * 20}{name}.npz") for name in "ab"]
    figure = figures.risk_coverage(rows)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name[-6:] for name in names] == ["/a.npz", "/b.npz"]
    assert all(name.startswith("MSP, …") and len(name) == 45 for name in names)


def test_names_of_scores_are_shown_whatever_they_are():
    figure = figures.risk_coverage([curve(score="_hidden"), curve(score=r"$\nope{$")])
    assert legend(figure.axes[0]) == [" _hidden", r"\$\nope{\$"]
    ElementTree.fromstring(figures.to_svg(figure))


def test_reliability_draws_what_the_table_says():
    told = table()
    (axes,) = figures.reliability([told]).axes
    there = [i for i, value in enumerate(told["confidence"]) if value is not None]
    assert there == list(range(3, 10))
    dots = axes.containers[1].lines[0]
    np.testing.assert_allclose(dots.get_xdata(), [told["confidence"][i] for i in there])
    np.testing.assert_allclose(dots.get_ydata(), [told["accuracy"][i] for i in there])
    ends = [segment[:, 1] for segment in axes.containers[1].lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[told["accuracy_low"][i], told["accuracy_high"][i]] for i in there], atol=1e-12)
    np.testing.assert_allclose([bar.get_height() for bar in axes.containers[0]], np.array(told["weight"]) / 200)
    np.testing.assert_allclose([bar.get_x() for bar in axes.containers[0]], np.arange(10) / 10)


@pytest.mark.parametrize("files_", [0, 1, 4, 7])
def test_there_is_a_panel_for_each_file(files_):
    names = ["_hidden", "$x", "<b>&", *"abcd"][:files_]
    figure = figures.reliability([table(name) for name in names])
    titles = [axes.get_title(loc="left").strip() for axes in figure.axes]
    assert [title for title in titles if title] == [name.replace("$", r"\$") for name in names]
    assert len(figure.axes) < files_ + 3
    ElementTree.fromstring(figures.to_svg(figure))


def test_training_averages_over_the_seeds_of_each_alpha():
    loss, accuracy = figures.training(LINES, [0.0, 0.2, 0.2]).axes
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2, 1, 2 / 3])
    np.testing.assert_allclose(loss.lines[1].get_ydata(), [3.5, 1.75, 3.5 / 3])
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [0.65] * 3)
    assert legend(accuracy) == ["α = 0", "α = 0.2"]


def test_settings_have_a_panel_each_with_what_they_have(document):
    two_classes = [row for row in document["curves"] if row["score"] == "msp"]
    figure = figures.settings({f"s{i}": (two_classes if i else document["curves"], 0.2) for i in range(5)})
    shown = figure.axes
    assert [axes.get_title(loc="left") for axes in shown] == [f"s{i}, α = 0.2" for i in range(5)]
    assert [len(axes.lines) for axes in shown] == [3, 2, 2, 2, 2]
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["cross-entropy, MSP", "label smoothing, MSP", "label smoothing, p-norm"]
    by_score = {(row["alpha"], row["score"]): row for row in document["curves"]}
    np.testing.assert_allclose(shown[0].lines[2].get_ydata(), 100 * np.array(by_score[0.2, "max_logit_pnorm"]["risk"]))


def test_logit_statistics_weigh_bins_by_their_examples():
    extra, top = figures.logit_statistics(STATISTICS, ["train", "validation"], [0.0, 0.2]).axes
    dashed, solid = extra.lines[-2:]
    np.testing.assert_allclose(solid.get_ydata(), [(3 * 0.18 + 1 * 0.18 + 4 * -0.02) / 8] * 2)
    np.testing.assert_allclose(dashed.get_ydata(), [0.18] * 2)
    wrong, right = top.lines[-2:]
    np.testing.assert_allclose(right.get_ydata(), [(3 * 2 + 1 * 6) / 4] * 2)
    np.testing.assert_allclose(wrong.get_ydata(), [1.0] * 2)
    assert legend(top) == ["α = 0", "α = 0.2"]


def by_confidence():
    more = {"norm": [[1.0, 2.0], [3.0, None]]}
    return {"train": [{"alpha": 0.2, **ALL_RIGHT, **more}], "validation": [{"alpha": 0.2, **SMOOTHED, **more}]}


def test_logits_by_confidence_has_a_line_for_right_and_wrong_of_both_splits():
    extra, top, norm = figures.logits_by_confidence(by_confidence(), [0.0], 3.0, 0.2).axes
    np.testing.assert_allclose(extra.lines[0].get_ydata(), [0.18, 0.18])
    np.testing.assert_allclose(extra.lines[1].get_ydata(), [(3 * 0.18 + 4 * -0.02) / 7, 0.18])
    np.testing.assert_array_equal(top.lines[2].get_ydata(), [2.0, 6.0])
    np.testing.assert_array_equal(norm.lines[3].get_ydata(), [3.0, np.nan])
    assert legend(norm) == ["right, train", "wrong, train", "right, validation", "wrong, validation"]
    assert "p = 3" in norm.get_ylabel()


def test_training_ranking_averages_over_the_seeds_of_each_alpha():
    aurc, coverage, risk = figures.training_ranking(STATISTICS, "validation", [0.0, 0.0]).axes
    np.testing.assert_allclose(aurc.lines[0].get_ydata(), [2.0, 2.5])
    np.testing.assert_allclose(coverage.lines[0].get_ydata(), [75.0, 75.0])
    assert legend(risk) == ["α = 0"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "old.png"
    figures.save_png(figures.risk_coverage([curve()]), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"old\.png: cannot write it"):
        figures.save_png(figures.risk_coverage([curve(score="max_logit")]), path)
    assert path.read_bytes() == before
    assert Image.open(io.BytesIO(before)).format == "PNG"


def test_pixels_have_the_colour_of_what_happens_to_them():
    images, maps = pixel_maps()
    figure = figures.pixels(images, maps)
    line = figure.axes[:3]
    np.testing.assert_array_equal(line[0].images[0].get_array(), images[0])
    drawn = np.asarray(line[1].images[0].get_array()).reshape(-1, 3)
    colours = [tuple(round(255 * c) for c in mpl.colors.to_rgb(c)) for c in figures.PIXEL_COLOURS.values()]
    assert [tuple(pixel) for pixel in drawn.tolist()] == [
        c for c, n in zip(colours, range(1, 6), strict=True) for _ in range(n)
    ]
    assert line[1].get_title(loc="left") == "30.0 % accepted, 66.7 % of them wrong; of all 60.0 % wrong"
    assert line[2].get_title(loc="left") == "70.0 % accepted, 57.1 % of them wrong; of all 60.0 % wrong"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(figures.PIXEL_COLOURS)
    nothing = np.full((3, 5), 255, np.uint8)
    blank = figures.pixels(images[:1], {"CE": [(nothing, np.ones((3, 5), bool))]})
    assert blank.axes[1].get_title(loc="left") == "no pixel has a label"
    rejected = figures.pixels(images[:1], {"CE": [(np.ones((3, 5), np.uint8), np.zeros((3, 5), bool))]})
    assert rejected.axes[1].get_title(loc="left") == "0.0 % accepted; of all 100.0 % wrong"


def band(collection):
    """Low and high ends of a band, in order of x."""
    points = np.unique(collection.get_paths()[0].vertices, axis=0)
    return [points[points[:, 0] == x, 1][[0, -1]] for x in np.unique(points[:, 0])]


def test_norms_show_every_p_beside_msp():
    rows = repaired()["norms"]
    for axes, alpha in zip(figures.norms(rows, 0.2).axes, (0.0, 0.2), strict=True):
        centred, raw, msp = axes.lines
        for line, of, kind in zip((centred, raw), axes.collections[:2], (True, False), strict=True):
            told = [r for r in rows if r["alpha"] == alpha and r["centred"] is kind]
            np.testing.assert_allclose(line.get_xdata(), [r["p"] for r in told])
            np.testing.assert_allclose(line.get_ydata(), [r["metrics"]["naurc"]["estimate"] for r in told])
            np.testing.assert_allclose(band(of), [r["metrics"]["naurc"]["interval"] for r in told])
        (told,) = (r for r in rows if r["alpha"] == alpha and r["p"] is None)
        np.testing.assert_allclose(msp.get_ydata(), told["metrics"]["naurc"]["estimate"])
        np.testing.assert_allclose(
            np.sort(np.unique(axes.patches[0].get_corners()[:, 1])), told["metrics"]["naurc"]["interval"]
        )


def test_shifts_show_right_and_wrong_predictions():
    rows = repaired()["shifts"]
    for axes, row in zip(figures.shifts(rows, 0.2).axes, rows, strict=True):
        for line, of, kind in zip(axes.lines[:2], axes.collections, ("right", "wrong"), strict=True):
            np.testing.assert_allclose(line.get_ydata(), [told[kind]["estimate"] for told in row["norms"]])
            np.testing.assert_allclose(band(of), [told[kind]["interval"] for told in row["norms"]])
        assert f"mean logit {row['mean_logit']['all']['estimate']:.2f}" in axes.get_title(loc="left")


def test_members_show_each_metric_with_what_its_bands_cover():
    rows = member_rows()
    for axes, (metric, factor) in zip(figures.members(rows).axes, (("nll", 1), ("error", 100)), strict=True):
        assert axes.get_title(loc="left") == "bands: subsets of these members"
        for line, of, name in zip(axes.lines, axes.collections, ("probability", "logit"), strict=True):
            told = [r for r in rows if (r["metric"], r["name"]) == (metric, name)]
            assert line.get_label() == name
            np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
            np.testing.assert_allclose(line.get_ydata(), [factor * r["mean"] for r in told])
            np.testing.assert_allclose(
                band(of), [np.multiply(factor, r["interval"]) for r in told[:2]]
            )  # the whole has none
    assert figures._METRICS_OF_MEMBERS.keys() == ensemble.SUBSET_METRICS.keys()
    unknown = [{**row, "mean": None, "interval": [None, None]} for row in rows]
    (first, _) = figures.members(unknown).axes
    assert first.get_title(loc="left") == ""


def test_learning_curve_shows_the_regret_in_percent():
    rows = repaired()["learning_curve"]
    for axes, fallback in zip(figures.learning_curve(rows).axes, (False, True), strict=True):
        assert axes.get_xscale() == "log"
        for line, alpha in zip(axes.lines, ALPHAS, strict=True):
            told = [r for r in rows if (r["alpha"], r["fallback"]) == (alpha, fallback)]
            np.testing.assert_allclose(line.get_xdata(), [r["size"] for r in told])
            np.testing.assert_allclose(line.get_ydata(), [100 * r["regret"]["aurc"]["estimate"] for r in told])


def test_ensembles_show_every_way_and_the_number_of_members():
    rows, subsets = (repaired()[name] for name in ("ensembles", "subsets"))
    left, right = figures.ensembles(rows, subsets).axes
    ways = {(r["average"], r["score"]) for r in rows}
    drawn = [line for line in left.lines if not line.get_label().startswith("_")]
    assert len(legend(left)) == len(drawn) == len(ways)
    told = {tuple(r["metrics"]["naurc"]["estimate"] for r in rows if (r["average"], r["score"]) == way) for way in ways}
    assert {tuple(line.get_ydata()) for line in drawn} == told
    wanted = {
        tuple(r["metrics"]["naurc"].get("interval_p_chosen_anew", r["metrics"]["naurc"]["interval"])) for r in rows
    }
    bars = [segment[:, 1] for bar in left.containers for segment in bar.lines[2][0].get_segments()]
    np.testing.assert_allclose(sorted(map(tuple, bars)), sorted(wanted), atol=1e-12)
    for line, (alpha, score) in zip(
        right.lines, [(a, s) for a in ALPHAS for s in ("msp", "max_logit_pnorm")], strict=True
    ):
        told = [r for r in subsets if (r["alpha"], r["score"]) == (alpha, score)]
        np.testing.assert_allclose(line.get_xdata(), [r["members"] for r in told])
        np.testing.assert_allclose(line.get_ydata(), [r["metrics"]["naurc"]["mean"] for r in told])


def test_analyses_without_rows_and_with_undefined_values_are_drawn():
    for figure in (
        figures.norms([], 0.2),
        figures.shifts([], 0.2),
        figures.learning_curve([]),
        figures.ensembles([], []),
        figures.members([]),
    ):
        figures.to_svg(figure)
    nothing = {"estimate": None, "interval": [None, None]}
    rows = [{**r, "metrics": {"naurc": nothing}} for r in repaired()["norms"]]
    figures.to_svg(figures.norms(rows, 0.2))
    rows = [{**r, "metrics": {"naurc": nothing}} for r in repaired()["ensembles"]]
    figures.to_svg(figures.ensembles(rows, []))


def test_objectives_are_ordered_by_naurc_of_msp_and_named_in_words(document):
    worse = {**document["aggregates"][0], "objective": "mixup=0.2"}
    told = {**worse["metrics"]["naurc"], "estimate": 9.0, "interval": [8.0, 10.0]}
    rows = [{**worse, "metrics": {**worse["metrics"], "naurc": told}}, *document["aggregates"]]
    (axes,) = figures.objectives(rows).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] == "mixup, Beta(0.2, 0.2)"  # the worst lies at the bottom
    assert set(names[1:]) == {"α = 0", "α = 0.2"}


def test_selective_errors_are_shown_as_they_are_and_less_the_first():
    rows = [("first", [0.1, 0.05], [0.08, 0.04], [0.12, 0.06]), ("second", [0.12, 0.02], [0.1, 0.01], [0.14, 0.03])]
    left, right = figures.selective_errors(rows, (100, 80)).axes
    np.testing.assert_allclose([line.get_ydata() for line in left.lines], [[10, 5], [12, 2]])
    np.testing.assert_allclose([line.get_ydata() for line in right.lines], [[0, 0], [2, -3]], atol=1e-12)
    np.testing.assert_allclose(right.lines[1].get_xdata(), [100, 80])
    assert [line.get_label() for line in right.lines] == ["first", "second"]


def test_errors_lie_in_the_ranking_where_their_shares_say():
    risk = [0.0, 0.1, 0.2, 0.3]
    row = {"alpha": 0.0, "score": "msp", "coverage": [0.25, 0.5, 0.75, 1.0], "risk": risk}
    whole, half = figures.error_ranks([row], 0.2).axes
    line = whole.lines[0]
    np.testing.assert_allclose(line.get_xdata(), [25, 50, 75, 100])
    np.testing.assert_allclose(line.get_ydata(), [0, 100 / 6, 50, 100])  # c·risk(c)/risk(1)
    np.testing.assert_allclose(half.lines[0].get_xdata(), [25, 50])


def test_scores_are_ordered_by_naurc_under_smoothing(document):
    (axes,) = figures.repairs(document["aggregates"], 0.2).axes
    told = {r["score"]: r["metrics"]["naurc"]["estimate"] for r in document["aggregates"] if r["alpha"] == 0.2}
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [figures.SCORE_NAMES[score] for score in sorted(told, key=told.get, reverse=True)]


def test_points_of_cascades_stand_at_their_costs_and_values():
    drawn, told = figures.cascade_trade_off(cascades()), cascades()
    for axes, metric in zip(drawn.axes, ("coverage_at_risk", "risk_at_coverage"), strict=True):
        points = {
            (float(c.lines[0].get_xdata()[0]), round(float(c.lines[0].get_ydata()[0]), 9)) for c in axes.containers
        }
        assert points == {
            (row["metrics"]["cost"]["estimate"], round(100 * row["metrics"][metric]["estimate"], 9))
            for row in told["policies"]
        }
        assert axes.get_xscale() == "log"
    assert legend(drawn.axes[1]) == [
        "first network alone",
        "ensemble",
        "single threshold",
        "window",
        "oracle: labels seen",
    ]


def test_bars_of_cascades_are_the_changes():
    left, right = figures.cascade_changes(cascades()).axes
    names = ("rejected_wrong", "accepted_right", "corrected", "rejected_right", "accepted_wrong", "spoilt")
    widths = [100 * cascades()["changes"][name] for name in names]
    assert [bar.get_width() for bar in left.patches] == pytest.approx(widths)
    assert legend(right) == ["single threshold", "window"]


def test_shifted_sets_stand_beside_the_test_split_with_their_costs_and_risks():
    drawn = figures.cascade_shift(cascades())
    assert [tick.get_text() for tick in drawn.axes[2].get_xticklabels()] == ["test split", "flat"]
    shown = ["single", "ensemble", "window", "window, moved"]
    for axes, metric, names, factor in (
        (drawn.axes[0], "cost_multiple", ["single_threshold", "window", "window, moved"], 1),
        (drawn.axes[1], "decided_coverage", shown, 100),
        (drawn.axes[2], "decided_risk", shown, 100),
    ):
        for container, name in zip(axes.containers, names, strict=True):
            told = [
                factor * row["metrics"][metric]["estimate"] for row in cascades()["shifts"] if row["policy"] == name
            ]
            np.testing.assert_allclose(container.lines[0].get_ydata(), told)
    assert drawn.axes[2].lines[-1].get_ydata()[0] == 20  # the risk that was asked for


def test_a_search_is_drawn_on_its_three_splits():
    left, right = figures.cascade_search(cascades()).axes
    rows = cascades()["search"]
    for axes, what in ((left, "coverage"), (right, "risk")):
        for line, split in zip(axes.lines, ("search", "certify", "test"), strict=False):
            expected = [100 * row[f"{split}_{what}"] for row in rows]
            np.testing.assert_allclose(line.get_ydata(), expected)
    assert right.lines[-1].get_ydata()[0] == 20  # the risk that was asked for


def test_choices_say_how_often_they_are_above_and_accept_nothing():
    left, right = figures.promises(choices(), 0.05, 0.8).axes
    told = [text.get_text() for text in left.texts]
    assert told == ["25.0 % above", "0.0 % above, 50 % accept nothing", "0.0 % above, 100 % accept nothing"]
    assert left.lines[2].get_xdata()[0] == pytest.approx(3.5)  # the median of those that accept something
    assert right.lines[-1].get_xdata()[0] == 80


def test_streams_name_their_alarms():
    first, second = figures.monitored(streams(), 0.05).axes
    assert (first.get_title("left"), second.get_title("left")) == ("a: alarm after 80", "b: no alarm")
    assert [text.get_text() for text in first.texts] == ["changes"]


def test_rules_are_drawn_where_they_stop_accepting():
    axes = figures.scod_plane(*plane()).axes[0]
    (contour,) = [one for one in axes.collections if hasattr(one, "get_paths") and one.get_paths()]
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])
    np.testing.assert_allclose(vertices.sum(axis=1), 0, atol=1e-6)
    assert legend(axes) == ["right", "outlier", "wrong", "sum"]


def test_severities_begin_at_the_clean_images():
    figure = figures.severities(shifted(), 0.05)
    assert len(figure.axes) == 6
    coverage, risk = figure.axes[:2]
    for line in coverage.lines:
        np.testing.assert_array_equal(line.get_xdata(), [0, 1, 2])
        np.testing.assert_allclose(line.get_ydata(), [90, 70, 50])
    assert risk.lines[-1].get_ydata()[0] == 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["contrast", "shot noise", "mean"]
