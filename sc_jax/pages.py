"""The pages of a report: `metrics.json` as HTML, Markdown and CSV. What is claimed in words follows from the numbers."""

from __future__ import annotations

import csv
import html
import io
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sc_jax import figures, files
from sc_jax.figures import SCORE_NAMES, treatment_name
from sc_jax.methods import logit_statistics
from sc_jax.tables import (
    FACTOR,
    FILES_TABLES,
    HEADING,
    SELECTOR_NOTE,
    TABLE,
    Table,
    cell,
    heading,
    number,
    number_with_interval,
    selector_table,
    with_interval,
    with_unit,
)
from sc_jax.training.logs import read_header, read_log

_GROUP_COLUMNS = (
    ("n", "n", 0),
    ("error", "error", 100),
    ("aurc", "AURC", 100),
    ("failure_auroc", "AUROC_f", 1),
    ("risk_at_coverage", "Risk@90% of the group", 100),
    ("coverage", "coverage", 100),
    ("selective_risk", "selective risk", 100),
    ("reference_risk", "the same, blind to groups", 100),
)

MOST_CURVES = 6
"""Curves drawn of one file: of MSP, and of the scores with the smallest AURC; of several files, at most twice as many in all."""

STUDY_PICTURES = ("finding.png",)
FILES_PICTURES = ("risk_coverage.png", "reliability.png")
GRID_PICTURES = ("risk_coverage.png",)
"""The pictures beside the pages of a study, and beside those of any files."""

REASON_PICTURES = {"suppression": "suppression.png", "max_logit_gap": "max_logit_gap.png"}
"""The further ones of a study of smoothing whose members have logits, each where that part of its document is not empty."""

PIXEL_PICTURES = ("pixels.png", "pixels_risk_coverage.png", "images_risk_coverage.png")
"""The further ones of a study of segmentation."""

REPAIR_PICTURES = ("norms.png", "shifts.png", "learning_curve.png", "ensembles.png")
"""The further ones of a study with `evaluation.repair`."""

OBJECTIVE_PICTURES = ("objectives.png",)
"""The further one of a study of more objectives than label smoothing."""

TRAINING_PICTURES = ("logit_statistics.png", "logits_by_confidence.png", "training_ranking.png")
"""The further ones of a study that watched its logits while it trained."""

# --- a study of label smoothing ---------------------------------------------------------------------------------------


def _cell_of(document: dict[str, Any], part: str, **wanted: Any) -> dict[str, Any] | None:
    """The row of "aggregates" or "curves" that has these fields, of smoothing or of other objectives."""
    rows = [*document[part], *document.get("objectives", {}).get(part, [])]
    return next((row for row in rows if wanted.items() <= row.items()), None)


