"""Every plot, one function each: numbers in, a matplotlib figure out. Used by the report and the notebooks alike."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sc_jax import files

BLUE, RED, GREEN, GREY = "#2b5c8a", "#c8442e", "#2f8f6b", "#777777"

SCORE_NAMES = {
    "msp": "MSP",
    "max_probability_as_stored": "max probability as stored",
    "margin": "margin",
    "logit_margin": "logit margin",
    "negative_entropy": "negative entropy",
    "negative_gini": "negative Gini",
    "doctor_alpha": "DOCTOR-α",
    "doctor_beta": "DOCTOR-β",
    "max_logit": "max logit",
    "energy": "energy",
    "msp_temperature": "MSP after temperature scaling",
    "max_logit_pnorm": "p-norm",
    "max_logit_pnorm_or_msp": "p-norm or MSP",
    "msp_pnorm": "MSP p-norm",
    "mahalanobis": "Mahalanobis",
    "knn_distance": "k-NN distance",
    "residual": "residual",
    "vim": "ViM",
    "sirc": "SIRC (MSP, residual)",
    "react": "ReAct",
    "ash_prune": "ASH-P",
    "ash_binarise": "ASH-B",
    "ash_scale": "ASH-S",
    "gradnorm": "GradNorm",
    "confidnet": "ConfidNet",
    "model_confidence": "the model's own",
    "sparsemax": "sparsemax",
    "entmax15": "1.5-entmax",
    "expected_entropy": "expected entropy",
    "mutual_information": "mutual information",
    "variation_ratio": "variation ratio",
    "disagreement": "disagreement",
    "mean_max_probability": "mean max probability",
}
"""How scores are called in figures and tables."""

OBJECTIVE_NAMES = {
    "max_suppression": "MaxSup, α = {}",
    "confidence_penalty": "confidence penalty, β = {}",
    "focal": "focal loss, γ = {}",
    "logit_norm": "LogitNorm training, τ = {}",
    "margin_smoothing": "MbLS, m = {}",
    "acls": "ACLS, w = {}",
    "temperature": "trained at temperature {}",
    "mixup": "mixup, Beta({0}, {0})",
    "cutmix": "CutMix, Beta({0}, {0})",
    "label_noise": "label noise, rate {}",
    "left_out": "without fold {}",
    "distillation": "self-distillation, T = {}",
    "instance_smoothing": "ILS-1, ε = {}",
    "inverse_instance_smoothing": "ILS-1 reversed, ε = {}",
    "equal_suppression": "equal suppression, α = {}",
    "error_smoothing": "smoothing by error, ᾱ = {}",
    "shuffled_error_smoothing": "the same α(x) of another x, ᾱ = {}",
    "selective_net": "SelectiveNet, c = {}",
    "selective_net_released": "SelectiveNet as released, c = {}",
    "deep_gamblers": "Deep Gamblers, o = {}",
    "self_adaptive": "self-adaptive, m = {}",
    "selective_net_entropy": "SelectiveNet + entropy, β = {}",
    "deep_gamblers_entropy": "Deep Gamblers + entropy, β = {}",
    "self_adaptive_entropy": "self-adaptive + entropy, β = {}",
    "entropy_minimisation": "cross-entropy + entropy, β = {}",
    "aurc": "AURC, share {}",
    "sele": "SELE, share {}",
    "entmax": "entmax, α = {}",
}
"""How objectives other than label smoothing are called, with their strengths."""


def treatment_name(row: dict[str, Any]) -> str:
    """What a row of a study is of, in words: its α, or its objective."""
    if "objective" not in row:
        return f"α = {row['alpha']:g}"
    name, _, strength = row["objective"].partition("=")
    return OBJECTIVE_NAMES[name].format(strength)


_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "sc_jax",
    "svg.fonttype": "path",
}


def _axes(columns: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, np.atleast_1d(figure.subplots(1, columns))


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element, to stand inside an HTML page."""
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG, to stand in a notebook."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def save_png(figure: Figure, path: str | Path) -> None:
    """Writes the figure as a PNG, whole or not at all."""
    files.write_bytes(path, to_png(figure))


def finding(curves: Sequence[dict[str, Any]], aggregates: Sequence[dict[str, Any]], alpha: float) -> Figure:
    """The finding: risk-coverage curves of CE, LS and LS + p-norm with bands, and NAURC against α.

    Args:
      curves, aggregates: as in `metrics.json`; alpha: the smoothing of the curves.
    """
    figure, (left, right) = _axes(2, 11, 4.2)
    chosen = [
        (0.0, "msp", BLUE, "cross-entropy, MSP"),
        (alpha, "msp", RED, f"label smoothing α = {alpha:g}, MSP"),
        (alpha, "max_logit_pnorm", GREEN, f"label smoothing α = {alpha:g}, p-norm"),
    ]
    by_cell = {(row["alpha"], row["score"]): row for row in curves}
    means = {(row["alpha"], row["score"]): row["metrics"]["aurc"]["estimate"] for row in aggregates}
    for a, score, colour, label in chosen:
        if (a, score) in by_cell:
            _curve(left, by_cell[a, score], colour, f"{label}: AURC {100 * means[a, score]:.2f}")
    left.set(xlabel="coverage (%)", ylabel="selective risk (%)", xlim=(0, 100), ylim=(0, None))
    left.set_title("Risk among the accepted, most confident first", fontsize=10.5, loc="left")
    left.legend(loc="upper left")

    for score, colour in (("msp", RED), ("max_logit_pnorm", GREEN)):
        rows = sorted((row for row in aggregates if row["score"] == score), key=lambda row: row["alpha"])
        if rows:
            _points(right, rows, [row["metrics"]["naurc"] for row in rows], colour, SCORE_NAMES[score])
    right.set(xlabel="label smoothing α", ylabel="NAURC (0 perfect, 1 random)", ylim=(0, None))
    right.set_title("Quality of the ranking, whatever the accuracy", fontsize=10.5, loc="left")
    right.legend(loc="lower right")
    return figure


