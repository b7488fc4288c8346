"""The pages of a report: `metrics.json` as HTML, Markdown and CSV. What is claimed in words follows from the numbers."""

from __future__ import annotations

import csv
import html
import io
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sc_jax import figures, files
from sc_jax.figures import SCORE_NAMES

TABLE = (
    ("error", "error", 100),
    ("aurc", "AURC", 100),
    ("e_aurc", "E-AURC", 100),
    ("naurc", "NAURC", 1),
    ("augrc", "AUGRC", 100),
    ("failure_auroc", "AUROC_f", 1),
    ("coverage_at_risk_0.01", "Cov@1%", 100),
    ("coverage_at_risk_0.02", "Cov@2%", 100),
    ("coverage_at_risk_0.05", "Cov@5%", 100),
    ("risk_at_coverage_0.8", "Risk@80%", 100),
    ("risk_at_coverage_0.9", "Risk@90%", 100),
    ("ece", "ECE", 100),
    ("nll", "NLL", 1),
    ("brier", "Brier", 1),
)
"""Metric, its heading, and the factor it is shown with: 100 for what is shown in per cent."""


STUDY_PICTURES = ("finding.png", "suppression.png", "max_logit_gap.png")
FILES_PICTURES = ("risk_coverage.png",)
"""The pictures beside the pages of a study, and beside those of any files."""

_FACTOR = {name: factor for name, _, factor in TABLE}
_HEADING = {name: heading for name, heading, _ in TABLE}


