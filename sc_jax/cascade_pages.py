"""The section of a report on early-exit cascades."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sc_jax import figures
from sc_jax.pages import of_grid
from sc_jax.tables import Table, number, number_with_interval

PICTURES = ("cascade_trade_off.png", "cascade_changes.png", "cascade_shift.png", "cascade_search.png")
"""The pictures of the section; the last two where there are shifted sets, and where policies were searched."""

POLICY_NAMES = {
    "single": "first network alone",
    "ensemble": "ensemble",
    "single_threshold": "single threshold",
    "window": "window",
    "window, moved": "window, moved to these examples",
    "oracle": "oracle: labels seen",
}

_COLUMNS = (
    ("coverage_at_risk", "Cov@{risk}", 100),
    ("risk_at_coverage", "Risk@{coverage}", 100),
    ("aurc", "AURC %", 100),
    ("error", "error %", 100),
    ("cost_multiple", "cost, multiple of the first", 1),
    ("passed_on", "passed on %", 100),
    ("decided_coverage", "frozen τ: coverage %", 100),
    ("decided_risk", "risk %", 100),
)


def pictures_of(document: dict[str, Any]) -> tuple[str, ...]:
    """The names of the pictures that the section has."""
    absent = {"cascade_shift.png": not document["shifts"], "cascade_search.png": not document["search"]}
    return tuple(name for name in PICTURES if not absent.get(name))


def claim(document: dict[str, Any]) -> str:
    """The finding in one sentence, by the verdicts."""
    gain, kept = document["claims"][:2]
    window = next(row for row in document["policies"] if row["policy"] == "window")["metrics"]["cost_multiple"]
    cost = number_with_interval(window["estimate"], window["interval"])
    points = number_with_interval(gain["estimate"], gain["interval"], 100, signed=True)
    if gain["verdict"] != "confirmed":
        return f"No gain of the ensemble is shown here ({points} points of coverage at the risk), so there is none to keep; the window cascade costs {cost} times the first network."
    share = _share(document)
    held = {"confirmed": "keeps at least", "contradicted": "does not keep"}.get(kept["verdict"], "is not shown to keep")
    return (
        f"The ensemble gains {points} points of coverage at the risk; the window cascade {held} {100 * kept['share']:g} % of that"
        f"{share} at {cost} times the cost of the first network."
    )


def _share(document: dict[str, Any]) -> str:
    of = {row["policy"]: row["metrics"]["coverage_at_risk"]["estimate"] for row in document["policies"]}
    gain = of["ensemble"] - of["single"]
    return f" ({100 * (of['window'] - of['single']) / gain:.0f} % in the point estimates)" if gain > 0 else ""


def policy_table(document: dict[str, Any]) -> Table:
    """Every policy with intervals."""
    settings = document["settings"]
    risk = settings["task"]["target"] if settings["task"]["kind"] == "risk" else 0.05
    words = {"risk": f"{100 * risk:g} % risk, %", "coverage": f"{100 * settings['coverage']:g} % coverage, %"}
    rows = [
        [
            POLICY_NAMES[row["policy"]],
            *(
                number_with_interval(row["metrics"][name]["estimate"], row["metrics"][name]["interval"], factor)
                for name, _, factor in _COLUMNS
            ),
        ]
        for row in document["policies"]
    ]
    return Table(["policy", *(heading.format(**words) for _, heading, _ in _COLUMNS)], rows)


def claim_table(document: dict[str, Any]) -> Table:
    """The contrasts that were fixed beforehand."""
    rows = [
        [
            row["claim"],
            row["verdict"],
            number_with_interval(row["estimate"], row["interval"], 100, signed=True),
            "[" + ", ".join(number(end, 100, signed=True) for end in row["t_interval"]) + "]",
            f"{row['p']:.3f}",
            document["intervals_cover"],
        ]
        for row in document["claims"]
    ]
    headings = [
        "claim",
        "verdict",
        "Δ − share · Δ of the ensemble, points [interval]",
        "t [interval]",
        "p",
        "intervals cover",
    ]
    return Table(headings, rows)


def search_table(document: dict[str, Any]) -> Table:
    """The best policy of each budget on the three splits."""
    rows = []
    for row in document["search"]:
        cells = [
            f"{number(row[f'{split}_coverage'], 100)} / {number(row[f'{split}_risk'], 100)}"
            for split in ("search", "certify")
        ]
        cells += [
            number_with_interval(row[f"test_{what}"], row[f"test_{what}_band"], factor)
            for what, factor in (("coverage", 100), ("risk", 100), ("cost_multiple", 1))
        ]
        rows.append([f"{row['budget']:g}", *cells])
        if "certified_share" in row:
            rows[-1] += [
                f"{number(row['certified_coverage'], 100)} / {number(row['certified_risk'], 100)}",
                number(row["certified_cost_multiple"]),
                f"{row['certified_share'] * len(document['names']):.0f} of {len(document['names'])}",
            ]
    headings = ["budget", "searched half: coverage / risk %", "other half", "test split: coverage %", "risk %", "cost"]
    if "certified_share" in document["search"][0]:
        headings += ["certified by the other half: test split", "cost there", "found"]
    if document["settings"]["task"]["kind"] in ("tpr", "scod"):
        headings += ["test split: OOD accepted %", "risk, OOD at cost 1, %"]
        for cells, row in zip(rows, document["search"], strict=True):
            cells += [number(row["test_accepted_ood"], 100), number(row["test_scod_risk"], 100)]
    return Table(headings, rows)


def chosen_table(document: dict[str, Any]) -> Table:
    """The policies of the budget that was asked for: what runs, when an example goes on, and when it is accepted."""
    rows = []
    for one in document["chosen"]:
        for name in ("best", "certified"):
            policy = one[name]
            if policy is None and name == "certified" and document["settings"]["task"]["kind"] != "risk":
                continue
            if policy is None:
                rows.append([one["cascade"], f"{one['budget']:.4g}", name, "none found", "", ""])
                continue
            runs = " → ".join(policy["models"])
            windows = "; ".join(_window(*window) if window else "nothing" for window in policy["windows"]) or "never"
            rows.append([one["cascade"], f"{one['budget']:.4g}", name, runs, windows, f"{policy['threshold']:.4g}"])
    return Table(["of the models", "budget", "policy", "runs", "goes on where the score is in", "accepts at ≥"], rows)


def _window(low: float | None, high: float | None) -> str:
    left = "(−∞" if low is None else f"[{low:.4g}"
    return f"{left}, " + ("∞)" if high is None else f"{high:.4g}]")


SHIFT_METRICS = (
    ("cost_multiple", "cost, multiple of the first", 1),
    ("passed_on", "passed on %", 100),
    ("error", "error %", 100),
    ("decided_coverage", "frozen τ: coverage %", 100),
    ("decided_risk", "risk %", 100),
)


def shift_table(document: dict[str, Any]) -> Table:
    """What the frozen policies, and the window moved to the examples, do on each shifted set."""
    rows, last = [], None
    for row in document["shifts"]:
        cells = [
            number_with_interval(row["metrics"][name]["estimate"], row["metrics"][name]["interval"], factor)
            for name, _, factor in SHIFT_METRICS
        ]
        rows.append([row["set"] if row["set"] != last else "", POLICY_NAMES[row["policy"]], *cells])
        last = row["set"]
    return Table(["set", "policy", *(heading for _, heading, _ in SHIFT_METRICS)], rows)


def ood_table(document: dict[str, Any]) -> Table:
    """Costs and errors where some examples are OOD."""
    columns = (
        ("cost_multiple", "cost, in-distribution", 1),
        ("cost_multiple_ood", "cost, OOD", 1),
        ("cost_multiple_all", "cost, all", 1),
        ("passed_on", "passed on %, in-distribution", 100),
        ("passed_on_ood", "OOD", 100),
        ("passed_on_all", "all", 100),
        ("accepted_ood", "OOD accepted %", 100),
        ("ood_auroc", "OOD AUROC", 1),
        ("ood_fpr_at_tpr_0.95", "FPR at 95 % TPR, %", 100),
        ("scod_risk", "risk, OOD at cost 1, %", 100),
        ("scod_aurc", "SCOD AURC %", 100),
    )
    rows = [
        [
            POLICY_NAMES[row["policy"]],
            *(
                number_with_interval(row[name], row[f"{name}_interval"], factor)
                if f"{name}_interval" in row
                else number(row[name], factor)
                for name, _, factor in columns
            ),
        ]
        for row in document["ood"]
    ]
    return Table(["policy", *(heading for _, heading, _ in columns)], rows)


def section(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The section; returns as `pages.of_study`.

    Args:
      document: whose "cascades" are those of `cascade_study.evaluate`, with the "unit" of its costs.
    """
    document = document["cascades"]
    pictures = {
        "cascade_trade_off.png": figures.cascade_trade_off(document),
        "cascade_changes.png": figures.cascade_changes(document),
    }
    settings = document["settings"]
    level, cascades = f"{100 * document['level']:g} %", len(document["names"])
    unit = document["unit"]
    costs = ", ".join(f"{cost:,.4g}" for cost in document["cost"])
    how = (
        f"{cascades} cascade{'s' * (cascades > 1)} ({'; '.join(document['names'])}) on {document['n']:,} test examples; costs {costs} {unit} per "
        f"example. Score {settings['score']}; stages combine by {settings['combine']}; windows of {100 * settings['half_width']:g} % of the "
        "calibration split on either side of the threshold, single thresholds of twice that share. Windows and τ are fitted on the calibration split and frozen. "
        f"Brackets: {level} intervals over {document['intervals_cover']}, what was fitted held fixed."
    )
    rule = (
        "Fixed beforehand: first whether the ensemble gains coverage at the risk at all, and only then whether a cascade keeps its share of that, tested "
        "as Δ of the cascade − share · Δ of the ensemble > 0 on the same examples; a ratio of gains would explode where the gain is near 0. The coverage "
        "at the risk is the best threshold of the test split itself; what the frozen τ does stands beside it. Windows are made for the threshold of this task; of other thresholds, and of AURC, they change little."
    )
    oracle = (
        "Oracle: every example leaves at the cheapest stage at which it is decided best, labels seen; no cascade of these stages with this τ accepts "
        "more right examples, or fewer wrong ones."
    )
    parts = [
        ("Primary contrasts", claim_table(document), rule, True),
        ("Every policy", policy_table(document), f"{how} {oracle}", False),
    ]
    body = [figures.to_svg(pictures["cascade_trade_off.png"])]
    text = ["![Coverage at the risk against cost](figures/cascade_trade_off.png)"]
    for title, table, note, wrap in parts:
        body += [f"<h2>{title}</h2>", table.html(wrap=wrap), f'<p class="note">{html.escape(note)}</p>']
        text += [f"## {title}", table.markdown(), note]
    body += ["<h2>What the later stage changed</h2>", figures.to_svg(pictures["cascade_changes.png"])]
    text += ["## What the later stage changed", "![Decisions that changed](figures/cascade_changes.png)"]
    if document["ood"]:
        body += ["<h2>Inputs from outside the training distribution</h2>", ood_table(document).html()]
        text += ["## Inputs from outside the training distribution", ood_table(document).markdown()]
    if document["shifts"]:
        pictures["cascade_shift.png"] = figures.cascade_shift(document)
        note = (
            "Labels are kept, so that a wrong answer is an error here too. Windows and τ are those of the calibration split; the moved window lies around the same τ, "
            f"with the same share of this set on either side, labels unseen. Nothing is promised of the risk under shift. Brackets: {level} intervals over {document['intervals_cover']}."
        )
        body += ["<h2>Under shift</h2>", figures.to_svg(pictures["cascade_shift.png"])]
        body += [shift_table(document).html(), f'<p class="note">{html.escape(note)}</p>']
        text += ["## Under shift", "![Cost and risk on shifted sets](figures/cascade_shift.png)"]
        text += [shift_table(document).markdown(), note]
    if document["search"]:
        pictures["cascade_search.png"] = figures.cascade_search(document)
        policies = document["search"][0]["policies"]
        note = (
            f"{policies:,.0f} policies per cascade (every order of the networks, window and threshold of a grid) on one half of the calibration split; the best of them within "
            f"each budget, on all three. It is the best of many where it was chosen, and promises nothing elsewhere. Brackets: {level} bands that hold for all budgets at once. "
        )
        if settings["task"]["kind"] == "risk":
            note += (
                f"Certified: of policies for stricter and stricter risks, tested on the other half one after the other (learn-then-test), the one "
                f"that accepts most: with probability {1 - settings['delta']:g} over that half its selective risk and its mean cost both keep their bounds, "
                "for one cascade and one budget. Where none is found nothing is accepted; risk and cost are means over those found."
            )
        body += ["<h2>The best policy within a budget</h2>", figures.to_svg(pictures["cascade_search.png"])]
        body += [search_table(document).html(), f'<p class="note">{html.escape(note)}</p>']
        text += ["## The best policy within a budget", "![On three splits](figures/cascade_search.png)"]
        text += [search_table(document).markdown(), note]
    if document["chosen"]:
        body += ["<h2>For the budget that was asked for</h2>", chosen_table(document).html(wrap=True)]
        text += ["## For the budget that was asked for", chosen_table(document).markdown()]
    return pictures, "\n".join(body), "\n\n".join(text) + "\n"


def head(document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """The head of the pages of a study of cascades, or of any files: the finding as title; returns as `pages.of_study`."""
    title = claim(document["cascades"])
    return {}, f"<h1>{html.escape(title)}</h1>", f"# {title}\n"


def members(workdir: Path, document: dict[str, Any]) -> tuple[dict[str, Figure], str, str]:
    """After the cascades of a study, its networks one by one; returns as `pages.of_study`."""
    pictures, body, text = of_grid(workdir, document)
    body = body.replace("<h1>", "<h2>Each network alone: ").replace("</h1>", "</h2>")
    return pictures, body, text.replace("# ", "## Each network alone: ", 1)