def settings(studies: dict[str, tuple[Sequence[dict[str, Any]], float]]) -> Figure:
    """Risk-coverage curves of CE, LS and LS + p-norm with bands, a panel for each study.

    Args:
      studies: title → its "curves" as in `metrics.json`, and the α of its smoothing.
    """
    columns = min(4, len(studies))
    rows = -(-len(studies) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.1 * columns, 2.8 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
    labels = {}
    for axes, (title, (curves, alpha)) in zip(panels, studies.items(), strict=False):
        by_cell = {(row["alpha"], row["score"]): row for row in curves}
        for a, score, colour, label in (
            (0.0, "msp", BLUE, "cross-entropy, MSP"),
            (alpha, "msp", RED, "label smoothing, MSP"),
            (alpha, "max_logit_pnorm", GREEN, "label smoothing, p-norm"),
        ):
            if (a, score) in by_cell:
                _curve(axes, by_cell[a, score], colour, label)
        labels |= {label: line for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        axes.set(xlabel="coverage (%)", ylabel="selective risk (%)", xlim=(0, 100), ylim=(0, None))
        axes.set_title(f"{title}, α = {alpha:g}", fontsize=8.5, loc="left")
    for axes in panels[len(studies) :]:
        axes.remove()
    figure.legend(labels.values(), labels, loc="outside upper left", ncols=3)
    return figure


def _curve(axes: Axes, row: dict[str, Any], colour: str, label: str) -> None:
    coverage, risk = 100 * np.array(row["coverage"]), 100 * np.array(row["risk"])
    axes.plot(coverage, risk, color=colour, label=label, lw=1.8)
    if row["low"] is not None:
        axes.fill_between(
            coverage, 100 * np.array(row["low"]), 100 * np.array(row["high"]), color=colour, alpha=0.15, lw=0
        )


def _points(
    axes: Axes, rows: Sequence[dict[str, Any]], values: Sequence[dict[str, Any]], colour: str, label: str
) -> None:
    x = np.array([row["alpha"] for row in rows])
    y = np.array([value["estimate"] for value in values], float)
    low, high = np.array([value["interval"] for value in values], float).T
    axes.plot(x, y, color=colour, label=label, marker="o", ms=5, lw=1.4)
    # From end to end, not from the estimate: an interval of few examples need not hold it.
    axes.errorbar(x, (low + high) / 2, yerr=(high - low) / 2, color=colour, fmt="none", capsize=3, lw=1.4)


def error_ranks(curves: Sequence[dict[str, Any]], alpha: float) -> Figure:
    """Where errors lie in the ranking: the share of all errors among the most confident, against coverage.

    coverage·risk(coverage)/risk(1); a perfect ranking has none until coverage reaches the accuracy, a random one the diagonal.

    Args:
      curves: as in `metrics.json`; alpha: the smoothing compared with cross-entropy.
    """
    figure, panels = _axes(2, 10, 4)
    by_cell = {(row["alpha"], row["score"]): row for row in curves}
    sides = [((0.0, "msp"), BLUE, "cross-entropy, MSP"), ((alpha, "msp"), RED, f"α = {alpha:g}, MSP")]
    sides += [((alpha, "max_logit_pnorm"), GREEN, f"α = {alpha:g}, p-norm")]
    for axes, most in zip(panels, (1.0, 0.5), strict=True):
        for side, colour, label in [side for side in sides if side[0] in by_cell]:
            row = by_cell[side]
            coverage, risk = np.array(row["coverage"]), np.array(row["risk"], float)
            shown = coverage <= most
            share = coverage * risk / risk[-1] if risk[-1] else np.zeros_like(risk)
            axes.plot(100 * coverage[shown], 100 * share[shown], color=colour, label=label, lw=1.8)
        axes.set(xlabel="most confident examples (%)", ylabel="of all errors (%)", xlim=(0, 100 * most), ylim=(0, None))
    panels[0].plot([0, 100], [0, 100], color=GREY, lw=0.8, label="random")
    panels[0].set_title("Where the errors lie in the ranking", fontsize=10.5, loc="left")
    panels[1].set_title("Among the more confident half", fontsize=10.5, loc="left")
    panels[0].legend(loc="upper left")
    return figure


def repairs(aggregates: Sequence[dict[str, Any]], alpha: float) -> Figure:
    """NAURC of every score under cross-entropy and under smoothing, with intervals; the best under smoothing at the top.

    Args:
      aggregates: as in `metrics.json`; alpha: the smoothing.
    """
    values = {(row["alpha"], row["score"]): row["metrics"]["naurc"] for row in aggregates if "alpha" in row}
    scores = sorted((score for a, score in values if a == alpha), key=lambda score: -values[alpha, score]["estimate"])
    figure, (axes,) = _axes(1, 8, 1.2 + 0.36 * len(scores))
    for a, colour, offset in ((0.0, BLUE, 0.12), (alpha, RED, -0.12)):
        there = [i for i, score in enumerate(scores) if (a, score) in values]
        told = [values[a, scores[i]] for i in there]
        low, high = np.array([value["interval"] for value in told], float).reshape(-1, 2).T
        y = np.array(there, float) + offset
        label = "cross-entropy" if a == 0 else f"label smoothing α = {a:g}"
        axes.plot([value["estimate"] for value in told], y, "o", color=colour, ms=5, label=label)
        axes.errorbar((low + high) / 2, y, xerr=(high - low) / 2, color=colour, fmt="none", capsize=2, lw=1.2)
    axes.set_yticks(range(len(scores)), [SCORE_NAMES[score] for score in scores])
    axes.set(xlabel="NAURC (0 perfect, 1 random)", ylabel="score")
    axes.set_title("Scores of the same networks", fontsize=10.5, loc="left")
    axes.legend(loc="lower right")
    return figure


def suppression(rows: Sequence[dict[str, Any]]) -> Figure:
    """The identity: extra gradient on the max logit against the error rate, autodiff on the closed-form line.

    Args:
      rows: "suppression" of `metrics.json`.
    """
    figure, (axes,) = _axes(1, 5.4, 4)
    shades = mpl.colormaps["plasma"](np.linspace(0.15, 0.8, len(rows)))
    for row, shade in zip(rows, shades, strict=True):
        order = np.argsort(row["error"])
        axes.plot(
            100 * np.array(row["error"])[order], np.array(row["closed_form"])[order], color=shade, lw=1.2, alpha=0.8
        )
        axes.plot(100 * np.array(row["error"]), row["autodiff"], "o", color=shade, ms=5, label=f"α = {row['alpha']:g}")
    axes.axhline(0, color=GREY, lw=0.8)
    axes.set(xlabel="error rate in a bin of MSP (%)", ylabel="extra gradient on the max logit")
    axes.set_title("Autodiff (dots) on α(1 − error − 1/K) (lines)", fontsize=10.5, loc="left")
    if rows:
        axes.legend(title="smoothing")
    return figure


def max_logit_gap(rows: Sequence[dict[str, Any]], alpha: float) -> Figure:
    """The evidence: max logit of right against wrong test predictions at equal MSP, for CE and LS, and the gap by α.

    Args:
      rows: "max_logit_gap" of `metrics.json`; alpha: the smoothing of the middle panel.
    """
    figure, panels = _axes(3, 12, 3.9)
    by_alpha = {row["alpha"]: row for row in rows}
    for axes, a in zip(panels[:2], (0.0, alpha), strict=True):
        if a not in by_alpha:
            continue
        profile = by_alpha[a]["profile"]
        place = np.arange(len(profile["msp"]))
        axes.plot(place, np.array(profile["right"], float), color=BLUE, marker="o", ms=4, label="right predictions")
        axes.plot(place, np.array(profile["wrong"], float), color=RED, marker="s", ms=4, label="wrong predictions")
        axes.set_xticks(place[::3], [f"{profile['msp'][i]:.2f}" for i in place[::3]])
        axes.set(xlabel="MSP (median of its tenth)", ylabel="centred max logit (standardised)")
        title = "cross-entropy" if a == 0 else f"label smoothing α = {a:g}"
        axes.set_title(f"Max logit at equal MSP: {title}", fontsize=10.5, loc="left")
    for axes in [axes for axes in panels[:2] if axes.lines][:1]:
        axes.legend(loc="upper left")
    last = panels[2]
    ordered = sorted(rows, key=lambda row: row["alpha"])
    _points(last, ordered, [row["centred"] for row in ordered], BLUE, "centred max logit")
    _points(last, ordered, [row["raw"] for row in ordered], GREY, "max logit as it is")
    last.axhline(0, color="black", lw=0.8)
    last.set(xlabel="label smoothing α", ylabel="right − wrong (SD at equal MSP)")
    last.set_title("Gap at equal MSP, adjusted", fontsize=10.5, loc="left")
    last.legend()
    return figure


def objectives(aggregates: Sequence[dict[str, Any]]) -> Figure:
    """NAURC of everything that was trained, by MSP and by p-norm, with intervals; best at the top by MSP.

    Args:
      aggregates: of label smoothing and of other objectives, as in `metrics.json`.
    """
    shown = {"msp": (RED, "MSP"), "max_logit_pnorm": (GREEN, "p-norm")}
    values = {
        (treatment_name(row), row["score"]): row["metrics"]["naurc"] for row in aggregates if row["score"] in shown
    }
    names = sorted(
        {name for name, score in values if score == "msp"}, key=lambda name: -values[name, "msp"]["estimate"]
    )
    figure, (axes,) = _axes(1, 8.5, 1.2 + 0.34 * len(names))
    for offset, (score, (colour, label)) in zip((0.12, -0.12), shown.items(), strict=True):
        places = [i for i, name in enumerate(names) if (name, score) in values]
        if not places:
            continue
        found = [values[names[i], score] for i in places]
        low, high = np.array([value["interval"] for value in found], float).T
        y = np.array(places) + offset
        axes.plot([value["estimate"] for value in found], y, "o", color=colour, ms=5, label=label)
        axes.errorbar((low + high) / 2, y, xerr=(high - low) / 2, color=colour, fmt="none", capsize=2, lw=1.2)
    if ("α = 0", "msp") in values:
        axes.axvline(values["α = 0", "msp"]["estimate"], color=GREY, lw=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="NAURC (0 perfect, 1 random)", ylabel="trained with")
    axes.set_title("Quality of the ranking, by what was trained", fontsize=10.5, loc="left")
    axes.legend(loc="upper right")
    return figure


def selective_errors(
    rows: Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float]]], coverages: Sequence[int]
) -> Figure:
    """Selective error of several methods at given coverages: as it is, with the band of the first, and less that of the first.

    Args:
      rows: (name, risk, low, high), the last three [c], shares; the first is what others are compared with.
      coverages: [c], in per cent.
    """
    figure, (left, right) = _axes(2, 12, 4.6)
    shades = [*(mpl.colormaps["tab10"].colors[k] for k in (0, 1, 2, 4, 5, 6, 7, 8, 9)), "black"]  # red is the first
    markers = "osv^D"
    first = 100 * np.asarray(rows[0][1], float)
    for i, (name, *parts) in enumerate(rows):
        risk, low, high = (100 * np.asarray(part, float) for part in parts)
        how = {"color": RED if i == 0 else shades[(i - 1) % len(shades)], "marker": markers[i % len(markers)]}
        how |= {"ms": 4, "lw": 1.8 if i == 0 else 1.1}
        left.plot(coverages, risk, **how)
        if i == 0:
            left.fill_between(coverages, low, high, color=RED, alpha=0.15, lw=0)
        right.plot(coverages, risk - first, **how, label=_plain(name))
    left.set(xlabel="coverage (%)", ylabel="error among the accepted (%)", ylim=(0, None))
    right.set(xlabel="coverage (%)", ylabel=f"the same, less that of {_plain(rows[0][0])} (points)")
    left.set_title("Selective error", fontsize=10.5, loc="left")
    right.set_title("Below 0: better", fontsize=10.5, loc="left")
    figure.legend(loc="outside right upper", fontsize=9)
    return figure


