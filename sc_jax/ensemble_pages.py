"""The section of a report on an ensemble of stored members."""

from __future__ import annotations

import html
from typing import Any

from matplotlib.figure import Figure

from sc_jax import figures
from sc_jax.tables import Table, heading, number, with_interval

PICTURES = ("members.png",)
"""The pictures of the section."""

_SHOWN = ("error", "nll", "brier", "aurc", "naurc", "failure_auroc", "coverage_at_risk_0.05")


def combination_table(document: dict[str, Any]) -> Table:
    """Each member and each combination by MSP."""
    rows = []
    for row in document["runs"]:
        if row["score"] == "msp":
            told = {
                name: {"estimate": row["metrics"][name], "interval": row["intervals"].get(name)}
                for name in _SHOWN
                if name in row["metrics"]
            }
            rows.append(
                [row["predictions"], *(with_interval(name, told[name]) if name in told else "" for name in _SHOWN)]
            )
    return Table(["", *(heading(name) for name in _SHOWN)], rows)


_DIVERSITY = (
    ("disagreement", "disagreement %", 100),
    ("kappa", "κ", 1),
    ("error_disagreement", "one wrong %", 100),
    ("double_fault", "both wrong %", 100),
    ("q_statistic", "Q", 1),
    ("error_correlation", "correlation of errors", 1),
    ("error_kappa", "κ of errors", 1),
    ("member_nll", "NLL of a member", 1),
    ("ensemble_nll", "of the ensemble", 1),
    ("nll_gap", "gap", 1),
    ("brier_gap", "gap of Brier", 1),
)


def diversity_table(told: dict[str, Any]) -> Table:
    """How the members differ, in the mean over pairs, and what averaging gains."""
    rows = [[row["space"], *(number(row[name], factor) for name, _, factor in _DIVERSITY)] for row in told["diversity"]]
    return Table(["combined in", *(words for _, words, _ in _DIVERSITY)], rows)


def weight_table(told: dict[str, Any]) -> Table:
    """The weights that were fitted on the calibration split."""
    rows = [
        [
            row["space"],
            ", ".join(f"{weight:.3f}" for weight in row["weights"]),
            number(row["log_loss"]),
            number(row["equal_log_loss"]),
            str(row["fitted_on"]),
        ]
        for row in told["weights"]
    ]
    return Table(["space", "weights", "log loss there", "of equal weights", "fitted on"], rows)


def section(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The section; returns as `pages.of_study`.

    Args:
      document: whose "ensemble" is that of `ensemble_study.evaluate`.
    """
    told = document["ensemble"]
    pictures = {PICTURES[0]: figures.members(told["curves"])}
    members = "; ".join(f"{i}: {name}" for i, name in enumerate(told["members"], 1))
    parts = [
        ("Members and combinations, by MSP", combination_table(document), f"Members: {members}."),
        (
            "Diversity",
            diversity_table(told),
            "Means over pairs of members; the gap is the mean loss of the members less the loss of the ensemble.",
        ),
    ]
    if told["weights"]:
        note = "Least log loss on the calibration split; the log losses here are of that split, the rows above of the test split."
        parts.append(("Weights", weight_table(told), note))
    note = (
        f"{told['n']:,} examples. Bands are quantiles over subsets of these members; subsets share members, so that their spread is smaller than that of "
        "ensembles trained anew."
    )
    body, text = [], []
    for title, table, words in parts:
        body += [f"<h2>{title}</h2>", table.html(wrap=True), f'<p class="note">{html.escape(words)}</p>']
        text += [f"## {title}", table.markdown(), words]
    body += ["<h2>Metrics against the number of members</h2>", figures.to_svg(pictures[PICTURES[0]])]
    body.append(f'<p class="note">{html.escape(note)}</p>')
    text += ["## Metrics against the number of members", "![Metrics against members](figures/members.png)", note]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"
