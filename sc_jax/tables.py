"""Numbers of a report as text: the headings and units of metrics, and tables in HTML and Markdown. Draws nothing."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

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


FILES_TABLES = (
    (
        "Ranking",
        "AURC falls with accuracy alone: a claim about the ranking rests on NAURC, the failure AUROC, or AURC at a common error.",
        (
            ("error", "error", 100),
            ("aurc", "AURC", 100),
            ("e_aurc", "E-AURC", 100),
            ("naurc", "NAURC", 1),
            ("augrc", "AUGRC", 100),
            ("e_augrc", "E-AUGRC", 100),
            ("failure_auroc", "AUROC_f", 1),
            ("achievable_aurc", "AURC of the hull", 100),
            ("aurc_at_matched_error", "AURC at the common error", 100),
            ("aurc_class_balanced", "class-balanced AURC", 100),
            ("augrc_class_balanced", "class-balanced AUGRC", 100),
        ),
    ),
    (
        "Operating points of these very examples",
        "The best threshold of the sample it is computed on: a description, not a promise. Realisable: the nearest coverage that a "
        "threshold can have, which accepts tied examples together.",
        (
            ("coverage_at_risk_0.01", "Cov@1%", 100),
            ("coverage_at_risk_0.02", "Cov@2%", 100),
            ("coverage_at_risk_0.05", "Cov@5%", 100),
            ("risk_at_coverage_0.8", "Risk@80%", 100),
            ("realisable_coverage_0.8", "realisable", 100),
            ("risk_at_coverage_0.9", "Risk@90%", 100),
            ("realisable_coverage_0.9", "realisable", 100),
        ),
    ),
    (
        "Operating points of thresholds from the calibration file",
        "What a threshold fixed beforehand does here. It was fitted to meet the target there, and carries no guarantee here.",
        tuple(
            (f"threshold_at_{target}_{what}", f"{what} ({name})", 100)
            for target, name in (
                ("risk_0.01", "1 % risk"),
                ("risk_0.02", "2 % risk"),
                ("risk_0.05", "5 % risk"),
                ("coverage_0.8", "80 % coverage"),
                ("coverage_0.9", "90 % coverage"),
            )
            for what in ("coverage", "risk")
        ),
    ),
    (
        "AURC by other conventions",
        "For comparison with papers and packages; docs/metrics.md has the definitions and an example on which all differ.",
        (
            ("aurc", "mean", 100),
            ("aurc_trapezoid_from_zero", "trapezoid from (0, 0)", 100),
            ("aurc_torch_uncertainty", "torch-uncertainty", 100),
            ("aurc_fd_shifts", "fd-shifts", 100),
            ("aurc_ln", "ln", 100),
            ("aurc_sele", "SELE", 100),
        ),
    ),
    (
        "Probabilities",
        "ECE over equal-width bins unless said otherwise. Brier = reliability − resolution + uncertainty + within bins.",
        (
            ("nll", "NLL", 1),
            ("brier", "Brier", 1),
            ("brier_reliability", "reliability", 1),
            ("brier_resolution", "resolution", 1),
            ("brier_uncertainty", "uncertainty", 1),
            ("brier_within_bin", "within bins", 1),
            ("ece", "ECE", 100),
            ("ece_equal_mass", "ECE, equal mass", 100),
            ("ece_root_mean_square", "ECE, root mean square", 100),
            ("maximum_calibration_error", "MCE", 100),
            ("smooth_ece", "smooth ECE", 100),
            ("classwise_ece", "classwise ECE", 100),
            ("adaptive_ece", "adaptive ECE", 100),
        ),
    ),
    (
        "Inputs from outside the training distribution",
        "AUROC: of accepting the others before OOD inputs. Average precision: of rejecting OOD inputs, which are its positives; tied inputs "
        "are rejected together. FPR: share of OOD inputs accepted where 95 % of the others are. SCOD: an accepted OOD "
        "input costs 1, at the share of them in the file.",
        (
            ("ood_auroc", "OOD AUROC", 1),
            ("ood_average_precision", "OOD average precision", 1),
            ("ood_fpr_at_tpr_0.95", "FPR at 95 % TPR", 100),
            ("scod_aurc", "SCOD AURC", 100),
            ("scod_augrc", "SCOD AUGRC", 100),
            ("scod_ood_share", "share of OOD", 100),
        ),
    ),
)
"""Of the pages of any files: title, note, and the columns of each table."""

FACTOR = {name: factor for name, _, factor in (*TABLE, *(c for _, _, columns in FILES_TABLES for c in columns))}
HEADING = {name: heading for name, heading, _ in (*(c for _, _, columns in FILES_TABLES for c in columns), *TABLE)}


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


def number(value: float | None, factor: float = 1, signed: bool = False) -> str:
    """A number for a table, times `factor`: two digits of per cent, else three; "undefined" where there is none."""
    if value is None or math.isnan(value):
        return "undefined"
    digits = 2 if factor == 100 else 3
    return f"{value * factor:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def number_with_interval(
    value: float | None, interval: Sequence[float | None], factor: float = 1, signed: bool = False
) -> str:
    """The same with its interval in brackets."""
    ends = ", ".join(number(end, factor, signed) for end in interval)
    return f"{number(value, factor, signed)} [{ends}]"


def heading(metric: str) -> str:
    """How a metric is called in tables, with its unit."""
    return with_unit(HEADING[metric], FACTOR[metric])


def with_unit(name: str, factor: float) -> str:
    """A heading with "%" at its end where what stands under it is times 100."""
    return name + (" %" if factor == 100 and not name.endswith("%") else "")


def with_interval(metric: str, described: dict[str, Any]) -> str:
    """The estimate of a metric with its interval, in the unit of its heading."""
    return number_with_interval(described["estimate"], described["interval"], FACTOR[metric])


def cell(row: dict[str, Any], name: str) -> str:
    """A metric of a run with its interval, in the unit of its heading."""
    factor = FACTOR[name]
    if name == "nll" and row.get("infinite_log_losses"):
        return f"infinite ({row['infinite_log_losses']} of {row['n']} true classes have probability 0)"
    value = row["metrics"][name]
    if name not in row["intervals"]:
        return number(value, factor)
    never = row.get("resamples_at_coverage_0", {}).get(name, 0)
    shown = number_with_interval(value, row["intervals"][name], factor)
    return f"{shown} ({never:.0%} of resamples: 0)" if never else shown


SELECTOR_NOTE = (
    "Of thresholds that were fitted and frozen on other examples. Brackets: exact 95 % intervals. Held: the interval of what was promised lies at "
    "or below the target; did not hold: above it; open: on both sides. A promise with δ may fail with that probability, and a marginal one is an "
    "average over calibration sets: one selector on one file refutes neither."
)


def selector_table(rows: Sequence[dict[str, Any]]) -> Table:
    """What selectors came to on files, and whether their promises held."""
    lines = []
    several = len({row["predictions"] for row in rows}) > 1
    for row in rows:
        where = "" if row["stratum"] == "all" else f", {row['within'].replace('_', ' ')} {row['stratum']}"
        parts = [
            number_with_interval(row[name], row[f"{name}_interval"] or (None, None), 100)
            for name in ("risk", "accepted_and_wrong")
        ]
        lines.append(
            [
                f"{row['selector']}{where}" + (f" on {row['predictions']}" if several else ""),
                row["method"],
                row["score"],
            ]
            + [row["promise"], number(row["coverage"], 100), *parts, row["verdict"]]
        )
    headings = [
        "selector",
        "method",
        "score",
        "promise",
        "coverage %",
        "risk of the accepted %",
        "accepted and wrong %",
    ]
    return Table([*headings, "the promise"], lines)