def risk_coverage(curves: Sequence[dict[str, Any]]) -> Figure:
    """Risk-coverage curves with bands, one per file and score; many are named beside the axes.

    Args:
      curves: rows with "coverage", "risk", "low", "high", "score" and "predictions".
    """
    many = len(curves) > 6 or any(len(row["predictions"]) > 30 for row in curves)
    one_file = len({row["predictions"] for row in curves}) == 1
    beside = many and not one_file
    figure, (axes,) = _axes(1, 11 if beside else 7, max(4.4, 0.24 * len(curves)) if beside else 4.4)
    shades = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, len(curves)))
    for row, shade in zip(curves, shades, strict=True):
        name = SCORE_NAMES.get(row["score"], row["score"])
        _curve(axes, row, shade, _plain(name if one_file else f"{name}, {_tail(row['predictions'])}"))
    axes.set(xlabel="coverage (%)", ylabel="selective risk (%)", xlim=(0, 100), ylim=(0, None))
    if beside:
        figure.legend(loc="outside right upper", fontsize=9)
    else:
        axes.legend(loc="best")
    return figure


def severities(rows: Sequence[dict[str, Any]], risk: float) -> Figure:
    """Frozen rejectors under corruptions: coverage, risk and joint risk against severity, a row of panels for each.

    Args:
      rows: with "rejector", "corruption" ("clean" at severity 0, "mean" over all families), "severity", and "coverage", "risk" and
        "joint_risk" with their intervals; risk: the target that is drawn, a share.
    """
    names = list(dict.fromkeys(row["rejector"] for row in rows))
    families = [name for name in dict.fromkeys(row["corruption"] for row in rows) if name not in ("clean", "mean")]
    shades = dict(zip(families, mpl.colormaps["viridis"](np.linspace(0, 0.92, len(families))), strict=True))
    titles = {
        "coverage": "inliers accepted (%)",
        "risk": "risk of accepted inliers (%)",
        "joint_risk": "joint risk (%)",
    }
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 3.1 * len(names) + 0.6), layout="constrained")
        panels = np.atleast_2d(figure.subplots(len(names), 3, sharex=True))
    for name, line in zip(names, panels, strict=True):
        own = [row for row in rows if row["rejector"] == name]
        for (metric, title), axes in zip(titles.items(), line, strict=True):
            for family in [*families, "mean"]:
                drawn = [row for row in own if row["corruption"] in ("clean", family)]
                x, y = [row["severity"] for row in drawn], 100 * np.array([row[metric] for row in drawn], float)
                if family != "mean":
                    axes.plot(x, y, color=shades[family], lw=1, label=family.replace("_", " "))
                    continue
                low, high = 100 * np.array([row[f"{metric}_interval"] for row in drawn], float).T
                axes.plot(x, y, color="black", lw=2.2, label="mean")
                axes.fill_between(x, low, high, color="black", alpha=0.2, lw=0)
            axes.set(xlabel="severity (0: clean)", ylabel=title, ylim=(0, None))
        line[0].set_title(name, fontsize=10.5, loc="left")
        line[1].axhline(100 * risk, color=GREY, lw=1, ls="--")
        line[1].annotate(f"{100 * risk:g} %", (0, 100 * risk), (2, 2), textcoords="offset points", color=GREY)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _tail(path: str, most: int = 40) -> str:
    return path if len(path) <= most else "…" + path[1 - most :]