class Table:
    """Rows of text under headings, as HTML or Markdown."""

    def __init__(self, headings: Sequence[str], rows: Iterable[Sequence[str]]):
        self.headings, self.rows = list(headings), [list(row) for row in rows]

    def html(self, wrap: bool = False) -> str:
        """An HTML table, whose cells may break into lines where `wrap` says so."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.headings)
        body = "".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        kind = ' class="wrap"' if wrap else ""
        return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def markdown(self) -> str:
        """A Markdown table."""
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    value, bracket, rest = html.escape(text).partition(" [")
    return f'{value} <span class="interval">[{rest}</span>' if bracket else value


def _number(value: float | None, factor: float = 1, signed: bool = False) -> str:
    if value is None:
        return "undefined"
    digits = 2 if factor == 100 else 3
    return f"{value * factor:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def _with_interval(
    value: float | None, interval: Sequence[float | None], factor: float = 1, signed: bool = False
) -> str:
    ends = ", ".join(_number(end, factor, signed) for end in interval)
    return f"{_number(value, factor, signed)} [{ends}]"


# --- a study of label smoothing ---------------------------------------------------------------------------------------


def heading(metric: str) -> str:
    """How a metric is called in tables, with its unit."""
    name, factor = _HEADING[metric], _FACTOR[metric]
    return name + (" %" if factor == 100 and not name.endswith("%") else "")


def with_interval(metric: str, described: dict[str, Any]) -> str:
    """The estimate of a metric with its interval, in the unit of its heading."""
    return _with_interval(described["estimate"], described["interval"], _FACTOR[metric])


def _estimate(document: dict[str, Any], alpha: float, score: str, metric: str) -> dict[str, Any]:
    return next(r for r in document["aggregates"] if (r["alpha"], r["score"]) == (alpha, score))["metrics"][metric]


def claim(document: dict[str, Any]) -> str:
    """The finding of a study in one sentence, by the verdicts on its primary contrasts."""
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    alpha = primary[0]["treatment"]["alpha"]
    confirmed = {(row["metric"], row["treatment"]["score"]) for row in primary if row["verdict"] == "confirmed"}
    if len(confirmed) < len(primary):
        parts = "; ".join(f"{row['claim']}: {row['verdict']}" for row in primary)
        return f"Not all of the claim is confirmed here (α = {alpha:g}): {parts}."
    if not confirmed >= {("error", "msp"), ("naurc", "msp"), ("naurc", "max_logit_pnorm")}:
        return f"Confirmed here (α = {alpha:g}): {'; '.join(row['claim'] for row in primary)}."
    left = _remaining(document, alpha)
    if left is None or left["includes_0"] is None:
        repairs = "improves it"
    elif left["includes_0"]:
        repairs = "repairs it, as far as these data can tell"
    else:
        repairs = "repairs it" if left["estimate"] < 0 else "repairs most of it"
    return (
        f"Confirmed here: label smoothing (α = {alpha:g}) costs no accuracy and ruins the ranking of errors; "
        f"logit normalisation {repairs}."
    )


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
    text = f"Without smoothing, p-norm {change} {_with_interval(row['estimate'], row['interval'], signed=True)} (exploratory)"
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
        (side["alpha"], SCORE_NAMES.get(side["score"], side["score"])) for side in (row["treatment"], row["control"])
    )
    if a == b:
        return f"α = {a:g}: {s} − {t}"
    return f"α = {a:g} − α = {b:g}: {s}" if s == t else f"α = {a:g} {s} − α = {b:g} {t}"


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
        factor = _FACTOR[row["metric"]]
        unit = " ×100" if factor == 100 else ""
        line = [
            _contrast_name(row),
            _HEADING[row["metric"]] + unit,
            _with_interval(row["estimate"], row["interval"], factor, signed=True)
            + {True: " (includes 0)", False: "", None: " (undefined)"}[row["includes_0"]],
            "[" + ", ".join(_number(end, factor, signed=True) for end in row["t_interval"]) + "]",
            f"{row['p_holm' if primary else 'p']:.3f}",
            row["intervals_cover"],
        ]
        lines.append([row["claim"], row["verdict"], *line] if primary else line)
    return Table(["claim", "verdict", *headings] if primary else headings, lines)


def _aggregate_table(document: dict[str, Any]) -> Table:
    lines = []
    for row in document["aggregates"]:
        cells = [
            with_interval(name, row["metrics"][name]) + (" †" if row["metrics"][name].get("unstable") else "")
            if name in row["metrics"]
            else ""
            for name, _, _ in TABLE
        ]
        chosen = "" if row["fitted"] is None else ", ".join(str(p) for p in row["fitted"])
        lines.append([f"{row['alpha']:g}", SCORE_NAMES.get(row["score"], row["score"]), *cells, chosen])
    headings = [heading(name) for name, _, _ in TABLE]
    return Table(["α", "score", *headings, "p chosen (one per seed)"], lines)


def _gap_table(document: dict[str, Any]) -> Table:
    lines = []
    for row in document["max_logit_gap"]:
        minus = row.get("centred_minus_alpha_0")
        lines.append(
            [
                f"{row['alpha']:g}",
                _with_interval(row["centred"]["estimate"], row["centred"]["interval"], signed=True),
                _with_interval(row["raw"]["estimate"], row["raw"]["interval"], signed=True),
                "" if minus is None else _with_interval(minus["estimate"], minus["interval"], signed=True),
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


def of_study(workdir: Path, document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The pages of a study of label smoothing.

    Returns:
      Pictures by file name, the body of the HTML page, and the Markdown.
    """
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    exploratory = [row for row in document["contrasts"] if row["kind"] == "exploratory"]
    alpha = primary[0]["treatment"]["alpha"]
    pictures = {
        "finding.png": figures.finding(document["curves"], document["aggregates"], alpha),
        "suppression.png": figures.suppression(document["suppression"]),
        "max_logit_gap.png": figures.max_logit_gap(document["max_logit_gap"], alpha),
    }
    seeds = document["aggregates"][0]["seeds"]
    n = document["runs"][0]["n"]
    sentence = claim(document)
    cells = [
        ("cross-entropy, MSP", (0.0, "msp")),
        (f"smoothing α = {alpha:g}, MSP", (alpha, "msp")),
        (f"smoothing α = {alpha:g}, p-norm", (alpha, "max_logit_pnorm")),
    ]
    there = {(row["alpha"], row["score"]) for row in document["aggregates"]}
    shown = (("aurc", 100), ("naurc", 1), ("error", 100))
    tiles = [
        (label, [_number(_estimate(document, *cell, metric)["estimate"], factor) for metric, factor in shown])
        for label, cell in cells
        if cell in there
    ]
    how = (
        f"Mean of {seeds} seeds on {n:,} test examples, one training set. Brackets: {_level(document)} intervals from a crossed bootstrap over "
        "seeds and test examples; where p was tuned, the validation examples are resampled too and p is chosen anew in each resample."
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
        "are rare and weakens as they become likely. The evidence that it bites is the next figure."
    )
    caution = _without_smoothing(document)
    left = _remaining(document, alpha)
    rest = (
        ""
        if left is None
        else "After the repair NAURC differs from cross-entropy with MSP by "
        + _with_interval(left["estimate"], left["interval"], signed=True)
        + (" (the interval includes 0)." if left["includes_0"] else ".")
    )

    body = [
        f"<h1>{html.escape(sentence)}</h1>",
        '<div class="tiles">'
        + "".join(
            f'<div class="tile c{i}"><div class="label">{html.escape(label)}</div><div class="big">{aurc}</div>'
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
        _aggregate_table(document).html(),
        f'<p class="note">{html.escape(table_note)}</p>',
        "<h2>The reason</h2>",
        f'<div class="pair"><div>{figures.to_svg(pictures["suppression.png"])}</div><p>{html.escape(identity_text)}</p></div>',
        f"<p>{html.escape(gap_text)}</p>",
        figures.to_svg(pictures["max_logit_gap.png"]),
        _gap_table(document).html(),
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
        "![Risk-coverage curves, and NAURC by α](figures/finding.png)",
        " ".join(part for part in (how, caution, rest) if part),
        "## Primary contrasts",
        contrast_table(primary, True).markdown(),
        rule,
        "## Every α and score",
        _aggregate_table(document).markdown(),
        table_note,
        "## The reason",
        identity_text,
        "![The extra gradient on the max logit against the error rate](figures/suppression.png)",
        gap_text,
        "![Max logit of right and wrong predictions at equal MSP](figures/max_logit_gap.png)",
        _gap_table(document).markdown(),
        f"## Exploratory contrasts\n\n{len(exploratory)} of them, not corrected for multiplicity.",
        contrast_table(exploratory, False).markdown(),
        "## Settings and versions",
        _settings_table(workdir, document).markdown(),
    ]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"


def _is(row: dict[str, Any], metric: str, treatment: tuple[float, str], control: tuple[float, str]) -> bool:
    sides = tuple((row[side]["alpha"], row[side]["score"]) for side in ("treatment", "control"))
    return row["metric"] == metric and sides == (treatment, control)


# --- any predictions files --------------------------------------------------------------------------------------------


def _file_cell(row: dict[str, Any], name: str, factor: float) -> str:
    if name == "nll" and row["infinite_log_losses"]:
        return f"infinite ({row['infinite_log_losses']} of {row['n']} true classes have probability 0)"
    return _with_interval(row["metrics"][name], row["intervals"][name], factor)


def of_files(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The pages of any predictions files; returns what `of_study` does."""
    figure = figures.risk_coverage(document["curves"])
    lines = []
    for row in document["runs"]:
        cells = [_file_cell(row, name, factor) if name in row["metrics"] else "" for name, _, factor in TABLE]
        chosen = "" if row["fitted"] is None else f"p = {row['fitted']['p'] or 'msp'} on {row['fitted_on']}"
        lines.append([row["predictions"], str(row["n"]), SCORE_NAMES.get(row["score"], row["score"]), *cells, chosen])
    headings = [heading(name) for name, _, _ in TABLE]
    table = Table(["predictions", "n", "score", *headings, "fitted"], lines)
    left_out = [f"Left out: {r['score']} of {r['predictions']}: {r['reason']}." for r in document["left_out"]]
    how = f"Brackets: {_level(document)} bootstrap intervals over the examples of each file, with what was fitted held fixed."
    body = ["<h1>Risk and coverage</h1>", figures.to_svg(figure), f'<p class="note">{how}</p>', table.html()]
    body += [f"<p>{html.escape(line)}</p>" for line in left_out]
    text = [
        "# Risk and coverage",
        "![Risk-coverage curves](figures/risk_coverage.png)",
        how,
        table.markdown(),
        *left_out,
    ]
    return {"risk_coverage.png": figure}, "\n".join(body), "\n\n".join(text) + "\n"


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
    tags = sorted({tag for row in document["runs"] for tag in row["tags"]})
    writer.writerow(["predictions", "split", *tags, "score", "n", "metric", "value", "low", "high", "fitted_on"])
    for row in document["runs"]:
        for metric, value in row["metrics"].items():
            given = [row["tags"].get(tag, "") for tag in tags]
            writer.writerow(
                [row["predictions"], row["split"] or "", *given, row["score"], row["n"], metric, value]
                + [*row["intervals"][metric], row["fitted_on"] or ""]
            )
    return buffer.getvalue()