def _primary_sides(primary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the primary contrasts compare, each once, the first control ahead."""
    sides = [row[side] for row in primary for side in ("control", "treatment")]
    return [side for i, side in enumerate(sides) if side not in sides[:i]]


def claim(document: dict[str, Any]) -> str:
    """The finding of a study in one sentence, by the verdicts on its primary contrasts."""
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    alpha = _main_alpha(document)
    of = "" if _of_objectives(primary) else f" (α = {alpha:g})"
    confirmed = {(row["metric"], row["treatment"]["score"]) for row in primary if row["verdict"] == "confirmed"}
    if any(row["verdict"] != "confirmed" for row in primary):
        parts = "; ".join(f"{row['claim']}: {row['verdict']}" for row in primary)
        return f"Not all of the claim is confirmed here{of}: {parts}."
    if of == "":
        return f"Confirmed here: {'; '.join(row['claim'] for row in primary)}."
    if not confirmed >= {("error", "msp"), ("naurc", "msp"), ("naurc", "max_logit_pnorm")}:
        return f"Confirmed here (α = {alpha:g}): {'; '.join(row['claim'] for row in primary)}."
    left = _remaining(document, alpha)
    known = left is not None and left["includes_0"] is not None
    rest = (
        f"; of NAURC against cross-entropy {number_with_interval(left['estimate'], left['interval'], signed=True)} is left"
        if known
        else ""
    )
    return (
        f"Confirmed here: label smoothing (α = {alpha:g}) costs no accuracy (margin {100 * _margin(primary):g} points) and worsens the ranking of "
        f"errors; logit normalisation improves it again{rest}."
    )


def _margin(primary: Sequence[dict[str, Any]]) -> float:
    return max(row["margin"] for row in primary if row["metric"] == "error")


def _main_alpha(document: dict[str, Any]) -> float:
    """The α that a study is about: that of its first primary contrast which has one, else its largest."""
    sides = [
        row[side] for row in document["contrasts"] if row["kind"] == "primary" for side in ("treatment", "control")
    ]
    chosen = [side["alpha"] for side in sides if side.get("alpha")]
    return chosen[0] if chosen else max(row["alpha"] for row in document["aggregates"])


def _of_objectives(primary: Sequence[dict[str, Any]]) -> bool:
    return any("objective" in row[side] for row in primary for side in ("treatment", "control"))


def _remaining(document: dict[str, Any], alpha: float) -> dict[str, Any] | None:
    """The exploratory contrast of smoothing with p-norm against cross-entropy with MSP, in NAURC."""
    wanted = ("naurc", (alpha, "max_logit_pnorm"), (0.0, "msp"))
    return next((row for row in document["contrasts"] if _is(row, *wanted)), None)


def _without_smoothing(document: dict[str, Any]) -> str:
    """What p-norm does where there is no smoothing to repair, and what the fallback makes of it."""
    wanted = ("naurc", (0.0, "max_logit_pnorm"), (0.0, "msp"))
    row = next((row for row in document["contrasts"] if _is(row, *wanted)), None)
    if row is None or row["includes_0"] is None:
        return ""
    change = (
        "changes NAURC by" if row["includes_0"] else "worsens NAURC by" if row["estimate"] > 0 else "improves NAURC by"
    )
    text = f"Without smoothing, p-norm {change} {number_with_interval(row['estimate'], row['interval'], signed=True)} (exploratory)"
    fallback = next(
        (r for r in document["aggregates"] if (r["alpha"], r["score"]) == (0.0, "max_logit_pnorm_or_msp")), None
    )
    if fallback is None:
        return text + "."
    kept = sum(chosen == "msp" for chosen in fallback["fitted"])
    return f"{text}; with the fallback, {kept} of {fallback['seeds']} seeds keep MSP there."


def _level(document: dict[str, Any]) -> str:
    return f"{100 * document['level']:g} %"


def _contrast_name(row: dict[str, Any]) -> str:
    (a, s), (b, t) = (
        (treatment_name(side), SCORE_NAMES.get(side["score"], side["score"]))
        for side in (row["treatment"], row["control"])
    )
    if a == b:
        return f"{a}: {s} − {t}"
    return f"{a} − {b}: {s}" if s == t else f"{a} {s} − {b} {t}"


def contrast_table(rows: Sequence[dict[str, Any]], primary: bool) -> Table:
    """Contrasts with intervals and p; primary ones with claim and verdict too."""
    headings = [
        "contrast",
        "metric",
        "difference [interval]",
        "t [interval]",
        "p" + (" (Holm)" if primary else ""),
        "intervals cover",
    ]
    lines = []
    for row in rows:
        factor = FACTOR[row["metric"]]
        unit = " ×100" if factor == 100 else ""
        line = [
            _contrast_name(row),
            HEADING[row["metric"]] + unit,
            number_with_interval(row["estimate"], row["interval"], factor, signed=True)
            + {True: " (includes 0)", False: "", None: " (undefined)"}[row["includes_0"]],
            "[" + ", ".join(number(end, factor, signed=True) for end in row["t_interval"]) + "]",
            f"{row['p_holm' if primary else 'p']:.3f}",
            row["intervals_cover"],
        ]
        lines.append([row["claim"], row["verdict"], *line] if primary else line)
    return Table(["claim", "verdict", *headings] if primary else headings, lines)


def _aggregate_table(aggregates: Sequence[dict[str, Any]]) -> Table:
    lines = []
    for row in aggregates:
        cells = [
            with_interval(name, row["metrics"][name]) + (" †" if row["metrics"][name].get("unstable") else "")
            if name in row["metrics"]
            else ""
            for name, _, _ in TABLE
        ]
        chosen = "" if row["fitted"] is None else ", ".join(str(p) for p in row["fitted"])
        treatment = treatment_name(row) if "objective" in row else f"{row['alpha']:g}"
        lines.append([treatment, SCORE_NAMES.get(row["score"], row["score"]), *cells, chosen])
    headings = [heading(name) for name, _, _ in TABLE]
    first = "trained with" if any("objective" in row for row in aggregates) else "α"
    return Table([first, "score", *headings, "fitted (one per seed): p, MSP or T"], lines)


def _gap_table(document: dict[str, Any]) -> Table:
    lines = []
    for row in document["max_logit_gap"]:
        minus = row.get("centred_minus_alpha_0")
        lines.append(
            [
                f"{row['alpha']:g}",
                number_with_interval(row["centred"]["estimate"], row["centred"]["interval"], signed=True),
                number_with_interval(row["raw"]["estimate"], row["raw"]["interval"], signed=True),
                "" if minus is None else number_with_interval(minus["estimate"], minus["interval"], signed=True),
            ]
        )
    return Table(
        ["α", "centred max logit [interval]", "max logit as it is [interval]", "centred, minus α = 0 [interval]"], lines
    )


def _settings_table(workdir: Path, document: dict[str, Any]) -> Table:
    rows = []

    def flatten(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                flatten(item, f"{name}.{key}" if name else key)
        elif name != "primary":
            rows.append([name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)])

    path = workdir / "config.json"
    if path.exists():
        flatten(files.read_json(path), "")
    sidecar = Path(document["runs"][0]["predictions"]).with_suffix(".json")
    if sidecar.exists():
        for name, version in files.read_json(sidecar).get("versions", {}).items():
            rows.append([f"version of {name}", version])
    rows.append(["report made with", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"])
    return Table(["setting", "value"], rows)


_NO_GAP = (
    "Of two classes the gap at equal MSP is not defined: the log-odds of MSP are twice the centred max logit, so that right and wrong "
    "predictions of equal MSP have the same."
)


def of_study(workdir: Path, document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The pages of a study of label smoothing.

    Returns:
      Pictures by file name, the body of the HTML page, and the Markdown.
    """
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    exploratory = [row for row in document["contrasts"] if row["kind"] == "exploratory"]
    alpha = _main_alpha(document)
    if alpha:
        finding, shown_there = figures.finding(document["curves"], document["aggregates"], alpha), ", and NAURC by α"
        cells = [
            ("cross-entropy, MSP", _cell_of(document, "aggregates", alpha=0.0, score="msp")),
            (f"smoothing α = {alpha:g}, MSP", _cell_of(document, "aggregates", alpha=alpha, score="msp")),
            (
                f"smoothing α = {alpha:g}, p-norm",
                _cell_of(document, "aggregates", alpha=alpha, score="max_logit_pnorm"),
            ),
        ]
    else:
        sides = _primary_sides(primary)
        curves = [{**_cell_of(document, "curves", **side), "predictions": treatment_name(side)} for side in sides]
        finding, shown_there = figures.risk_coverage(curves), " of what the primary contrasts compare"
        cells = [
            (
                f"{treatment_name(side)}, {SCORE_NAMES.get(side['score'], side['score'])}",
                _cell_of(document, "aggregates", **side),
            )
            for side in sides
        ]
    pictures = {"finding.png": finding}
    if document["suppression"]:
        pictures["suppression.png"] = figures.suppression(document["suppression"])
    if document["max_logit_gap"]:
        pictures["max_logit_gap.png"] = figures.max_logit_gap(document["max_logit_gap"], alpha)
    seeds = document["aggregates"][0]["seeds"]
    n = document["runs"][0]["n"]
    sentence = claim(document)
    shown = (("aurc", 100), ("naurc", 1), ("error", 100))
    tiles = [
        (label, [number(row["metrics"][metric]["estimate"], factor) for metric, factor in shown])
        for label, row in cells
        if row is not None
    ]
    how = (
        f"Mean of {seeds} seeds on {n:,} test examples, one training set. Brackets: {_level(document)} intervals from a crossed bootstrap over "
        "seeds and test examples; for the scores p-norm and p-norm or MSP the validation examples are resampled too and p is chosen anew in each "
        "resample; what other scores are fitted to is held fixed."
    )
    rule = (
        f"The {len(primary)} primary contrasts, their direction and the margin are fixed in the config. Confirmed: p < {1 - document['level']:.2g} after "
        "Holm's correction over them, and the interval on the side of the claim. p comes from inverting the bootstrap interval "
        "(two-sided; one-sided for the margin), so it cannot fall below 2/(resamples + 1), or 1/(resamples + 1) for the margin. The t interval adds the variance between "
        "seeds, with the degrees of freedom of the seeds, to that of the examples: look at it where seeds dominate."
    )
    table_note = (
        "Coverage at risk is the best threshold of the test split itself: a description, not a promise. † A few errors among the most "
        "confident decide whether the target is met at all (for some seed more than 1 % of the resamples fall below 5 % coverage): "
        "the interval does not keep its level there."
    )
    gap_text = (
        "What bites on held-out data: at equal MSP, the max logit of right minus wrong test predictions, in standard deviations of "
        "the max logit at equal MSP. Negative: right predictions have the lower max logit, as the suppression predicts; dividing by "
        "the norm of the logits turns that order round. Each of 20 bins of MSP has a line of its own, so the two groups are compared "
        "at the same MSP also within a bin. Centred: minus the mean logit, which no shift of the logits can move; the shift is a "
        "leftover of the initialisation, and the gap of the max logit as it is contains it."
    )
    identity_text = (
        "Smoothing adds α(1 − 1/K) to the gradient on the max logit where a prediction is right and −α/K where it is wrong; its "
        "mean is α(1 − error − 1/K). That is an identity, not an observation: the dots are autodiff on test logits in tenths of MSP, "
        "the lines the closed form (largest difference per example "
        f"{max((row['largest_difference_per_example'] for row in document['suppression']), default=0):.0e}). Suppression is strong where errors "
        "are rare and weakens as they become likely."
    )
    caution = _without_smoothing(document)
    left = _remaining(document, alpha)
    rest = (
        ""
        if left is None
        else "After the repair NAURC differs from cross-entropy with MSP by "
        + number_with_interval(left["estimate"], left["interval"], signed=True)
        + (" (the interval includes 0)." if left["includes_0"] else ".")
    )

    reason, reason_text = [], []
    if document["suppression"]:
        next_is = "The evidence that it bites is the next figure." if document["max_logit_gap"] else _NO_GAP
        identity_text = f"{identity_text} {next_is}"
        reason = [
            "<h2>The reason</h2>",
            f'<div class="pair"><div>{figures.to_svg(pictures["suppression.png"])}</div><p>{html.escape(identity_text)}</p></div>',
        ]
        reason_text = [
            "## The reason",
            identity_text,
            "![The extra gradient on the max logit against the error rate](figures/suppression.png)",
        ]
    if document["max_logit_gap"]:
        reason += [
            f"<p>{html.escape(gap_text)}</p>",
            figures.to_svg(pictures["max_logit_gap.png"]),
            _gap_table(document).html(),
        ]
        reason_text += [
            gap_text,
            "![Max logit of right and wrong predictions at equal MSP](figures/max_logit_gap.png)",
            _gap_table(document).markdown(),
        ]

    body = [
        f"<h1>{html.escape(sentence)}</h1>",
        '<div class="tiles">'
        + "".join(
            f'<div class="tile{f" c{i}" if alpha else ""}"><div class="label">{html.escape(label)}</div><div class="big">{aurc}</div>'
            f'<div class="small">AURC ×100 · NAURC {naurc} · error {error} %</div></div>'
            for i, (label, (aurc, naurc, error)) in enumerate(tiles)
        )
        + "</div>",
        figures.to_svg(pictures["finding.png"]),
        f'<p class="note">{html.escape(how)} {html.escape(caution)} {html.escape(rest)}</p>',
        "<h2>Primary contrasts</h2>",
        contrast_table(primary, True).html(wrap=True),
        f'<p class="note">{html.escape(rule)}</p>',
        "<h2>Every α and score</h2>",
        _aggregate_table(document["aggregates"]).html(),
        f'<p class="note">{html.escape(table_note)}</p>',
        *reason,
        f"<details><summary>{len(exploratory)} exploratory contrasts (not corrected for multiplicity)</summary>",
        contrast_table(exploratory, False).html(),
        "</details>",
        "<details><summary>Settings and versions</summary>" + _settings_table(workdir, document).html() + "</details>",
    ]
    text = [
        f"# {sentence}",
        "\n".join(
            f"- **{label}**: AURC ×100 {aurc}, NAURC {naurc}, error {error} %" for label, (aurc, naurc, error) in tiles
        ),
        f"![Risk-coverage curves{shown_there}](figures/finding.png)",
        " ".join(part for part in (how, caution, rest) if part),
        "## Primary contrasts",
        contrast_table(primary, True).markdown(),
        rule,
        "## Every α and score",
        _aggregate_table(document["aggregates"]).markdown(),
        table_note,
        *reason_text,
        f"## Exploratory contrasts\n\n{len(exploratory)} of them, not corrected for multiplicity.",
        contrast_table(exploratory, False).markdown(),
        "## Settings and versions",
        _settings_table(workdir, document).markdown(),
    ]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"


def of_grid(workdir: Path, document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The pages of a study that contrasts nothing: every α and score with its curve; returns as `of_study`."""
    seeds, n = document["aggregates"][0]["seeds"], document["runs"][0]["n"]
    several = len({row["alpha"] for row in document["curves"]}) > 1
    curves = [{**row, "predictions": f"α = {row['alpha']:g}" if several else ""} for row in document["curves"]]
    pictures = {"risk_coverage.png": figures.risk_coverage(curves)}
    title = f"{len(document['aggregates'])} rows of {seeds} seed{'s' * (seeds > 1)} on {n:,} test examples"
    how = f"Means over the seeds. Brackets: {_level(document)} intervals from a crossed bootstrap over seeds and test examples."
    table, settings = _aggregate_table(document["aggregates"]), _settings_table(workdir, document)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        figures.to_svg(pictures["risk_coverage.png"]),
        f'<p class="note">{html.escape(how)}</p>',
        table.html(),
        f"<details><summary>Settings and versions</summary>{settings.html()}</details>",
    ]
    text = [f"# {title}", "![Risk-coverage curves](figures/risk_coverage.png)", how, table.markdown()]
    text += ["## Settings and versions", settings.markdown()]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"


def of_training(workdir: Path, document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The section of a study that left `logit_statistics.jsonl`; returns as `of_study`."""
    path = workdir / "logit_statistics.jsonl"
    header = read_header(path)
    lines, (trained, held_out) = read_log(path), header["splits"]
    gradient = figures.logit_statistics(lines, header["splits"], header["alphas"])
    rows = {split: logit_statistics.by_alpha(lines[-1][split], header["alphas"]) for split in header["splits"]}
    confidence = figures.logits_by_confidence(rows, header["edges"], header["p"], _main_alpha(document))
    ranking = figures.training_ranking(lines, held_out, header["alphas"])
    note = (
        f"While training: means over the first examples of {trained} and {held_out}, without augmentation or dropout. Trained-on examples are "
        "soon nearly all right, so that smoothing pushes their max logits down alike; on held-out ones the push would be weaker, by α times the "
        f"error rate. Next, step {lines[-1]['step']:,}, the last: means by bin of confidence, all seeds taken together. Below, how the errors of {held_out} are ranked by MSP. "
        "Numbers of every step are in logit_statistics.jsonl."
    )
    drawn = "\n".join(figures.to_svg(picture) for picture in (confidence, ranking))
    body = f"<h2>While training</h2>\n{figures.to_svg(gradient)}\n{_note(note)}\n{drawn}"
    text = f"## While training\n\n![Extra gradient and max logit by epoch](figures/logit_statistics.png)\n\n{note}\n\n"
    text += "![Extra gradient, max logit and norm by confidence](figures/logits_by_confidence.png)\n\n"
    text += "![AURC, coverage at 5 % risk and risk at 80 % coverage by epoch](figures/training_ranking.png)\n"
    return dict(zip(TRAINING_PICTURES, (gradient, confidence, ranking), strict=True)), body, text


AVERAGES = {
    "single_members": "single members, mean",
    "mean_probabilities": "mean probabilities",
    "mean_logits": "mean logits",
    "mean_normalised": "mean of p-normed logits",
}
"""What an ensemble averages, in words."""


def of_repair(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The section of a study with `evaluation.repair`: why and how far logit normalisation repairs; returns as `of_study`."""
    found, alpha = document["repair"], _main_alpha(document)
    parts = (
        (
            "norms.png",
            "Every p, with and without centring",
            figures.norms(found["norms"], alpha),
            "Every p of the grid on the test split. Bands: intervals over test examples and seeds, from 200 resamples. The table names the p that is best on the "
            "test split itself, which is optimistic, and intervals are not corrected for their number: a description.",
            _norm_table(found["norms"]),
        ),
        (
            "shifts.png",
            "A shift of the logits, without centring",
            figures.shifts(found["shifts"], alpha),
            "The softmax does not see a shift c of all logits; the uncentred score does. Means of d ln(score)/dc over right and over wrong test "
            "predictions; with centring it is 0. Where v_max ≤ 0 there is no logarithm: those are left out and counted. The derivative holds 1/v_max: compare right with "
            "wrong within an α, not sizes between them.",
            None,
        ),
        (
            "learning_curve.png",
            "How many calibration examples p needs",
            figures.learning_curve(found["learning_curve"]),
            f"Excess test AURC of the p that {found['learning_curve'][0]['draws'] if found['learning_curve'] else 0} random draws of calibration examples choose, over the best candidate on "
            "the test split. Bands cover seeds and draws of calibration examples; the test split is held fixed.",
            _learning_table([row for row in found["learning_curve"] if not row["fallback"]]),
        ),
        (
            "ensembles.png",
            "Deep ensembles, and p-norm before or after averaging",
            figures.ensembles(found["ensembles"], found["subsets"]),
            "One ensemble of all seeds for each α, so intervals are over test examples alone; where p is tuned, they carry its choice. Averages that "
            "predict differently have errors of their own. Right: subsets of the seeds share members, and their quartiles are not "
            "an interval.",
            _ensemble_table(found["ensembles"]),
        ),
    )
    body, text = (
        ["<h2>Logit normalisation: norms, calibration, ensembles</h2>"],
        ["## Logit normalisation: norms, calibration, ensembles"],
    )
    for name, title, picture, note, table in parts:
        body += [f"<h3>{html.escape(title)}</h3>", figures.to_svg(picture), _note(note)]
        text += [f"### {title}", f"![{title}](figures/{name})", note]
        if table is not None:
            body.append(table.html())
            text.append(table.markdown())
    return {part[0]: part[2] for part in parts}, "\n".join(body), "\n\n".join(text) + "\n"


def _described(told: dict[str, Any] | None, metric: str, signed: bool = False) -> str:
    return "" if told is None else number_with_interval(told["estimate"], told["interval"], FACTOR[metric], signed)


def _norm_table(rows: Sequence[dict[str, Any]]) -> Table:
    """By α and centring, the p of least NAURC on the test split and what it gains over MSP there."""
    lines = []
    for alpha in sorted({row["alpha"] for row in rows}):
        for centred in (True, False):
            of = [row for row in rows if (row["alpha"], row["centred"]) == (alpha, centred)]
            best = min(of, key=lambda row: row["metrics"]["naurc"]["estimate"])
            gains = [row["p"] for row in of if row["minus_msp"]["naurc"]["interval"][1] < 0]
            cells = [
                _described(best["metrics"]["naurc"], "naurc"),
                _described(best["minus_msp"]["naurc"], "naurc", True),
            ]
            lines.append(
                [f"{alpha:g}", "yes" if centred else "no", str(best["p"]), *cells, ", ".join(map(str, gains)) or "none"]
            )
    headings = ["α", "centred", "p of least NAURC on test", "NAURC", "minus MSP", "p whose interval lies below MSP"]
    return Table(headings, lines)


def _learning_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Excess AURC of the chosen p by α and calibration size."""
    sizes, alphas = sorted({row["size"] for row in rows}), sorted({row["alpha"] for row in rows})
    told = {(row["alpha"], row["size"]): row["regret"]["aurc"] for row in rows}
    lines = [[f"{size:,}", *(_described(told[alpha, size], "aurc") for alpha in alphas)] for size in sizes]
    return Table(["calibration examples", *(f"excess AURC %, α = {alpha:g}" for alpha in alphas)], lines)


def _ensemble_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Every α and way of averaging."""
    lines = []
    for row in sorted(rows, key=lambda row: row["alpha"]):
        m, p = row["metrics"], row["p"]
        ends = {name: told.get("interval_p_chosen_anew", told["interval"]) for name, told in m.items()}
        cells = [
            number_with_interval(m[name]["estimate"], ends[name], FACTOR[name])
            for name in ("error", "aurc", "naurc", "failure_auroc")
        ]
        fields = ("minus_alpha_0", "minus_alpha_0_msp", "minus_msp", "minus_after")
        less = [row[name] and row[name]["naurc"] for name in fields]
        chosen = "" if p is None else str(p) if isinstance(p, int) else ", ".join(map(str, p))
        score = SCORE_NAMES[row["score"]]
        lines.append(
            [
                f"{row['alpha']:g}",
                AVERAGES[row["average"]],
                score,
                *cells,
                *(_described(x, "naurc", True) for x in less),
                chosen,
            ]
        )
    headings = [
        "α",
        "average",
        "score",
        "error %",
        "AURC %",
        "NAURC",
        "AUROC_f",
        "NAURC minus α = 0",
        "minus MSP of mean probabilities at α = 0",
        "minus MSP of mean probabilities",
        "before minus after averaging",
        "p",
    ]
    return Table(headings, lines)


def of_objectives(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The section of a study that trained with more than label smoothing; returns as `of_study`."""
    others = document["objectives"]
    picture = figures.objectives([*document["aggregates"], *others["aggregates"]])
    note = (
        "What else the members were trained with, on the same batches from the same initialisation, each at one strength that was not tuned. NAURC as a mean over seeds with intervals over seeds "
        "and test examples; the line is cross-entropy with MSP. p is chosen per member on the validation split."
    )
    count = f"{len(others['contrasts'])} exploratory contrasts (not corrected for multiplicity): of them with every α by MSP, of what the primary contrasts treat with the others, and of scores with MSP"
    table, contrasts = _aggregate_table(others["aggregates"]), contrast_table(others["contrasts"], False)
    body = ["<h2>Other objectives</h2>", figures.to_svg(picture), _note(note), table.html()]
    body += [f"<details><summary>{count}</summary>{contrasts.html()}</details>"]
    text = ["## Other objectives", "![NAURC by objective and score](figures/objectives.png)", note, table.markdown()]
    text += [f"{count}:", contrasts.markdown()]
    return {"objectives.png": picture}, "\n".join(body), "\n\n".join(text) + "\n"


def of_pixels(workdir: Path, document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """What segmentation adds to the pages of a study: all pixels, images, and some of them to look at; returns as `of_study`."""
    first = {row["alpha"]: row for row in reversed(document["pictures"])}  # the first seed of each α
    shown = [first[alpha] for alpha in sorted(first)][:3]
    threshold = shown[0]
    coverage = f"{100 * threshold['coverage']:g} %"
    pictures = {"pixels.png": _pixel_figure(workdir, shown)}
    members = [_member(row) for row in shown]
    for kind, scores in (("pixels", ("msp",)), ("images", ("msp", "mean_max_probability"))):
        curves = [{**row, "predictions": _member(row)} for row in document[kind]["curves"]]
        chosen = [row for row in curves if row["predictions"] in members and row["score"] in scores]
        pictures[f"{kind}_risk_coverage.png"] = figures.risk_coverage(chosen)
    pixels, images = (document[kind]["runs"] for kind in ("pixels", "images"))
    clusters = document["runs"][0]["intervals_cover"]
    notes = {
        "sample": f"The tables above are of a sample of pixels of each image, weighted to stand for all labelled pixels. Pixels of an image are not "
        f"independent: resamples draw images whole ({clusters}), in these tables and wherever they speak of test examples.",
        "pixels.png": f"A pixel is accepted where its MSP reaches the threshold that accepts {coverage} of the pixels of the split "
        f"{threshold['fitted_on']}. Every d-th pixel is drawn and counted. Pixels without a label count nowhere.",
        "pixels": f"Every labelled pixel of the test images, {pixels[0]['n']:,} of them, for each member. Intervals: {pixels[0]['intervals_by']}.",
        "images": f"Abstention from whole images, {images[0]['n']:,} of them: the loss is the share of labelled pixels that are wrong, a score the "
        "mean of the pixels' score over them, or of their p_max (mean max probability). "
        f"Intervals: {images[0]['intervals_by']}.",
    }
    body, text = ["<h2>Segmentation</h2>", _note(notes["sample"])], ["## Segmentation", notes["sample"]]
    body += [figures.to_svg(pictures["pixels.png"]), _note(notes["pixels.png"])]
    text += ["![Accepted, rejected and wrong pixels](figures/pixels.png)", notes["pixels.png"]]
    for kind, title, rows in (("pixels", "All pixels", pixels), ("images", "Images", images)):
        rows = [{**row, "predictions": _member(row)} for row in rows]
        tables = [table for _, _, columns in FILES_TABLES[:2] if (table := _file_table(rows, columns)) is not None]
        picture = f"{kind}_risk_coverage.png"
        body += [f"<h2>{title}</h2>", figures.to_svg(pictures[picture]), _note(notes[kind])]
        body += [table.html() for table in tables]
        text += [f"## {title}", f"![Risk-coverage curves](figures/{picture})", notes[kind]]
        text += [table.markdown() for table in tables]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _member(row: dict[str, Any]) -> str:
    return Path(row["predictions"]).parent.name


def _pixel_figure(workdir: Path, shown: Sequence[dict[str, Any]]) -> Figure:
    """The pictures of some members, whose rows of "pictures" these are."""
    images: list[np.ndarray] = []
    maps = {}
    for row in shown:
        arrays = files.read_npz(workdir / "predictions" / _member(row) / Path(row["predictions"]).name)
        order = range(sum(name.startswith("image_") for name in arrays))
        images = [arrays[f"image_{i}"] for i in order]
        maps[f"α = {row['alpha']:g}"] = [
            (arrays[f"outcome_{i}"], arrays[f"msp_{i}"] >= row["threshold"]) for i in order
        ]
    return figures.pixels(images, maps)


def _is(row: dict[str, Any], metric: str, treatment: tuple[float, str], control: tuple[float, str]) -> bool:
    sides = tuple((row[side].get("alpha"), row[side]["score"]) for side in ("treatment", "control"))
    return row["metric"] == metric and sides == (treatment, control)


# --- any predictions files --------------------------------------------------------------------------------------------


def _fitted_cell(row: dict[str, Any]) -> str:
    fitted = row["fitted"]
    if fitted is None:
        return ""
    chosen = f"p = {fitted['p'] or 'msp'}" if "p" in fitted else "fitted"
    chosen += f", T = {fitted['temperature']:g}" if "temperature" in fitted else ""
    return f"{chosen} on {row['fitted_on']}"


def _file_table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str, float]]) -> Table | None:
    """A table of the columns that any row has, and the rows that have any of them; None where there are none."""
    columns = [c for c in columns if any(c[0] in row["metrics"] for row in rows)]
    own = [c for c in columns if c[0] != "aurc"]
    rows = [row for row in rows if any(c[0] in row["metrics"] for c in own)]
    if not own or not rows:
        return None
    several, fitted = len({row["predictions"] for row in rows}) > 1, any(row["fitted"] for row in rows)
    lines = [
        [row["predictions"]] * several
        + [SCORE_NAMES.get(row["score"], row["score"])]
        + [cell(row, name) if name in row["metrics"] else "" for name, _, factor in columns]
        + [_fitted_cell(row)] * fitted
        for row in rows
    ]
    headings = [with_unit(name, factor) for _, name, factor in columns]
    return Table(["predictions"] * several + ["score", *headings] + ["fitted"] * fitted, lines)


def _group_table(rows: Sequence[dict[str, Any]]) -> Table | None:
    several, lines = len({row["predictions"] for row in rows}) > 1, []
    for row in rows:
        for group in row.get("groups") or []:
            cells = [
                f"{group[name]:g}" if factor == 0 else number(group[name], factor) for name, _, factor in _GROUP_COLUMNS
            ]
            name = SCORE_NAMES.get(row["score"], row["score"])
            lines.append([row["predictions"]] * several + [name, group["group"], *cells])
    headings = [with_unit(name, factor) for _, name, factor in _GROUP_COLUMNS]
    return Table(["predictions"] * several + ["score", "group", *headings], lines) if lines else None


def _drawn(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves to draw."""
    aurc = {(row["predictions"], row["score"]): row["metrics"]["aurc"] for row in document["runs"]}

    def place(curve: dict[str, Any]) -> tuple[bool, float]:
        value = aurc[curve["predictions"], curve["score"]]
        return curve["score"] != "msp", value if value is not None else float("inf")

    paths = list(dict.fromkeys(curve["predictions"] for curve in document["curves"]))
    most = MOST_CURVES if len(paths) == 1 else min(MOST_CURVES, max(1, 2 * MOST_CURVES // len(paths)))
    chosen = []
    for path in paths:
        different: list[dict[str, Any]] = []
        for curve in sorted((curve for curve in document["curves"] if curve["predictions"] == path), key=place):
            if all(curve["risk"] != other["risk"] for other in different):  # else it would lie under another
                different.append(curve)
        chosen += different[:most]
    return chosen


def of_files(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The pages of any predictions files; returns what `of_study` does."""
    pictures = {
        "risk_coverage.png": figures.risk_coverage(_drawn(document)),
        "reliability.png": figures.reliability(document["reliability"]),
    }
    rows = document["runs"]
    n = "; ".join(f"{path}: n = {m:,}" for path, m in {row["predictions"]: row["n"] for row in rows}.items())
    how = (
        f"{n}. Brackets: {_level(document)} intervals over the examples of each file (bootstrap; the jackknife for very long files), with "
        "what was fitted held fixed. Drawn: MSP and the scores with the smallest AURC."
    )
    if document["match_error"] is not None:
        how += f" Common error: {100 * document['match_error']:.4g} %."
    body = [
        "<h1>Risk and coverage</h1>",
        figures.to_svg(pictures["risk_coverage.png"]),
        f'<p class="note">{html.escape(how)}</p>',
    ]
    text = ["# Risk and coverage", "![Risk-coverage curves](figures/risk_coverage.png)", how]
    group_note = (
        "Coverage and selective risk of each group under one threshold, which accepts 90 % of all. Blind to groups: the risk that the group "
        "would have if as many right and wrong predictions were accepted whatever their group."
    )
    tables = [(title, note, _file_table(rows, columns)) for title, note, columns in FILES_TABLES]
    chosen = document.get("selectors")
    tables.append(("Selectors", SELECTOR_NOTE, selector_table(chosen) if chosen else None))
    for title, note, table in [*tables, ("Groups", group_note, _group_table(rows))]:
        if table is None:
            continue
        body += [f"<h2>{title}</h2>", table.html(), f'<p class="note">{html.escape(note)}</p>']
        text += [f"## {title}", table.markdown(), note]
        if title == "Probabilities" and document["reliability"]:
            body.append(figures.to_svg(pictures["reliability.png"]))
            text.append("![Reliability](figures/reliability.png)")
    left_out = [f"Left out: {r['score']} of {r['predictions']}: {r['reason']}." for r in document["left_out"]]
    if left_out:
        body += ["<h2>Left out</h2>", *(f"<p>{html.escape(line)}</p>" for line in left_out)]
        text += ["## Left out", *left_out]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"


# --- both -------------------------------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<!-- built from {built_from} -->
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1d1d1f; max-width: 1120px; margin: 2rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.55rem; line-height: 1.3; margin: 0 0 1rem; }} h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
svg {{ max-width: 100%; height: auto; }} .note {{ color: #555; font-size: .9rem; }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .8rem; margin-bottom: 1rem; }}
.tile {{ border-left: 5px solid; padding: .35rem .8rem; background: #f7f7f8; }}
.c0 {{ border-color: #2b5c8a; }} .c1 {{ border-color: #c8442e; }} .c2 {{ border-color: #2f8f6b; }}
.label {{ font-size: .85rem; color: #444; }} .big {{ font-size: 1.9rem; font-weight: 650; line-height: 1.2; }}
.small {{ font-size: .85rem; color: #555; }} .scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e4e4e6; white-space: nowrap; }}
.wrap td, .wrap th {{ white-space: normal; }}
th {{ border-bottom: 2px solid #bbb; }} .interval {{ color: #777; font-size: .92em; }}
.pair {{ display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 5fr); gap: 1.4rem; align-items: center; }}
@media (max-width: 760px) {{ .pair {{ grid-template-columns: 1fr; }} }}
details {{ margin-top: 1.2rem; }} summary {{ cursor: pointer; color: #2b5c8a; }}
</style></head><body>
{body}
</body></html>
"""


def as_csv(document: dict[str, Any]) -> str:
    """Every metric of every run as a row: tags, score, metric, value and interval."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    rows = [
        *document["runs"],
        *(row for kind in ("pixels", "images") for row in document.get(kind, {}).get("runs", ())),
    ]
    tags = sorted({tag for row in rows for tag in row["tags"]})
    writer.writerow(["predictions", "split", *tags, "score", "n", "metric", "value", "low", "high", "fitted_on"])
    for row in rows:
        for metric, value in row["metrics"].items():
            given = [row["tags"].get(tag, "") for tag in tags]
            writer.writerow(
                [row["predictions"], row["split"] or "", *given, row["score"], row["n"], metric, value]
                + [*row["intervals"].get(metric, ("", "")), row["fitted_on"] or ""]
            )
    return buffer.getvalue()