def _plain(text: str) -> str:
    """No formula, and no leading underscore, which would hide it from a legend."""
    return " " * text.startswith("_") + text.replace("$", r"\$")


def reliability(tables: Sequence[dict[str, Any]]) -> Figure:
    """Reliability diagrams, one per file: accuracy against confidence with Wilson's intervals, and where the examples lie.

    Args:
      tables: rows with "predictions" and the columns of `sc_jax.ops.reliability_table`.
    """
    columns = min(3, max(1, len(tables)))
    lines = max(1, -(-len(tables) // columns))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * columns, 4 * lines), layout="constrained")
        panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axes in panels[len(tables) :]:
        axes.set_axis_off()
    for axes, table in zip(panels, tables, strict=False):
        x, y = (np.array(table[name], float) for name in ("confidence", "accuracy"))
        ends = np.array([table["accuracy_low"], table["accuracy_high"]], float)
        there = np.isfinite(x)
        share = np.array(table["weight"], float)
        low, high = (np.array(table[name], float) for name in ("low", "high"))
        axes.bar(low, share / share.sum(), width=high - low, align="edge", color="#dddddd", label="share of examples")
        axes.plot([0, 1], [0, 1], color=GREY, lw=0.8)
        error = np.abs(ends - y)[:, there]
        axes.errorbar(x[there], y[there], yerr=error, color=BLUE, marker="o", ms=4, capsize=2, lw=1.2, label="accuracy")
        axes.set(xlabel="confidence (maximum probability)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.set_title(_plain(_tail(table["predictions"])), fontsize=9, loc="left")
    if tables:
        panels[0].legend(loc="upper left", fontsize=8)
    return figure


PIXEL_COLOURS = {
    "accepted, right": "#cfe0ee",
    "accepted, wrong": RED,
    "rejected, right": "#b3b3b3",
    "rejected, wrong": BLUE,
    "no label": "#1a1a1a",
}


def pixels(images: Sequence[np.ndarray], maps: dict[str, Sequence[tuple[np.ndarray, np.ndarray]]]) -> Figure:
    """What happens to each pixel: a row per image, the image and beside it a map for each classifier.

    Args:
      images: uint8 [h, w, 3] each; maps: by title of the column, for each image its outcome, uint8 [h, w], 0 right, 1 wrong, 255
        without a label, and whether a pixel is accepted, bool [h, w].
    """
    shade = np.array(
        [[round(255 * c) for c in mpl.colors.to_rgb(colour)] for colour in PIXEL_COLOURS.values()], np.uint8
    )
    columns, width = 1 + len(maps), 3.9
    heights = [width * image.shape[0] / image.shape[1] + 0.25 for image in images]
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(width * columns, sum(heights) + 0.7), layout="constrained")
        grid = figure.subplots(len(images), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (line, image) in enumerate(zip(grid, images, strict=True)):
        line[0].imshow(image, interpolation="nearest")
        line[0].set_title(" ", fontsize=8.5, pad=3)  # so that the maps lie beside it
        for axes, (title, pairs) in zip(line[1:], maps.items(), strict=True):
            outcome, accepted = pairs[row]
            axes.imshow(shade[np.where(outcome == 255, 4, outcome + 2 * ~accepted)], interpolation="nearest")
            axes.set_title(_shares(outcome, accepted), fontsize=8.5, loc="left", pad=3)
            if row == 0:
                axes.text(0, 1.16, _plain(title), transform=axes.transAxes, fontsize=10.5, va="bottom")
    patches = [Patch(facecolor=c, edgecolor=GREY, lw=0.5, label=name) for name, c in PIXEL_COLOURS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=9)
    return figure


def _shares(outcome: np.ndarray, accepted: np.ndarray) -> str:
    labelled = outcome != 255
    n, taken = labelled.sum(), (labelled & accepted).sum()
    if not n:
        return "no pixel has a label"
    risk = f", {100 * (outcome == 1)[labelled & accepted].mean():.1f} % of them wrong" if taken else ""
    return f"{100 * taken / n:.1f} % accepted{risk}; of all {100 * (outcome == 1).sum() / n:.1f} % wrong"


def training(lines: Sequence[dict[str, Any]], alphas: Sequence[float]) -> Figure:
    """Training accuracy and loss by α, mean over seeds.

    Args:
      lines: of `train.jsonl`; alphas: of each member, in the order of the lists in the lines.
    """
    figure, panels = _axes(2, 9, 3.4)
    distinct = sorted(set(alphas))
    shades = mpl.colormaps["plasma"](np.linspace(0.0, 0.8, len(distinct)))
    epoch = [line["epoch"] for line in lines]
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        values = np.array([line[name] for line in lines])
        for alpha, shade in zip(distinct, shades, strict=True):
            axes.plot(epoch, values[:, np.array(alphas) == alpha].mean(axis=1), color=shade, label=f"α = {alpha:g}")
        axes.set(xlabel="epoch", ylabel=f"training {name}")
    panels[1].legend(loc="lower right")
    return figure


def logit_statistics(lines: Sequence[dict[str, Any]], splits: Sequence[str], alphas: Sequence[float]) -> Figure:
    """What smoothing does to the max logit while a network learns, by α, mean over seeds.

    Left: its mean extra gradient on the max logit, of trained-on and of held-out examples. Right: the centred max logit of right
    and of wrong held-out predictions.

    Args:
      lines: of `logit_statistics.jsonl`; splits: the names of the two splits in a line, trained on and held out; alphas: of
        each member.
    """
    figure, panels = _axes(2, 10, 3.6)
    distinct = sorted(set(alphas))
    shades = mpl.colormaps["plasma"](np.linspace(0.0, 0.8, len(distinct)))
    epoch = [line["epoch"] for line in lines]
    trained, held_out = splits

    def overall(split: str, name: str, wrong: slice) -> np.ndarray:
        """[lines, m]"""
        rows = []
        for line in lines:
            count, value = (np.array(line[split][field], float)[:, wrong] for field in ("count", name))
            rows.append(np.nansum(count * value, axis=(1, 2)) / np.maximum(count.sum(axis=(1, 2)), 1))
        return np.array(rows)

    extra = {split: overall(split, "extra_gradient", slice(None)) for split in splits}
    right, wrong = (overall(held_out, "centred_max_logit", slice(i, i + 1)) for i in (0, 1))
    for alpha, shade in zip(distinct, shades, strict=True):
        of_alpha = np.array(alphas) == alpha
        styles = ((extra[trained], "--"), (extra[held_out], "-")), ((wrong, "--"), (right, "-"))
        for axes, curves in zip(panels, styles, strict=True):
            for values, style in curves:
                label = f"α = {alpha:g}" if style == "-" else None
                axes.plot(epoch, values[:, of_alpha].mean(axis=1), style, color=shade, label=label)
    panels[0].set(xlabel="epoch", ylabel="extra gradient on the max logit", title=f"{trained} (dashed), {held_out}")
    panels[1].set(xlabel="epoch", ylabel="max logit − mean logit", title=f"{held_out}: wrong (dashed), right")
    panels[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def logits_by_confidence(
    rows: dict[str, Sequence[dict[str, Any]]], edges: Sequence[float], p: float, alpha: float
) -> Figure:
    """Extra gradient on the max logit of all predictions, centred max logit and ‖v‖_p of right and of wrong ones, by bin of confidence.

    Args:
      rows: split → rows of `logit_statistics.by_alpha`, the split trained on first; edges: inner edges of the bins, log-odds of the
        MSP; p: of the norm; alpha: the smoothing.
    """
    figure, panels = _axes(3, 12, 3.6)
    place = np.arange(len(edges) + 1)
    for (split, of), style in zip(rows.items(), ("--", "-"), strict=True):
        row = next(row for row in of if row["alpha"] == alpha)
        count, extra = np.array(row["count"], float), np.array(row["extra_gradient"], float)
        total = count.sum(axis=0)
        mean = np.where(total > 0, np.nansum(count * extra, axis=0) / np.maximum(total, 1), np.nan)
        panels[0].plot(place, mean, style, color=GREY, marker="o", ms=3, label=f"all, {split}")
        for axes, name in zip(panels[1:], ("centred_max_logit", "norm"), strict=True):
            for i, (kind, colour) in enumerate((("right", BLUE), ("wrong", RED))):
                values = np.array(row[name][i], float)
                axes.plot(place, values, style, color=colour, marker="o", ms=3, label=f"{kind}, {split}")
    labels = ("extra gradient on the max logit", "max logit − mean logit", f"p-norm of the logits, p = {p:g}")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel="bin of the log-odds of MSP, up to", ylabel=label)
        axes.set_xticks(place, [*(f"{edge:g}" for edge in edges), "∞"])
    panels[0].set_title(f"label smoothing α = {alpha:g}" if alpha else "cross-entropy", fontsize=10.5, loc="left")
    panels[0].legend()
    panels[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def training_ranking(lines: Sequence[dict[str, Any]], split: str, alphas: Sequence[float]) -> Figure:
    """How a network ranks its errors while it learns, by α, mean over seeds: AURC, coverage at 5 % risk, risk at 80 % coverage.

    Args:
      lines: of `logit_statistics.jsonl`; split: one of the two in a line; alphas: of each member.
    """
    shown = (
        ("aurc", "AURC ×100"),
        ("coverage_at_risk_0.05", "coverage at 5 % risk, %"),
        ("risk_at_coverage_0.8", "risk at 80 % coverage, %"),
    )
    figure, panels = _axes(3, 12, 3.6)
    distinct = sorted(set(alphas))
    shades = mpl.colormaps["plasma"](np.linspace(0.0, 0.8, len(distinct)))
    epoch = [line["epoch"] for line in lines]
    for axes, (name, label) in zip(panels, shown, strict=True):
        values = 100 * np.array([line[split]["ranking"][name] for line in lines])
        for alpha, shade in zip(distinct, shades, strict=True):
            axes.plot(epoch, values[:, np.array(alphas) == alpha].mean(axis=1), color=shade, label=f"α = {alpha:g}")
        axes.set(xlabel="epoch", ylabel=label)
    panels[0].set_title(split, fontsize=10.5, loc="left")
    panels[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def norms(rows: Sequence[dict[str, Any]], alpha: float) -> Figure:
    """NAURC of logit normalisation against p, centred and not, beside MSP: for cross-entropy and for one α.

    Args:
      rows: of `repair.norms`; alpha: the smoothing of the right panel.
    """
    figure, panels = _axes(2, 10, 3.8)
    for axes, a in zip(panels, (0.0, alpha), strict=True):
        for centred, colour, label in ((True, GREEN, "p-norm, centred"), (False, BLUE, "p-norm, not centred")):
            line = [row for row in rows if row["alpha"] == a and row["centred"] is centred]
            _with_interval(axes, [r["p"] for r in line], [r["metrics"]["naurc"] for r in line], colour, label)
        for row in rows:
            if row["alpha"] == a and row["p"] is None:
                told = row["metrics"]["naurc"]
                axes.axhline(np.array(told["estimate"], float), color=RED, lw=1.4, label="MSP")
                axes.axhspan(*np.array(told["interval"], float), color=RED, alpha=0.12, lw=0)
        axes.set(xlabel="p", ylabel="NAURC (0 perfect, 1 random)")
        axes.set_title("cross-entropy" if a == 0 else f"label smoothing α = {a:g}", fontsize=10.5, loc="left")
    panels[0].legend(*panels[1].get_legend_handles_labels())
    return figure


def _with_interval(
    axes: Axes, x: Sequence[float], values: Sequence[dict[str, Any]], colour: Any, label: str, style: str = "-"
) -> None:
    """A line with its intervals as a band."""
    x = np.array(x, float)
    low, high = np.array([value["interval"] for value in values], float).reshape(-1, 2).T
    axes.plot(x, np.array([v["estimate"] for v in values], float), style, color=colour, label=label, marker="o", ms=4)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def shifts(rows: Sequence[dict[str, Any]], alpha: float) -> Figure:
    """How the uncentred log-score of right and of wrong predictions moves with a shift, by p: for cross-entropy and for one α.

    Args:
      rows: of `repair.shifts`; alpha: the smoothing of the right panel.
    """
    figure, panels = _axes(2, 10, 3.8)
    by_alpha = {row["alpha"]: row for row in rows}
    for axes, a in zip(panels, (0.0, alpha), strict=True):
        name = "cross-entropy" if a == 0 else f"label smoothing α = {a:g}"
        if a in by_alpha:
            told = by_alpha[a]["norms"]
            for kind, colour in (("right", BLUE), ("wrong", RED)):
                values = [of[kind] for of in told]
                _with_interval(axes, [of["p"] for of in told], values, colour, f"{kind} predictions")
            shift = by_alpha[a]["mean_logit"]["all"]["estimate"]
            name += f": mean logit {shift:.2f}, {100 * by_alpha[a]['share_undefined']['estimate']:.2g} % left out"
        axes.axhline(0, color=GREY, lw=0.8)
        axes.set(xlabel="p", ylabel="d ln score / d shift")
        axes.set_title(name, fontsize=10.5, loc="left")
    panels[0].legend(*panels[1].get_legend_handles_labels())
    return figure


def learning_curve(rows: Sequence[dict[str, Any]]) -> Figure:
    """Test AURC that choosing p on few calibration examples costs, by α: without the fallback to MSP and with it.

    Args:
      rows: of `repair.learning_curve`.
    """
    figure, panels = _axes(2, 10, 3.8)
    alphas = sorted({row["alpha"] for row in rows})
    shades = mpl.colormaps["plasma"](np.linspace(0.0, 0.8, len(alphas)))
    for axes, fallback in zip(panels, (False, True), strict=True):
        for alpha, shade in zip(alphas, shades, strict=True):
            line = [row for row in rows if row["alpha"] == alpha and row["fallback"] is fallback]
            percent = [
                {k: 100 * np.array(row["regret"]["aurc"][k], float) for k in ("estimate", "interval")} for row in line
            ]
            _with_interval(axes, [row["size"] for row in line], percent, shade, f"α = {alpha:g}")
        axes.set(xscale="log", xlabel="calibration examples", ylabel="excess AURC over the best candidate (× 100)")
        axes.set_title("p-norm or MSP" if fallback else "p-norm", fontsize=10.5, loc="left")
    if rows:
        panels[1].legend()
    return figure


_METRICS_OF_MEMBERS = {
    "nll": ("NLL (nats)", 1),
    "brier": ("Brier score", 1),
    "error": ("error (%)", 100),
    "aurc": ("AURC (× 100)", 100),
    "naurc": ("NAURC (0 perfect, 1 random)", 1),
    "failure_auroc": ("failure AUROC (%)", 100),
    "coverage_at_risk_0.01": ("coverage at 1 % risk (%)", 100),
    "coverage_at_risk_0.02": ("coverage at 2 % risk (%)", 100),
    "coverage_at_risk_0.05": ("coverage at 5 % risk (%)", 100),
}


def members(rows: Sequence[dict[str, Any]]) -> Figure:
    """Metrics against the number of members, a panel per metric and a line per name; the titles say what the bands cover.

    Args:
      rows: of `ensemble.SubsetCurve.rows`, of one curve or several.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    columns = min(3, max(1, len(metrics)))
    lines = max(1, -(-len(metrics) // columns))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4 * columns, 3.5 * lines + 0.4), layout="constrained")
        panels = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    shades = mpl.colormaps["plasma"](np.linspace(0.0, 0.8, len(names)))
    for axes in panels[len(metrics) :]:
        axes.set_axis_off()
    for axes, metric in zip(panels, metrics, strict=False):
        label, factor = _METRICS_OF_MEMBERS[metric]
        covers = set()
        for name, shade in zip(names, shades, strict=True):
            line = sorted((r for r in rows if (r["metric"], r["name"]) == (metric, name)), key=lambda r: r["members"])
            told = [
                {"estimate": factor * np.array(r["mean"], float), "interval": factor * np.array(r["interval"], float)}
                for r in line
            ]
            _with_interval(axes, [r["members"] for r in line], told, shade, _plain(name))
            covers |= {r["interval_covers"] for r in line if np.isfinite(np.array(r["interval"], float)).all()}
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="members", ylabel=label)
        axes.set_title(f"bands: {'; '.join(sorted(covers))}" if covers else "", fontsize=9, loc="left")
    if rows:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(names)))
    return figure


_WAYS = {
    ("single_members", "msp"): (RED, "--", "single members, MSP"),
    ("single_members", "max_logit_pnorm"): (GREEN, "--", "single members, p-norm"),
    ("mean_probabilities", "msp"): (RED, "-", "MSP of mean probabilities"),
    ("mean_logits", "msp"): (RED, ":", "MSP of mean logits"),
    ("mean_logits", "max_logit_pnorm"): (GREEN, "-", "p-norm of mean logits"),
    ("mean_normalised", "max_logit_pnorm"): (BLUE, "-", "mean of p-normed logits"),
    ("mean_probabilities", "max_logit_pnorm"): (GREY, "-", "p-norm of log mean probabilities"),
}


def ensembles(rows: Sequence[dict[str, Any]], subsets: Sequence[dict[str, Any]]) -> Figure:
    """NAURC of deep ensembles and of their members by α, and against the number of members.

    Args:
      rows: of `repair.ensembles`; subsets: of `repair.subsets`; their bands are quartiles over subsets.
    """
    figure, (left, right) = _axes(2, 13, 4.4)
    apart = 0.012 * max((row["alpha"] for row in rows), default=1)  # so that intervals at one α do not cover each other
    for place, (way, (colour, style, label)) in enumerate(_WAYS.items()):
        line = sorted((r for r in rows if (r["average"], r["score"]) == way), key=lambda r: r["alpha"])
        told = [row["metrics"]["naurc"] for row in line]
        x = np.array([row["alpha"] for row in line]) + apart * (place - len(_WAYS) // 2)
        ends = [value.get("interval_p_chosen_anew", value["interval"]) for value in told]
        low, high = np.array(ends, float).reshape(-1, 2).T
        y = np.array([value["estimate"] for value in told], float)
        left.plot(x, y, style, color=colour, label=label, marker="o", ms=4, lw=1.4)
        left.errorbar(x, (low + high) / 2, yerr=(high - low) / 2, color=colour, fmt="none", capsize=2, lw=1.2)
    left.set(xlabel="label smoothing α", ylabel="NAURC (0 perfect, 1 random)", ylim=(0, None))
    left.set_title("Ensembles of all seeds, intervals over test examples", fontsize=10.5, loc="left")
    left.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)

    alphas = sorted({row["alpha"] for row in subsets})
    shades = mpl.colormaps["plasma"](np.linspace(0.0, 0.8, len(alphas)))
    for alpha, shade in zip(alphas, shades, strict=True):
        for score, style in (("msp", "-"), ("max_logit_pnorm", "--")):
            line = [row for row in subsets if (row["alpha"], row["score"]) == (alpha, score)]
            told = [row["metrics"]["naurc"] for row in line]
            values = [{"estimate": value["mean"], "interval": value["quartiles"]} for value in told]
            label = f"α = {alpha:g}, {SCORE_NAMES[score]}"
            _with_interval(right, [row["members"] for row in line], values, shade, label, style)
    right.set_xticks(sorted({row["members"] for row in subsets}))
    right.set(xlabel="members", ylabel="NAURC (0 perfect, 1 random)", ylim=(0, None))
    right.set_title("Over subsets of the seeds", fontsize=10.5, loc="left")
    if subsets:
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
    return figure


_POLICIES = {
    "single": (GREY, "o", "first network alone"),
    "ensemble": (BLUE, "s", "ensemble"),
    "single_threshold": (RED, "v", "single threshold"),
    "window": (GREEN, "D", "window"),
    "oracle": ("black", "*", "oracle: labels seen"),
}


def cascade_trade_off(document: dict[str, Any]) -> Figure:
    """Coverage at the risk, and risk at the coverage, against cost: fitted policies with intervals, and every width of either kind.

    Args:
      document: of `cascade_study.evaluate`.
    """
    figure, panels = _axes(2, 11, 4.4)
    settings, unit = document["settings"], document.get("unit", "cost")
    first = document["cost"][0]
    risk = settings["task"]["target"] if settings["task"]["kind"] == "risk" else 0.05
    for axes, metric, label in zip(
        panels,
        ("coverage_at_risk", "risk_at_coverage"),
        (f"coverage at {100 * risk:g} % risk (%)", f"risk at {100 * settings['coverage']:g} % coverage (%)"),
        strict=True,
    ):
        for kind in ("single_threshold", "window"):
            line = [row for row in document["sweep"] if row["kind"] == kind]
            colour = _POLICIES[kind][0]
            x = [row["cost_multiple"] * first for row in line]
            axes.plot(x, [100 * row[metric] for row in line], color=colour, lw=1.4, alpha=0.7)
        for row in document["policies"]:
            colour, marker, name = _POLICIES[row["policy"]]
            value, cost = row["metrics"][metric], row["metrics"]["cost"]["estimate"]
            low, high = value["interval"]
            centre = 100 * value["estimate"]
            ends = [[centre - 100 * low], [100 * high - centre]]
            axes.errorbar(cost, centre, yerr=np.maximum(ends, 0), color=colour, fmt=marker, ms=7, capsize=3, label=name)
        axes.set(xscale="log", xlabel=f"mean cost per example ({unit}, log scale)", ylabel=label)
        ticks = [first * m for m in (1, 1.2, 1.5, 2) if m <= sum(document["cost"]) / first]
        axes.set_xticks(ticks, [f"{tick / first:g}×" for tick in ticks])
        axes.set_xticks([], minor=True)
    panels[0].set_title("The more the better; lines: windows of every width", fontsize=10.5, loc="left")
    panels[1].set_title("The less the better", fontsize=10.5, loc="left")
    panels[1].legend(loc="upper right", fontsize=8.5)
    return figure


_CHANGES = (
    ("rejected_wrong", GREEN, "accepted and wrong → rejected"),
    ("accepted_right", GREEN, "rejected → accepted and right"),
    ("corrected", GREEN, "accepted, wrong → right"),
    ("rejected_right", RED, "accepted and right → rejected"),
    ("accepted_wrong", RED, "rejected → accepted and wrong"),
    ("spoilt", RED, "accepted, right → wrong"),
)


def cascade_changes(document: dict[str, Any]) -> Figure:
    """What passing examples on changed: shares of all examples by what became of the decision; and the share that is passed on by width.

    Args:
      document: of `cascade_study.evaluate`.
    """
    figure, (left, right) = _axes(2, 11, 3.6)
    changes = document["changes"]
    places = np.arange(len(_CHANGES))[::-1]
    left.barh(places, [100 * changes[name] for name, *_ in _CHANGES], color=[colour for _, colour, _ in _CHANGES])
    left.set_yticks(places, [label for *_, label in _CHANGES])
    left.set(xlabel="% of the test examples", ylabel="what became of the decision")
    left.grid(axis="y", visible=False)
    passed, unchanged = 100 * changes["passed_on"], 100 * changes["unchanged"]
    left.set_title(f"{passed:.1f} % passed on; of {unchanged:.1f} % nothing changed", fontsize=10.5, loc="left")
    for kind in ("single_threshold", "window"):
        line = [row for row in document["sweep"] if row["kind"] == kind]
        colour, _, name = _POLICIES[kind]
        right.plot(
            [200 * row["half_width"] for row in line],
            [100 * row["passed_on"] for row in line],
            color=colour,
            label=name,
        )
    right.plot([0, 100], [0, 100], color=GREY, lw=0.8, ls=":")
    right.set(xlabel="width (% of the calibration split)", ylabel="passed on (% of the test examples)")
    right.set_title("What the second stage is asked", fontsize=10.5, loc="left")
    right.legend(loc="upper left")
    return figure


def cascade_search(document: dict[str, Any]) -> Figure:
    """The best policy within each budget: on the half that was searched, on the other half, and on the test split.

    Args:
      document: of `cascade_study.evaluate`.
    """
    figure, (left, right) = _axes(2, 11, 3.6)
    rows = document["search"]
    budget = [row["budget"] for row in rows]
    for split, colour, name in (
        ("search", GREY, "the half that was searched"),
        ("certify", BLUE, "the other half"),
        ("test", GREEN, "test split"),
    ):
        for axes, what in ((left, "coverage"), (right, "risk")):
            percent = [math.nan if row[f"{split}_{what}"] is None else 100 * row[f"{split}_{what}"] for row in rows]
            axes.plot(budget, percent, color=colour, marker="o", ms=4, label=name)
    for axes, what in ((left, "coverage"), (right, "risk")):
        low, high = (100 * np.array([row[f"test_{what}_band"] for row in rows], float)).T
        axes.fill_between(budget, low, high, color=GREEN, alpha=0.15, lw=0)
    if document["settings"]["task"]["kind"] == "risk":
        right.axhline(100 * document["settings"]["task"]["target"], color="black", lw=0.8, ls=":")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="budget (multiple of the first network, log scale)")
        axes.set_xticks(budget, [f"{multiple:.3g}" for multiple in budget])
        axes.set_xticks([], minor=True)
    left.set(ylabel="coverage (%)")
    right.set(ylabel="selective risk (%)", ylim=(0, None))
    left.set_title("The best of many policies", fontsize=10.5, loc="left")
    right.set_title("looks better where it was chosen", fontsize=10.5, loc="left")
    right.legend(loc="lower right")
    return figure


def promises(rows: Sequence[dict[str, Any]], target: float, oracle: float) -> Figure:
    """What methods chose over many calibration sets: the population's risk, and the coverage, of each.

    Lines hold 90 % of the sets, bars half of them, dots are medians, of those sets in which something is accepted; in words, how often the risk is above the
    target.

    Args:
      rows: with "name", "risk" and "coverage" [draws] (a risk of NaN where nothing is accepted) and "broken", drawn in red.
      target: r; oracle: the largest coverage at which the population's risk is r.
    """
    figure, (left, right) = _axes(2, 11, 0.9 + 0.42 * len(rows))
    for place, row in zip(range(len(rows))[::-1], rows, strict=True):
        colour = RED if row["broken"] else BLUE
        risk, coverage = (np.asarray(row[name], float) for name in ("risk", "coverage"))
        above, kept = np.mean(risk > target), ~np.isnan(risk)
        for axes, values in ((left, risk), (right, coverage)):
            if not kept.any():
                continue
            ends = 100 * np.quantile(values[kept], [0.05, 0.25, 0.5, 0.75, 0.95])
            axes.plot(ends[[0, 4]], [place] * 2, color=colour, lw=1.2)
            axes.plot(ends[[1, 3]], [place] * 2, color=colour, lw=5, alpha=0.6, solid_capstyle="butt")
            axes.plot(ends[2], place, "o", color=colour, ms=4.5)
        told = f"{100 * above:.1f} % above" + (
            f", {100 * np.mean(~kept):.0f} % accept nothing" if not kept.all() else ""
        )
        left.annotate(told, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5, color=colour)
    left.axvline(100 * target, color="black", lw=1, ls="--")
    right.axvline(100 * oracle, color="black", lw=1, ls="--")
    left.set_yticks(range(len(rows))[::-1], [row["name"] for row in rows])
    right.set_yticks(range(len(rows))[::-1], [""] * len(rows))
    for axes in (left, right):
        axes.set_ylim(-0.6, len(rows) - 0.4)
    left.set(xlabel="risk of the population (%); dashed: the target", ylabel="method", xlim=(0, None))
    right.set(xlabel="coverage (%); dashed: the oracle's", ylabel="method, as on the left", xlim=(0, 100))
    return figure


def conditional_coverage(coverage: np.ndarray, alpha: float, quantile: int, n: int) -> Figure:
    """Coverage of conformal sets over calibration sets, each the share of the population, beside its law.

    For continuous scores it is Beta(k, n + 1 − k) with mean k/(n + 1), k = ⌈(n + 1)(1 − α)⌉ the order of the quantile.

    Args:
      coverage: [draws]; alpha: α; quantile: k; n: calibration examples.
    """
    figure, (axes,) = _axes(1, 7, 3.4)
    axes.hist(100 * coverage, bins=40, density=True, color=BLUE, alpha=0.5, label="drawn")
    x = np.linspace(coverage.min(), coverage.max(), 300)
    a, b = quantile, n + 1 - quantile
    constant = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    density = np.exp(constant + (a - 1) * np.log(x) + (b - 1) * np.log1p(-x))
    axes.plot(100 * x, density / 100, color="black", lw=1.4, label=f"Beta({a}, {b})")
    axes.axvline(100 * coverage.mean(), color=BLUE, lw=3, alpha=0.7, label="mean of the draws")
    axes.axvline(100 * (1 - alpha), color=RED, ls="--", lw=1.2, label="1 − α")
    axes.set(xlabel="coverage of the population (%)", ylabel="density")
    axes.legend(fontsize=9)
    return figure


def monitored(streams: Sequence[dict[str, Any]], risk: float) -> Figure:
    """Watches over streams of losses: mean so far, its confidence sequence, and the alarm.

    Args:
      streams: with "title", "n", "mean", "low" and "high" [t], "changed_at" (None if nothing changes) and "alarm_at" (0 for none).
      risk: what was promised.
    """
    figure, panels = _axes(len(streams), 4.2 * len(streams), 3.4)
    for axes, stream in zip(panels, streams, strict=True):
        mean, low, high = (100 * np.asarray(stream[name], float) for name in ("mean", "low", "high"))
        axes.plot(stream["n"], mean, color=BLUE, lw=1.4)
        axes.fill_between(stream["n"], low, high, color=BLUE, alpha=0.2, lw=0)
        axes.axhline(100 * risk, color="black", lw=1, ls="--")
        if stream["changed_at"] is not None:
            axes.axvline(stream["changed_at"], color=GREY, lw=1, ls=":")
            at = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "color": GREY, "va": "top"}
            axes.annotate("changes", (stream["changed_at"], 0.97), (3, 0), **at)
        if stream["alarm_at"]:
            axes.axvline(stream["alarm_at"], color=RED, lw=1.4)
        told = f"alarm after {stream['alarm_at']:,}" if stream["alarm_at"] else "no alarm"
        axes.set_title(f"{stream['title']}: {told}", fontsize=10.5, loc="left")
        axes.set(xlabel="accepted examples with a label", ylabel="risk so far (%)", ylim=(0, 300 * risk))
    return figure


def scod_plane(
    log_doubt: np.ndarray,
    log_ratio: np.ndarray,
    kind: np.ndarray,
    rules: Sequence[tuple[str, Callable[[np.ndarray, np.ndarray], np.ndarray], float]],
) -> Figure:
    """Examples by estimated doubt and outlier ratio, and the lines above and to the right of which rules stop accepting.

    Args:
      log_doubt, log_ratio: [n], finite, of examples, natural logs; kind: [n], 0 right, 1 wrong, 2 outlier.
      rules: name, (log doubt, log ratio) → score of any shape, threshold: accepted where the score is at least this.
    """
    figure, (axes,) = _axes(1, 9, 4.8)
    for value, colour, label in ((0, GREY, "right"), (2, RED, "outlier"), (1, BLUE, "wrong")):
        mine = kind == value
        axes.plot(log_doubt[mine], log_ratio[mine], ".", color=colour, ms=3.5, alpha=0.5, label=label, rasterized=True)
    grid = np.meshgrid(*(np.linspace(values.min(), values.max(), 300) for values in (log_doubt, log_ratio)))
    handles, labels = axes.get_legend_handles_labels()
    for (name, score, threshold), style in zip(rules, ("-", "--", ":", "-."), strict=False):
        axes.contour(*grid, score(*grid), levels=[threshold], colors="black", linestyles=style, linewidths=1.6)
        handles.append(Line2D([], [], color="black", ls=style, lw=1.6))
        labels.append(name)
    axes.set(xlabel="ln doubt, 1 − P(right | x)", ylabel="ln outlier ratio, P_out(x)/P_in(x)")
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, markerscale=2.5)
    return figure


def cascade_shift(document: dict[str, Any]) -> Figure:
    """Cost, what the frozen threshold accepts, and the risk of that, on each shifted set.

    Args:
      document: of `cascade_study.evaluate`.
    """
    sets = list(dict.fromkeys(row["set"] for row in document["shifts"]))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(max(7.0, 3.5 + 0.45 * len(sets)), 7.5), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
    policies = {**_POLICIES, "window, moved": ("#8a5a9e", "^", "window, moved to these examples")}
    panels_show = (
        ("cost_multiple", 1, "cost (multiple of the first)", ("single_threshold", "window", "window, moved")),
        ("decided_coverage", 100, "accepted (%)", ("single", "ensemble", "window", "window, moved")),
        ("decided_risk", 100, "risk of the accepted (%)", ("single", "ensemble", "window", "window, moved")),
    )
    for axes, (metric, factor, label, shown) in zip(panels, panels_show, strict=True):
        for i, name in enumerate(shown):
            colour, marker, words = policies[name]
            told = [row["metrics"][metric] for row in document["shifts"] if row["policy"] == name]
            centre = factor * np.array([value["estimate"] for value in told])
            low, high = factor * np.array([value["interval"] for value in told], float).T
            ends = np.maximum([centre - low, high - centre], 0)
            x = np.arange(len(sets)) + 0.18 * (i - (len(shown) - 1) / 2)
            axes.errorbar(x, centre, yerr=ends, color=colour, fmt=marker, ms=5, capsize=2, lw=1, label=words)
        axes.set(xlabel="set of examples", ylabel=label)
    for axes in panels[:2]:
        axes.xaxis.label.set_visible(False)  # the lowest panel's stands for all
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
    if document["settings"]["task"]["kind"] == "risk":
        panels[2].axhline(100 * document["settings"]["task"]["target"], color="black", lw=0.8, ls=":")
    panels[2].set_xticks(range(len(sets)), sets, rotation=60, ha="right", rotation_mode="anchor", fontsize=8.5)
    panels[0].set_title("Windows and τ were frozen before, but for the moved window's place", fontsize=10.5, loc="left")
    return figure
