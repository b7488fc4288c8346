"""Puts the numbers into the docs: every block between `<!-- generated: name -->` and `<!-- end -->` is made here.

    make docs

Copies what the runs under `runs/label_smoothing-*`, `runs/cascades-*`, `runs/scod*-*` and `runs/abstention-*` left into `experiments/<study>/results/`, executes the notebooks whose
default run is there or that read none, and fills the blocks from those results and from `benchmarks/results/*.json`. Runs that are not there are
skipped: their last results stay.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import metrics as benchmark_of_metrics  # noqa: E402
from sc_jax import cascade_pages, files, ops, pages, tables  # noqa: E402 (the docs are built from the checkout)
from sc_jax.methods import abstention_table, logit_statistics  # noqa: E402
from sc_jax.models import pretrained  # noqa: E402
from sc_jax.ops.areas import ESTIMATORS  # noqa: E402
from sc_jax.training.logs import read_header, read_log  # noqa: E402

STUDY, CASCADES, SCOD, ABSTENTION = (
    ROOT / "experiments" / name for name in ("label_smoothing", "cascades", "scod", "abstention")
)
DOCUMENTS = (
    *(ROOT / "README.md", ROOT / "docs/metrics.md", ROOT / "docs/guarantees.md", ROOT / "docs/cascades.md"),
    *(ROOT / "docs/survival.md", ROOT / "docs/scaling.md", ROOT / "docs/speed.md", ROOT / "docs/recipes.md"),
    *(STUDY / "README.md", CASCADES / "README.md", SCOD / "README.md", ABSTENTION / "README.md"),
)


def _metrics(variant: str) -> dict[str, Any]:
    return files.read_json(STUDY / "results" / variant / "metrics.json")


def _benchmark(name: str) -> dict[str, Any]:
    return files.read_json(ROOT / "benchmarks/results" / f"{name}.json")


def _machine(figures: dict[str, Any]) -> str:
    m = figures["machine"]
    return f"{m['cores']} cores of {m['cpu']}, Python {m['python']}, jax {m['jax']}, {m['date']}"


def finding() -> str:
    """The finding of the default run in three rows."""
    document = _metrics("default")
    cells = [("cross-entropy, MSP", (0.0, "msp")), ("label smoothing α = 0.2, MSP", (0.2, "msp"))]
    cells += [("label smoothing α = 0.2, p-norm", (0.2, "max_logit_pnorm"))]
    names = ("error", "aurc", "naurc", "coverage_at_risk_0.05")
    rows = []
    for label, cell in cells:
        metrics = next(r for r in document["aggregates"] if (r["alpha"], r["score"]) == cell)["metrics"]
        rows.append([label, *(tables.with_interval(name, metrics[name]) for name in names)])
    table = tables.Table(["Fashion-MNIST, 12,000 images, MLP", *(tables.heading(name) for name in names)], rows)
    seeds = document["aggregates"][0]["seeds"]
    return (
        f"{table.markdown()}\n\nMean of {seeds} seeds with 95 % intervals over seeds and test examples; this is what `make run` "
        "makes, in full in [experiments/label_smoothing](experiments/label_smoothing/README.md)."
    )


def stages() -> str:
    """What `make run` costs."""
    f = _benchmark("run_stages")
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in f["seconds"].items())
    return (
        f"`make run` took {f['seconds_total']:.0f} s after its install ({parts}), {f['peak_bytes'] / 2**30:.1f} GiB at most and "
        f"{f['workdir_bytes'] / 2**20:.0f} MiB of disk; again, when all is done, {f['seconds_again']:.0f} s ({_machine(f)})."
    )


def training() -> str:
    """25 members as one program."""
    f = _benchmark("training")["study"]
    rate, share = f["members_examples_per_second"], f["share_of_matmul_rate"]
    table = tables.Table(
        [f"{f['model']}, {f['members']} members", "members·examples/s", "of the 2048³ product's rate", "whole study"],
        [
            [label, f"{rate[key]:,.0f}", f"{share[key]:.0%}", f"{f['study_seconds'][key]:.0f} s"]
            for label, key in (("one program", "one_program"), ("one after the other", "one_after_the_other"))
        ],
    )
    low, high = min(f["speedup_of_each_round"]), max(f["speedup_of_each_round"])
    return (
        f"{table.markdown()}\n\nOn this CPU one program runs at {f['speedup']:.2f} times the rate of members one after the other "
        f"({low:.2f}–{high:.2f} over {len(f['speedup_of_each_round'])} rounds), not several times as fast, since the optimiser state of one "
        f"member stays in the cache and that of all does not. What one program gains on an accelerator is not measured yet. {_machine(f)}; `make bench` measures "
        "it on your machine."
    )


def _kept(name: str) -> dict[str, Any] | None:
    path = ROOT / "benchmarks/results" / f"{name}.json"
    return files.read_json(path) if path.exists() else None


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _where(row: dict[str, Any]) -> str:
    return f"{_machine(row)}, load {row['load']:.1f}"


def speed_study() -> str:
    """The members of the default study as one program, with the aims."""
    f = (_kept("training") or {}).get("study")
    if f is None or "aims" not in f:
        return "Not measured."
    share, speed, aims = f["share_of_matmul_rate"], f["speedup"], f["aims"]
    rows = [
        [
            "one program against 25 runs",
            f"{speed:.2f} times as fast",
            f"{aims['speedup']:.1f}",
            _yes(speed >= aims["speedup"]),
        ],
        *(
            [label, f"{share[key]:.0%} of the product's rate", f"{aims[key]:.0%}", _yes(share[key] >= aims[key])]
            for label, key in (("one batch for all", "shared_batch"), ("a batch each", "batch_each"))
        ),
    ]
    return f"{tables.Table([f['model'] + ', 25 members', 'measured', 'aim', 'met'], rows).markdown()}\n\n{_where(f)}."


def speed_members() -> str:
    """Members in one program by mapping."""
    f = _kept("training")
    if f is None or not f.get("rows_of_members"):
        return "Members by mapping: not measured."
    rows = []
    for row in f["rows_of_members"]:
        speedup, compiling = row["speedup"], row["compile_seconds"]
        cells = [
            f"{speedup[name]:.2f} ({compiling[name]:.0f} s)" if name in speedup else "–"
            for name in ("vmap", "unroll", "map", "sharded")
        ]
        rate = row["members_examples_per_second"]["one_after_the_other"]
        rows.append([f"{row['network']}, batch {row['batch']}", str(row["members"]), f"{rate:,.0f}", *cells])
    headings = ["", "M", "one after the other, examples/s", "vmap: times that (compiling)", "unroll", "map", "sharded"]
    return f"{tables.Table(headings, rows).markdown()}\n\n{_where(f['rows_of_members'][-1])}."


def speed_networks() -> str:
    """Training of one member of each network."""
    f = _kept("training")
    if f is None or not f.get("rows_of_networks"):
        return "Training of each network: not measured."
    rows = [
        [
            row["network"],
            str(row["batch_size"]),
            *(f"{row['examples_per_second'][way]:,.1f}" for way in ("sc_jax", "torch")),
            *(f"{row['share_of_matmul_rate'][way]:.0%}" for way in ("sc_jax", "torch")),
            f"{row['share_of_input']:.0%}",
        ]
        for row in f["rows_of_networks"]
    ]
    headings = ["training", "batch", "examples/s", "PyTorch", "of the product's rate", "PyTorch", "time in input"]
    return f"{tables.Table(headings, rows).markdown()}\n\n{_where(f['rows_of_networks'][-1])}."


def speed_predict() -> str:
    """Prediction with each network."""
    f = _kept("predict")
    if f is None:
        return "Prediction of each network: not measured."
    rows = [
        [
            row["network"],
            str(row["batch"]),
            *(
                f"{row['examples_per_second'][way]:,.1f}"
                if way in row["examples_per_second"]
                else f"fails: {row['torch_compile_fails']}"
                for way in ("sc_jax", "torch", "torch_compile")
            ),
            *(f"{row['share_of_matmul_rate'][way]:.0%}" for way in ("sc_jax", "torch")),
        ]
        for row in f["rows"]
    ]
    headings = ["prediction", "batch", "examples/s", "PyTorch", "compiled", "of the product's rate", "PyTorch"]
    return f"{tables.Table(headings, rows).markdown()}\n\n{_where(f['rows'][-1])}."


def speed_input() -> str:
    """Decoding of JPEGs."""
    f = _kept("input")
    if f is None:
        return "Not measured."
    by, used = f["images_per_second_by_threads"], f["images_per_processor_second_by_threads"]
    rows = [[n, f"{by[n]:.0f}", f"{used[n]:.0f}"] for n in by]
    needs = "; ".join(
        f"{name} at {need['images_per_second']:,.0f} images/s takes {need['cores']:.0f} cores"
        for name, need in f["cores_a_gpu_needs"].items()
    )
    return (
        f"{tables.Table(['threads', 'images/s', 'images per second of processor'], rows).markdown()}\n\nJPEGs of {f['pixels'][0]}×{f['pixels'][1]}, "
        f"{f['jpeg_bytes'] / 1000:.0f} KB. Arithmetic, not a measurement: {needs} like one of these, at rates that are assumed. Flips and RandAugment run on the device "
        f"({f['on_device_augmentation_images_per_second']:.0f} images/s on this CPU). {_where(f)}."
    )


def speed_evaluate() -> str:
    """Evaluation of ImageNet-size predictions."""
    f = _kept("evaluate")
    if f is None:
        return "Not measured."
    aim, each = f["aim"], f["seconds_of_each_run"]
    rows = [
        [
            f"seconds, median of {len(each)} runs",
            f"{f['seconds']:.0f} ({min(each):.0f} to {max(each):.0f})",
            f"{aim['seconds']:.0f}",
            _yes(f["seconds"] <= aim["seconds"]),
        ],
        ["seconds of processor, on two cores", f"{f['processor_seconds']:.0f}", "", ""],
        [
            "largest memory, GiB",
            f"{f['peak_bytes'] / 2**30:.2f}",
            f"{aim['bytes'] / 2**30:.0f}",
            _yes(f["peak_bytes"] <= aim["bytes"]),
        ],
    ]
    return (
        f"{tables.Table(['', 'measured', 'aim', 'met'], rows).markdown()}\n\n{f['examples']:,} × {f['classes']:,} float32 and as many to calibrate on, {len(f['scores'])} scores "
        f"with all metrics, {f['resamples']:,} resamples. {_where(f)}."
    )


def sweep() -> str:
    """A sweep that is killed."""
    f = _kept("sweep")
    if f is None:
        return "Not measured."
    of_sweep = sum(kill["what"] == "sweep" for kill in f["kills"])
    return (
        f"{f['runs']} runs, {f['parallel']} at once, {len(f['kills'])} kills at seeded random moments, {of_sweep} of them of the sweep itself: {f['done']} runs done after "
        f"{f['starts']} starts, lost {len(f['lost'])}, other metrics than a run that nobody killed {len(f['wrong'])} of {f['compared']} compared; {f['seconds']:.0f} s. "
        f"{_machine(f)}."
    )


def interval_coverage() -> str:
    """How often intervals hold the truth."""
    f = _benchmark("interval_coverage")
    rows = [
        [f"{r['seeds']:g}", f"{r['examples']:g}", f"{r['interaction']:g}", f"{r['crossed']:.1%}", f"{r['t']:.1%}"]
        for r in f["rows"]
    ]
    headings = ["SD from seeds", "from examples", "from their interaction", "crossed bootstrap holds", "t holds"]
    return (
        f"{tables.Table(headings, rows).markdown()}\n\n{f['n_seeds']} seeds, {f['studies']:,} simulated studies a row, 95 % intervals "
        "(`python -m benchmarks.interval_coverage`)."
    )


ESTIMATOR_EXAMPLES = (
    ("a perfect ranking", (0.9, 0.8, 0.7, 0.6, 0.5), (0, 0, 0, 1, 1)),
    ("an error in front", (0.9, 0.8, 0.7, 0.6, 0.5), (1, 0, 0, 0, 1)),
    ("ties", (0.9, 0.7, 0.7, 0.7, 0.5), (0, 1, 0, 0, 1)),
    ("all tied", (0.5,) * 5, (0, 0, 0, 1, 1)),
)


def estimators() -> str:
    """AURC of small samples by every estimator."""
    rows = []
    for label, score, loss in ESTIMATOR_EXAMPLES:
        values = [ops.aurc(np.array(score), np.array(loss), estimator) for estimator in ESTIMATORS]
        shown = " ".join(f"{s:g}".lstrip("0") for s in score), " ".join(map(str, loss))
        rows.append([label, *shown, *(f"{float(value):.6g}" for value in values)])
    return tables.Table(["", "scores", "errors", *(f"`{name}`" for name in ESTIMATORS)], rows).markdown()


def file_coverage() -> str:
    """How often intervals of one file hold the truth."""
    f = _benchmark("interval_coverage")
    names = {"aurc": "AURC", "failure_auroc": "failure AUROC"}
    rows = [
        [f"{r['error']:.1%}", str(r["n"]), names[r["metric"]], f"{r['percentile']:.1%}", f"{r['bca']:.1%}"]
        for r in f["one_file"]
    ]
    return (
        f"{tables.Table(['error', 'n', 'metric', 'percentile holds', 'BCa holds'], rows).markdown()}\n\n{f['files']:,} simulated files a row, 95 "
        f"% intervals of 1,000 resamples; the standard error of a share is {100 * (0.95 * 0.05 / f['files']) ** 0.5:.1f} points "
        "(`python -m benchmarks.interval_coverage`)."
    )


def validity() -> str:
    """How often promises were broken, and what coverage was paid for keeping them."""
    f = _benchmark("validity")
    by_method: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    for row in f["rows"]:
        by_method.setdefault((row["broken"], row["method"]), []).append(row)
    rows = []
    for (broken, method), found in sorted(by_method.items(), key=lambda item: item[0][0]):
        worst = max(found, key=lambda row: row["rate"] / row["level"])
        tight = [row for row in found if row.get("oracle_coverage", 0) > 0]
        cells = (
            [f"{np.mean([row[name] for row in tight]):.3f}" for name in ("coverage_lost", "abstains")]
            if tight
            else ["–", "–"]
        )
        kept = "fails" if any(row["fails"] for row in found) else "holds"
        rows.append(
            [
                f"{method} (broken)" if broken else method,
                str(len(found)),
                f"{worst['rate']:.4f} of {worst['level']:g}",
                worst["setting"],
                kept,
            ]
            + (["–", "–"] if broken else cells)
        )
    headings = ["method", "settings", "worst rate", "where", "verdict", "coverage lost", "accepts nothing"]
    return (
        f"{tables.Table(headings, rows).markdown()}\n\n{f['draws']:,} calibration sets a setting. The rate is of violations, in any stratum of a "
        "promise within strata; for crc and singletons the mean of P(accepted and wrong), for sets and the conformal quantile of P(missed), beside "
        "α, in the worst stratum. Coverage lost is that of the best threshold had the "
        "population been known, less the method's, in the mean over settings where such a threshold is; to accept nothing counts as coverage 0"
        + (
            "; some settings are outputs of published CIFAR-10 networks, their pool as population"
            if f["published_outputs"]
            else ""
        )
        + " (`python -m benchmarks.validity`)."
    )


def metrics() -> str:
    """The metrics against other packages; the aims stand in docs/metrics.md."""
    areas, others, _, note = benchmark_of_metrics.tables(_metric_figures()).split("\n\n")
    return "\n\n".join([areas, others, note])


def metric_aims() -> str:
    """What the metrics were to reach, and what they do."""
    return benchmark_of_metrics.tables(_metric_figures()).split("\n\n")[2]


def _metric_figures() -> dict[str, Any]:
    figures = _benchmark("metrics")
    return figures | {"targets": benchmark_of_metrics.targets(figures["cases"], figures["report"])}


def models() -> str:
    """What each backbone costs, whether it equals timm's, and which weights it reads."""
    sizes, parity = _benchmark("models"), _benchmark("parity")
    rows = []
    for name, row in sizes["models"].items():
        equal, published = parity["timm"].get(name), parity["published_weights"].get(name)
        if equal:
            figure = f"{equal['relative_error']:.1e}"
        elif published:
            figure = f"accuracy {published['accuracy']:.4f}"
        else:
            figure = "–"
        weights = _WEIGHTS.get(name) or ", ".join(map(_source, pretrained.sources(name))) or "ours"
        shape = "×".join(map(str, row["input_shape"]))
        rows.append([f"`{name}`", shape, f"{row['parameters']:,}", _amount(row["macs"]), figure, weights])
    table = tables.Table(["backbone", "input", "parameters", "MACs", "parity", "weights it reads"], rows)
    without = "; ".join(f"{name}: {reason}" for name, reason in parity["without"].items())
    peers, date = parity["machine"]["peers"], parity["machine"]["date"]
    return (
        f"{table.markdown()}\n\nParity: largest difference of logits from timm's PyTorch model with the same random weights and batch "
        f"statistics, over its largest logit, at its own resolution (aim {parity['limit']:.0e}; parameter counts are equal, and the export is equal bit "
        f"for bit). The last norm of each block is scaled by 0.2, as training leaves it: at 1 rounding is amplified, and ResNet-152 differs by "
        f"{parity['timm_unscaled']['resnet152']['relative_error']:.0e}, timm's own float32 from its float64 by "
        f"{parity['timm_unscaled']['resnet152']['rounding_of_timm']:.0e}. Of the CIFAR-10 ResNets it is the accuracy of published weights on 10,000 JPEG copies of the test images, PyTorch's own to four decimals. "
        f"Without parity: {without}. `python -m benchmarks.parity`, timm {peers['timm']}, torch {peers['torch']}, {date}."
    )


def _source(name: str) -> str:
    return {"akamaster": "akamaster/pytorch_resnet_cifar10"}.get(name, name)


_WEIGHTS = {
    "densenet_bc_100": "timm's naming",
    "wide_resnet16_4": "xternalz/WideResNet-pytorch's naming",
    "wide_resnet28_10": "xternalz/WideResNet-pytorch's naming",
    "mobilenetv2_130": "timm's naming",
    "deeplabv3plus_resnet101": "backbone: ResNet-101's of timm, torchvision",
}
"""Where no weights of just this network are published."""


def _amount(macs: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if macs >= size:
            return f"{macs / size:.3g} {unit}"
    return str(macs)


def claims(variant: str) -> str:
    """The primary contrasts of a variant, with their verdicts."""
    path = STUDY / "results" / variant / "metrics.json"
    if not path.exists():
        return "Not run."
    document = _metrics(variant)
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    return f"**{pages.claim(document)}**\n\n{pages.contrast_table(primary, True).markdown()}"


SETTINGS = {
    "few": "Fashion-MNIST, 1,000 images, MLP",
    "default": "Fashion-MNIST, 12,000 images, MLP",
    "cnn": "Fashion-MNIST, 12,000 images, CNN",
    "cnn-first": "the same, a first CNN, replaced after its test results were there",
    "full": "Fashion-MNIST, 58,000 images, MLP",
    "full_cnn": "Fashion-MNIST, 58,000 images, CNN",
    "cifar10_jpeg": "CIFAR-10 as JPEG, 12,000 images, narrow ResNet-20",
    "trec": "TREC, LSTM",
    "sst2": "SST-2, LSTM",
    "adult": "Adult, MLP",
    "online_shoppers": "Online Shoppers, MLP",
}
"""The rows of the evidence, in order; those that have been run have a folder of results."""


def _settings() -> dict[str, dict[str, Any]]:
    return {name: _metrics(name) for name in SETTINGS if (STUDY / "results" / name / "metrics.json").exists()}


def verdicts() -> str:
    """Claim → verdict → evidence, over all settings."""
    rows = []
    claims: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for name, document in _settings().items():
        for row in document["contrasts"]:
            if row["kind"] == "primary":
                claims.setdefault((row["claim"], row["metric"]), []).append((name, row))
    for (claim, metric), found in claims.items():
        confirmed = [name for name, row in found if row["verdict"] == "confirmed"]
        rows += [
            [
                f"**{claim}**: {len(confirmed)} of {len(found)}" if i == 0 else "",
                SETTINGS[name],
                row["verdict"],
                tables.with_interval(metric, row).replace("-", "−"),
                f"[{name}](results/{name}/metrics.json)",
            ]
            for i, (name, row) in enumerate(found)
        ]
    return tables.Table(["claim", "setting", "verdict", "difference [95 %]", "evidence"], rows).markdown()


def rows() -> str:
    """Every setting under cross-entropy, smoothing, and smoothing with p-norm."""
    lines = []
    names = ("error", "aurc", "naurc", "failure_auroc", "coverage_at_risk_0.05")
    for name, document in _settings().items():
        alpha = next(r["treatment"]["alpha"] for r in document["contrasts"] if r["kind"] == "primary")
        aggregates = {(row["alpha"], row["score"]): row for row in document["aggregates"]}
        for label, side in (
            ("CE", (0.0, "msp")),
            ("LS", (alpha, "msp")),
            ("LS + p-norm", (alpha, "max_logit_pnorm")),
            ("LS + p-norm or MSP", (alpha, "max_logit_pnorm_or_msp")),
        ):
            row = aggregates.get(side)
            cells = (
                ["not defined"] * len(names)
                if row is None
                else [tables.with_interval(n, row["metrics"][n]) for n in names]
            )
            first = f"{SETTINGS[name]}, α = {alpha:g}, {aggregates[0.0, 'msp']['seeds']} seeds" if label == "CE" else ""
            lines.append([first, label, *cells])
    return tables.Table(["setting", "", *(tables.heading(name) for name in names)], lines).markdown()


def repairs(variant: str) -> str:
    """Post-hoc scores on cross-entropy and on smoothing: NAURC, and its difference to MSP."""
    document = _metrics(variant)
    alpha = next(r["treatment"]["alpha"] for r in document["contrasts"] if r["kind"] == "primary")
    aggregates = {(row["alpha"], row["score"]): row for row in document["aggregates"]}
    against = {
        (row["treatment"]["alpha"], row["treatment"]["score"]): row
        for row in document["contrasts"]
        if row["metric"] == "naurc"
        and row["treatment"]["alpha"] == row["control"]["alpha"]
        and row["control"]["score"] == "msp"
    }
    lines = []
    for score in dict.fromkeys(score for _, score in aggregates):
        cells = []
        for a in (0.0, alpha):
            told = against.get((a, score))
            cells += [tables.with_interval("naurc", aggregates[a, score]["metrics"]["naurc"])]
            cells += ["" if told is None else tables.with_interval("naurc", told)]
        lines.append([pages.SCORE_NAMES[score], *cells])
    headings = ["score", "NAURC, CE", "minus MSP", f"NAURC, LS α = {alpha:g}", "minus MSP"]
    return tables.Table(headings, lines).markdown()


def _alpha(document: dict[str, Any]) -> float:
    """The α of a study's first primary contrast."""
    return next(r["treatment"]["alpha"] for r in document["contrasts"] if r["kind"] == "primary")


def _told(row: dict[str, Any] | None) -> str:
    """A difference with its interval; "not defined" where there is none."""
    return "not defined" if row is None else tables.number_with_interval(row["estimate"], row["interval"], signed=True)


def _compared(document: dict[str, Any], metric: str, *sides: tuple[float | str, str]) -> dict[str, Any] | None:
    """The contrast of (α or objective, score) with another, if it was made."""
    for row in (*document["contrasts"], *document.get("objectives", {}).get("contrasts", [])):
        there = ((row[s].get("objective", row[s].get("alpha")), row[s]["score"]) for s in ("treatment", "control"))
        if row["metric"] == metric and tuple(there) == sides:
            return row
    return None


def gaps() -> str:
    """The max logit at equal MSP beside the damage and the repair, setting by setting."""
    lines = []
    for name, document in _settings().items():
        alpha = _alpha(document)
        smooth, several = (alpha, "msp"), any(r["score"] == "max_logit_pnorm" for r in document["aggregates"])
        gap = {row["alpha"]: row for row in document["max_logit_gap"]} if several else {}
        cells = [_told(gap[a]["centred"] if gap else None) for a in (0.0, alpha)]
        cells.append(_told(gap[alpha]["centred_minus_alpha_0"] if gap else None))
        cells.append(_told(_compared(document, "naurc", smooth, (0.0, "msp"))))
        cells.append(_told(_compared(document, "naurc", (alpha, "max_logit_pnorm"), smooth)))
        lines.append([f"{SETTINGS[name]}, α = {alpha:g}", *cells])
    headings = ["setting", "gap, CE", "gap, LS", "LS minus CE", "damage: NAURC, LS minus CE"]
    return tables.Table([*headings, "repair: NAURC under LS, p-norm minus MSP"], lines).markdown()


REPAIRED = ("full", "full_cnn")
"""Variants whose predictions went through `evaluation.repair`."""


def best_norms() -> str:
    """The p that is best on the test split, with and without centring, less MSP."""
    lines = []
    for variant in REPAIRED:
        document = _metrics(variant)
        for alpha in (0.0, _alpha(document)):
            for centred in (True, False):
                of = [r for r in document["repair"]["norms"] if (r["alpha"], r["centred"]) == (alpha, centred)]
                best, worst = (of_all(of, key=lambda r: r["minus_msp"]["naurc"]["estimate"]) for of_all in (min, max))
                cells = [cell for r in (best, worst) for cell in (str(r["p"]), _told(r["minus_msp"]["naurc"]))]
                above = sum(r["minus_msp"]["naurc"]["interval"][0] > 0 for r in of)
                setting = f"{SETTINGS[variant]}, α = {alpha:g}" if centred else ""
                lines.append([setting, "yes" if centred else "no", *cells, f"{above} of {len(of)}"])
    headings = [
        "setting",
        "centred",
        "best p",
        "NAURC, minus MSP",
        "worst p",
        "NAURC, minus MSP",
        "p shown to be worse",
    ]
    return tables.Table(headings, lines).markdown()


def calibration_sizes() -> str:
    """What choosing p on so many calibration examples costs."""
    lines, columns = {}, []
    for variant in REPAIRED:
        document = _metrics(variant)
        alpha = _alpha(document)
        columns.append(f"{SETTINGS[variant]}: excess AURC %")
        for row in document["repair"]["learning_curve"]:
            if row["alpha"] == alpha and not row["fallback"]:
                told = row["regret"]["aurc"]
                cell = tables.number_with_interval(told["estimate"], told["interval"], 100)
                lines.setdefault(row["size"], []).append(cell)
    return tables.Table(
        ["calibration examples", *columns], [[f"{n:,}", *cells] for n, cells in lines.items()]
    ).markdown()


def _ensembles(variant: str, alpha: float) -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["average"], r["score"]): r for r in _metrics(variant)["repair"]["ensembles"] if r["alpha"] == alpha}


def ensembles() -> str:
    """What deep ensembles leave of the damage, and p-norm before and after averaging, as NAURC."""
    lines = []
    for variant in REPAIRED:
        alpha, normed = _alpha(_metrics(variant)), "max_logit_pnorm"
        of = _ensembles(variant, alpha)
        damaged = (of["single_members", "msp"], of["mean_probabilities", "msp"])
        shown = [_told(row["minus_alpha_0"]["naurc"]) for row in damaged]
        for row in (of[average, normed] for average in ("mean_normalised", "mean_logits")):
            naurc = row["metrics"]["naurc"]
            shown.append(tables.number_with_interval(naurc["estimate"], naurc["interval_p_chosen_anew"]))
            shown.append(_told(row["minus_msp"]["naurc"]))
        lines.append([f"{SETTINGS[variant]}, α = {alpha:g}, {of['mean_logits', normed]['members']} members", *shown])
    headings = ["ensemble", "damage to single members", "damage to the ensemble"]
    headings += [f"p-norm {when}{what}" for when in ("before", "after") for what in (" averaging", ", minus MSP")]
    return tables.Table(headings, lines).markdown()


def ensemble_contrasts(variant: str) -> str:
    """Every ensemble at the study's α less the ensemble of α = 0 by MSP, and p-norm before averaging less that after."""
    rows = _ensembles(variant, _alpha(_metrics(variant))).values()
    if not all("minus_after" in row for row in rows):
        return "Not run."
    lines = []
    for row in rows:
        cells = (row[name] and row[name]["naurc"] for name in ("minus_alpha_0_msp", "minus_after"))
        name = f"{pages.AVERAGES[row['average']]}, {pages.SCORE_NAMES[row['score']]}"
        lines.append([name, *("" if cell is None else _told(cell) for cell in cells)])
    headings = [SETTINGS[variant], "NAURC, minus the ensemble of α = 0 by MSP", "p-norm before minus after averaging"]
    return tables.Table(headings, lines).markdown()


SPARING = ("error_smoothing=0.2", "equal_suppression=0.2")
BESIDE = (
    "max_suppression=0.2",
    "instance_smoothing=0.2",
    "inverse_instance_smoothing=0.2",
    "margin_smoothing=10",
    "acls=0.1",
)
"""What was built to spare the ranking, and the published objectives that it is compared with."""


def objective_contrasts() -> str:
    """Exploratory: what spares the ranking against published objectives, and some of these against label smoothing."""
    document = _metrics("objectives")
    pairs = [(a, b) for a in SPARING for b in BESIDE]
    pairs += [(a, 0.2) for a in (*BESIDE[:2], "shuffled_error_smoothing=0.2")]
    found = {
        pair: [_compared(document, metric, *((side, "msp") for side in pair)) for metric in ("naurc", "error")]
        for pair in pairs
    }
    if any(None in told for told in found.values()):
        return "Not run."
    lines = [
        [
            *(pages.treatment_name(naurc[side]) for side in ("treatment", "control")),
            _told(naurc),
            tables.number_with_interval(error["estimate"], error["interval"], 100, signed=True),
        ]
        for naurc, error in found.values()
    ]
    return tables.Table(["trained with", "minus", "NAURC", "error, points"], lines).markdown()


def while_training(variant: str) -> str:
    """Means over the last step's statistics of the logits, right and wrong, trained on and held out."""
    path = STUDY / "results" / variant / "logit_statistics.json"
    if not path.exists():
        return "Not run."
    f, lines = files.read_json(path), []
    for alpha in (0.0, _alpha(_metrics(variant))):
        for split, rows in f["splits"].items():
            row = next(row for row in rows if row["alpha"] == alpha)
            count = np.array(row["count"], float)

            def mean(name: str, row: dict[str, Any] = row, count: np.ndarray = count) -> np.ndarray:
                return np.nansum(count * np.array(row[name], float), axis=1)

            kinds = count.sum(axis=1)
            extra = mean("extra_gradient").sum() / kinds.sum()
            each = (mean(name) / kinds for name in ("centred_max_logit", "norm"))
            cells = [f"{value:.2f}" for pair in each for value in pair]
            lines.append(
                [f"{alpha:g}", split, f"{kinds[1] / kinds.sum():.2%}", f"{extra:.4f}".replace("-", "−"), *cells]
            )
    headings = ["α", "split", "wrong", "mean extra gradient on the max logit", "max logit − mean logit, right", "wrong"]
    headings += [f"‖logits‖ with p = {f['p']:g}, right", "wrong"]
    return f"{tables.Table(headings, lines).markdown()}\n\n{SETTINGS[variant]}, step {f['step']:,}, the last; all seeds together."


def statistics_cost() -> str:
    """What the statistics of the logits cost."""
    f = _benchmark("logit_statistics")
    return (
        f"For {f['members']} members of {f['model']}, every {f['statistics_every']} steps, {f['statistics_examples']:,} examples of each split: "
        f"{f['share_of_training']:.1%} of the training time ({_machine(f)}; `python -m benchmarks.logit_statistics`)."
    )


def study_cost() -> str:
    """Wall time of the studies by stage, where a run left it."""
    stages, lines = ("train", "predict", "evaluate", "report"), []
    for name in (*SETTINGS, "objectives"):
        path = STUDY / "results" / name / "timings.json"
        if path.exists():
            seconds = {stage: row["seconds"] for stage, row in files.read_json(path).items() if stage in stages}
        elif name == "default":
            seconds = _benchmark("run_stages")["seconds"]
        else:
            continue
        cells = [f"{seconds[stage]:,.0f}" if stage in seconds else "" for stage in stages]
        lines.append([SETTINGS.get(name, "objectives"), *cells, f"{sum(seconds.values()) / 60:,.1f}"])
    headings = ["setting", *(f"{stage}, s" for stage in stages), "in all, minutes"]
    return tables.Table(headings, lines).markdown()


STORED = ("resnet20", "resnet32", "resnet44", "resnet56")
"""Variants of the study's stored_resnets.py."""


def stored() -> str:
    """Networks of others: what MSP comes to, and of every other score the NAURC less that of MSP."""
    lines, scores = [], {}
    metrics = ("error", "aurc", "naurc", "failure_auroc", "coverage_at_risk_0.05")
    for variant in STORED:
        document = _metrics(f"stored_resnets_{variant}")
        naurc = {row["score"]: row["metrics"]["naurc"] for row in document["aggregates"]}
        msp = next(row["metrics"] for row in document["aggregates"] if row["score"] == "msp")
        against = {
            row["treatment"]["score"]: row
            for row in document["contrasts"]
            if row["metric"] == "naurc" and row["control"]["score"] == "msp"
        }
        scores |= dict.fromkeys(naurc)
        lines.append([variant.replace("resnet", "ResNet-")])
        lines[-1] += [tables.with_interval(metric, msp[metric]) for metric in metrics]
        lines[-1] += [_told(against[score]) for score in scores if score != "msp"]
        low, high = against["max_logit_pnorm"]["interval"]
        lines[-1].append("worse than MSP" if low > 0 else "better than MSP" if high < 0 else "not shown")
        fallback = next(row for row in document["aggregates"] if row["score"] == "max_logit_pnorm_or_msp")
        lines[-1].append(", ".join("MSP" if p == "msp" else f"p = {p}" for p in fallback["fitted"]))
    names = [f"{pages.SCORE_NAMES[score]}, NAURC minus MSP" for score in scores if score != "msp"]
    headings = ["network", *(f"{tables.heading(metric)}, MSP" for metric in metrics), *names]
    return tables.Table([*headings, "p-norm ranks", "the fallback takes"], lines).markdown()


def objectives() -> str:
    """What else was trained: error and NAURC by MSP and p-norm, and against cross-entropy."""
    path = STUDY / "results" / "objectives" / "metrics.json"
    if not path.exists():
        return "Not run."
    document = files.read_json(path)
    both = [*document["aggregates"], *document["objectives"]["aggregates"]]
    against = {
        pages.treatment_name(row["treatment"]): row
        for row in (*document["contrasts"], *document["objectives"]["contrasts"])
        if row["metric"] == "naurc"
        and row["treatment"]["score"] == "msp"
        and row["control"] == {"alpha": 0.0, "score": "msp"}
    }
    table = {(pages.treatment_name(row), row["score"]): row["metrics"] for row in both}
    names = sorted({name for name, _ in table}, key=lambda name: table[name, "msp"]["naurc"]["estimate"])
    lines = []
    for name in names:
        msp, normed = table[name, "msp"], table[name, "max_logit_pnorm"]
        told = against.get(name)
        lines.append(
            [
                name,
                *(tables.with_interval(metric, msp[metric]) for metric in ("error", "aurc", "naurc")),
                "" if told is None else tables.with_interval("naurc", told),
                tables.with_interval("naurc", normed["naurc"]),
            ]
        )
    headings = ["trained with", "error %", "AURC %, MSP", "NAURC, MSP", "NAURC minus α = 0", "NAURC, p-norm"]
    return tables.Table(headings, lines).markdown()


def _cascades(name: str) -> dict[str, Any]:
    return files.read_json(CASCADES / "results" / name / "metrics.json")["cascades"]


def cascade(name: str) -> str:
    """The finding of a study of cascades with its contrasts and policies."""
    document = _cascades(name)
    both = cascade_pages.claim_table(document), cascade_pages.policy_table(document)
    return "\n\n".join([f"**{cascade_pages.claim(document)}**", *(table.markdown() for table in both)])


def cascade_speed() -> str:
    """What a cascade costs when it runs."""
    f = _benchmark("cascades")
    rows = [
        [
            f"{b['batch']}",
            *(f"{b[f'{way}_images_per_second']:,.0f}" for way in ("first", "second", "predict", "function")),
        ]
        + [f"{b['predict_share_of_macs_promise']:.0%}", f"{b['function_share_of_macs_promise']:.0%}"]
        for b in f["batches"]
    ]
    headings = ["batch", "ResNet-20, images/s", "ResNet-56", "`predict`", "`as_function`"]
    table = tables.Table([*headings, "`predict`, of what MACs promise", "`as_function`"], rows)
    latency, search = f["latency"], f["search"]
    one = ", ".join(f"{name} {latency[f'{name}_milliseconds']:.2f} ms" for name in ("first", "second", "cascade"))
    return (
        f"{table.markdown()}\n\nResNet-20 → ResNet-56 on {f['examples']:,} images of 32×32, {f['passed_on']:.1%} passed on. One image at a time: {one}, "
        f"{latency['cascade_milliseconds'] / latency['first_milliseconds']:.2f} times the first where MACs say {latency['macs_promise']:.2f}. A search over "
        f"{search['policies']:,} policies on {search['examples']:,} examples: {search['seconds']:.2f} s. {_machine(f)} (`python -m benchmarks.cascades`)."
    )


def cascade_search(name: str) -> str:
    """The best policy of each budget on three splits."""
    return cascade_pages.search_table(_cascades(name)).markdown()


def cascade_shift(name: str) -> str:
    """What frozen and moved windows do on each shifted set, a row each, and on OOD examples."""
    document = _cascades(name)
    table: dict[str, dict[str, Any]] = {}
    for row in document["shifts"]:
        table.setdefault(row["set"], {})[row["policy"]] = row["metrics"]

    def cell(metrics: dict[str, Any], metric: str, factor: float = 1) -> str:
        return tables.number_with_interval(metrics[metric]["estimate"], metrics[metric]["interval"], factor)

    rows = []
    for set_name, of in table.items():
        costs = [cell(of[policy], "cost_multiple") for policy in ("single_threshold", "window", "window, moved")]
        passed = [cell(of[policy], "passed_on", 100) for policy in ("window", "window, moved")]
        risks = [cell(of[policy], "decided_risk", 100) for policy in ("single", "ensemble", "window", "window, moved")]
        rows.append([set_name, *costs, *passed, cell(of["window"], "decided_coverage", 100), *risks])
    told = {row["policy"]: row for row in document["ood"]}
    if told:

        def outside(policy: str, metric: str, factor: float = 1) -> str:
            row = told[policy]
            return tables.number_with_interval(row[f"{metric}_ood"], row[f"{metric}_ood_interval"], factor)

        costs = [outside(policy, "cost_multiple") for policy in ("single_threshold", "window", "window, moved")]
        passed = [outside(policy, "passed_on", 100) for policy in ("window", "window, moved")]
        accepted = tables.number(told["window"]["accepted_ood"], 100)
        rows.append(["OOD", *costs, *passed, accepted, *["–"] * 4])
    headings = [
        "set",
        "cost: single threshold",
        "window",
        "window, moved",
        "passed on %: window",
        "moved",
        "accepted %",
    ]
    headings += ["risk of the accepted %: one network", "ensemble", "window", "window, moved"]
    return tables.Table(headings, rows).markdown()


def cascade_rows(prefix: str) -> str:
    """Cascades of files whose results begin with `prefix`, a row each."""
    rows, risk = [], 0.0
    for path in sorted((CASCADES / "results").glob(f"{prefix}*")):
        document = _cascades(path.name)
        risk = document["settings"]["task"]["target"]
        of = {row["policy"]: row["metrics"] for row in document["policies"]}
        cells = []
        for policy in ("single", "ensemble", "single_threshold", "window"):
            value, cost = of[policy]["coverage_at_risk"], of[policy]["cost_multiple"]["estimate"]
            cells.append(f"{tables.number_with_interval(value['estimate'], value['interval'], 100)} at {cost:.2f}×")
        gain = of["ensemble"]["coverage_at_risk"]["estimate"] - of["single"]["coverage_at_risk"]["estimate"]
        kept = of["window"]["coverage_at_risk"]["estimate"] - of["single"]["coverage_at_risk"]["estimate"]
        more = [
            " / ".join(
                tables.number_with_interval(of[policy][metric]["estimate"], of[policy][metric]["interval"], 100)
                for policy in ("single", "ensemble", "window")
            )
            for metric in ("risk_at_coverage", "aurc")
        ]
        verdicts = [document["claims"][i]["verdict"] for i in (0, 1)]
        share = f"{100 * kept / gain:.0f} %" if gain > 0 else "no gain"
        rows.append([path.name.removeprefix("stored_").replace("_", " → "), *cells, share, "; ".join(verdicts), *more])
    headings = [
        "cascade",
        f"first network alone: Cov@{100 * risk:g} %",
        "ensemble",
        "single threshold",
        "window",
        "of the gain",
    ]
    headings += ["gain; 80 % kept", "Risk@80 %: single / ensemble / window", "AURC %"]
    return tables.Table(headings, rows).markdown()


def scaling() -> str:
    """Memory and operations of five members at ImageNet's size: arithmetic."""
    figures, members, devices, batch = _benchmark("scaling"), 5, 8, 256
    rows = []
    for name, one in figures["models"].items():
        p = 4 * one["parameters"] / 2**30  # GiB in float32
        kept = one["kept_bytes_per_image_bfloat16"] * batch / devices / 2**30
        step = 6 * one["macs"] * batch
        rows.append(
            [
                f"`{name}`",
                f"{one['parameters'] / 1e6:.1f} M",
                f"{one['macs'] / 1e9:.2f} G",
                f"{members * p:.2f}",
                f"{members * 4 * p:.2f}",
                f"{members * (2 * p + 3 * p / devices):.2f}",
                f"{kept:.2f}",
                f"{members * step / 1e12:.0f} · 10¹²",
                f"{members * 6 * one['macs'] * figures['images'] * 90 / 1e18:.0f} · 10¹⁸",
            ]
        )
    header = ["one member", "parameters", "MACs an image", f"parameters of {members}, GiB"]
    header += [
        "+ gradients + Adam's two moments, whole, GiB a device",
        f"the same with fsdp over {devices} devices, in a step",
    ]
    header += [f"kept for the backward pass by one member, bfloat16, {batch // devices} images a device, GiB at most"]
    header += [f"operations of a step of {members}, batch {batch}", "of 90 epochs"]
    table = tables.Table(header, rows)
    return table.markdown()


_INJECTED = {
    "kills": "SIGKILL, in train, predict, evaluate and report",
    "sigterm": "SIGTERM",
    "damage": "a truncation or a flipped bit in a file",
    "full_disk": "a full disk",
    "read_only": "a read-only disk, from the start or suddenly",
    "two_at_once": "a second run in the workdir",
}
"""The kinds of `benchmarks/results/chaos.json`, in order."""


def chaos() -> str:
    """What was injected, and what came of it."""
    if not (ROOT / "benchmarks/results/chaos.json").exists():
        return "Not run."
    f = _benchmark("chaos")
    rows = []
    for kind, label in _INJECTED.items():
        if kind not in f:
            rows.append([label, "not measured", *[""] * 6])
            continue
        counts = Counter(row["outcome"] for row in f[kind])
        unclear = counts["crashed"] + counts["refused without the name"]
        cells = [
            counts["recovered"],
            counts["refused"],
            counts["no effect"],
            unclear,
            counts["lost"],
            counts["silently wrong"],
        ]
        rows.append([label, *map(str, [len(f[kind]), *cells])])
    headings = [
        "",
        "injected",
        "recovered",
        "refused clearly",
        "without effect",
        "ended unclearly",
        "lost",
        "silently wrong",
    ]
    inside = sum(row["inside_a_write"] for row in f.get("kills", []))
    stopped = [row for row in f.get("sigterm", []) if row["stage"] == "train"]
    between, trained = sum(row["between_checkpoints"] for row in stopped), len(stopped)
    return (
        f"{tables.Table(headings, rows).markdown()}\n\n{inside} of the kills landed inside a write, which a temporary file or folder left there "
        f"shows; {between} of the {trained} SIGTERMs in training between two checkpoints. `make chaos`, {_machine(f)}."
    )


def damage() -> str:
    """The damage by kind of file."""
    if "damage" not in (_benchmark("chaos") if (ROOT / "benchmarks/results/chaos.json").exists() else {}):
        return "Not run."
    rows: dict[str, Counter[str]] = {}
    for row in _benchmark("chaos")["damage"]:
        rows.setdefault(row["kind"], Counter())[row["outcome"]] += 1
    names = ("recovered", "refused", "no effect", "silently wrong")
    table = [[kind, str(sum(c.values())), *(str(c[name]) for name in names)] for kind, c in rows.items()]
    return tables.Table(
        ["damaged", "times", "recovered", "refused clearly", "without effect", "silently wrong"], table
    ).markdown()


def fuzz() -> str:
    """The inputs that every reader got."""
    if not (ROOT / "benchmarks/results/fuzz.json").exists():
        return "Not run."
    f = _benchmark("fuzz")
    rows = [
        [f"`{r['reader']}`", f"{r['inputs']:,}", f"{r['loaded']:,}", f"{r['refused']:,}", str(len(r["failed"]))]
        for r in f["readers"]
    ]
    total = sum(r["inputs"] for r in f["readers"])
    growth = max(r["peak_growth_bytes"] for r in f["readers"])
    return (
        f"{tables.Table(['reader', 'inputs', 'valid', 'refused', 'anything else'], rows).markdown()}\n\n{total:,} inputs, in processes "
        f"whose address space could grow by {f['bounds']['memory_bytes'] / 2**30:g} GiB (memory grew by {growth / 2**20:.0f} MiB at most), "
        f"with {f['bounds']['seconds']} s for each input. `python -m tests.chaos.run --only=fuzz`, {_machine(f)}."
    )


SCOD_CELLS = (((0.5, 0.5), 0.05), ((0.5, 0.5), 0.2), ((0.5, 0.5), 0.5), ((0.75, 0.25), 0.2), ((0.25, 0.75), 0.2))
"""((cost of an outlier, of a wrong answer), share of outliers) of the columns."""


def scod(variant: str, kind: str) -> str:
    """AUC-RC of every rejector in some cells, of one kind of outliers."""
    path = SCOD / "results" / variant / "scod.json"
    if not path.exists():
        return "Not run."
    found = files.read_json(path)["tables"][kind]
    first, area = found[0], np.array([table["area"] for table in found])
    places = [(first["costs"].index(list(cost)), first["ood_shares"].index(share)) for cost, share in SCOD_CELLS]
    lines = []
    for s, name in enumerate(first["scores"]):
        cells = []
        for c, p in places:
            mean, ends = area[:, s, c, p].mean(), np.array(first["interval"])[:, s, c, p] - area[0, s, c, p]
            cells.append(tables.number_with_interval(mean, mean + ends, 100))
        lines.append([pages.SCORE_NAMES.get(name, name), *cells])
    headings = [f"costs {ood:g}, {wrong:g}; {share:.0%} OOD" for (ood, wrong), share in SCOD_CELLS]
    return tables.Table([f"{variant}, {kind}", *headings], lines).markdown()


def scod_mixing() -> str:
    """The share of inliers in the wild halves, as it is and as it was estimated."""
    rows = []
    for path in sorted((SCOD / "results").glob("*/scod.json")):
        found = files.read_json(path).get("mixing", [])
        if found:
            estimated = [f"{one['estimated']:.3f}" for one in found]
            rows.append([path.parent.name, f"{found[0]['known']:.3f}", ", ".join(estimated)])
    if not rows:
        return "Not run."
    return tables.Table(["variant", "π_mix", "estimated, each network"], rows).markdown()


def scod_shifts() -> str:
    """What frozen rejectors come to under corruptions, in the mean over families."""
    path = SCOD / "results/default/shifts.json"
    if not path.exists():
        return "Not run."
    lines = []
    for row in files.read_json(path)["rows"]:
        if row["corruption"] in ("clean", "mean"):
            names = ("coverage", "risk", "outliers_accepted", "joint_risk")
            cells = [tables.number_with_interval(row[name], row[f"{name}_interval"], 100) for name in names]
            lines.append([row["rejector"], str(row["severity"]), *cells])
    lines.sort(key=lambda line: line[0])
    headings = [
        "frozen rejector",
        "severity",
        "inliers accepted %",
        "risk of these %",
        "outliers accepted %",
        "joint risk × 100",
    ]
    return tables.Table(headings, lines).markdown()


def _abstention(variant: str) -> dict[str, Any] | None:
    path = ABSTENTION / "results" / variant / "metrics.json"
    return files.read_json(path) if path.exists() else None


def abstention(variant: str) -> str:
    """Selective error of every method by its own scores."""
    document = _abstention(variant)
    if document is None:
        return "Not run."
    plain, rows = {"alpha": 0.0, "score": "msp"}, []
    against = {
        (pages.treatment_name(row["treatment"]), row["treatment"]["score"]): row
        for row in (*document["contrasts"], *document["objectives"]["contrasts"])
        if row["metric"] == "aurc" and row["control"] == plain
    }
    for row in filter(abstention_table.of_interest, abstention_table.selective_errors(document)):
        name = "cross-entropy" if "alpha" in row.treatment else pages.treatment_name(row.treatment)
        cells = zip(row.risk, row.low, row.high, strict=True)
        told = against.get((pages.treatment_name(row.treatment), row.score))
        area = "" if told is None else tables.number_with_interval(told["estimate"], told["interval"], 100, signed=True)
        shown = (tables.number_with_interval(r, (a, b), 100) for r, a, b in cells)
        rows.append([name, pages.SCORE_NAMES[row.score], *shown, area])
    coverages = (f"{coverage} %" for coverage in abstention_table.COVERAGES)
    headings = ["trained with", "ranked by", *coverages, "AURC %, less that of the first"]
    seeds = document["aggregates"][0]["seeds"]
    return (
        f"{tables.Table(headings, rows).markdown()}\n\nError in per cent among the accepted, mean of {seeds} seeds, "
        f"{document['level']:.0%} intervals over seeds and test examples. Thresholds are quantiles of the test split. The last "
        "column pairs by seed and example, is exploratory, and is not corrected for its many rows."
    )


def abstention_claims(variant: str) -> str:
    """The primary contrasts of the study of abstention."""
    document = _abstention(variant)
    if document is None:
        return "Not run."
    primary = [row for row in document["contrasts"] if row["kind"] == "primary"]
    rows = [
        [
            row["claim"],
            row["verdict"],
            tables.number_with_interval(row["estimate"], row["interval"], 100, signed=True),
            f"{row['p_holm']:.3f}",
        ]
        for row in primary
    ]
    return tables.Table(["claim", "verdict", "difference, points [95 %]", "p (Holm)"], rows).markdown()


def abstention_published() -> str:
    """Ours on copies of CIFAR-10 beside the published table of CIFAR-10."""
    theirs, document = files.read_json(ABSTENTION / "published.json"), _abstention("cifar10_jpeg")
    ours = {
        "SR": ("", "msp"),
        "SelectiveNet": ("selective_net=0.8", "model_confidence"),
        "Deep Gamblers": ("deep_gamblers=2.2", "model_confidence"),
        "self-adaptive": ("self_adaptive=0.9", "model_confidence"),
    }
    cells = (
        {}
        if document is None
        else {
            (row.treatment.get("objective", ""), row.score): row for row in abstention_table.selective_errors(document)
        }
    )
    rows = []
    for i, coverage in enumerate(theirs["coverage"]):
        mine = [f"{100 * cells[key].risk[i]:.2f}" if key in cells else "not run" for key in ours.values()]
        rows.append(
            [
                f"{coverage} %",
                *mine,
                *(f"{mean:.2f} ± {sd:.2f}" for mean, sd in (v[i] for v in theirs["methods"].values())),
            ]
        )
    headings = ["coverage", *(f"{name}, here" for name in ours), *(f"{name}, published" for name in theirs["methods"])]
    return (
        f"{tables.Table(headings, rows).markdown()}\n\nPublished: {theirs['of']} ({theirs['source']}). Not comparable with what stands beside it: a small "
        "network, 12,000 JPEG copies, 10 epochs here, and there one SelectiveNet for each coverage. What can be compared is the order of the methods."
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "chaos": chaos,
    "damage": damage,
    "fuzz": fuzz,
    "finding": finding,
    "scaling": scaling,
    "stages": stages,
    "training": training,
    "speed study": speed_study,
    "speed members": speed_members,
    "speed networks": speed_networks,
    "speed predict": speed_predict,
    "speed input": speed_input,
    "speed evaluate": speed_evaluate,
    "sweep": sweep,
    "models": models,
    "metrics": metrics,
    "metric_aims": metric_aims,
    "validity": validity,
    "interval_coverage": interval_coverage,
    "file_coverage": file_coverage,
    "estimators": estimators,
    "claims default": lambda: claims("default"),
    "claims cnn": lambda: claims("cnn"),
    "claims cnn-first": lambda: claims("cnn-first"),
    "claims few": lambda: claims("few"),
    "claims full": lambda: claims("full"),
    "claims full_cnn": lambda: claims("full_cnn"),
    "claims trec": lambda: claims("trec"),
    "claims sst2": lambda: claims("sst2"),
    "claims cifar10_jpeg": lambda: claims("cifar10_jpeg"),
    "claims objectives": lambda: claims("objectives"),
    "objectives": objectives,
    "stored": stored,
    "verdicts": verdicts,
    "rows": rows,
    "gaps": gaps,
    "repairs full": lambda: repairs("full"),
    "repairs full_cnn": lambda: repairs("full_cnn"),
    "best norms": best_norms,
    "calibration sizes": calibration_sizes,
    "ensembles": ensembles,
    "ensemble contrasts": lambda: ensemble_contrasts("full"),
    "objective contrasts": objective_contrasts,
    "while training": lambda: while_training("full"),
    "statistics cost": statistics_cost,
    "study cost": study_cost,
    "cascade default": lambda: cascade("default"),
    "cascade resnet20_resnet56": lambda: cascade("resnet20_resnet56"),
    "cascade speed": cascade_speed,
    "cascade search": lambda: cascade_search("resnet20_resnet56"),
    "cascade shift": lambda: cascade_shift("default"),
    "cascade search four": lambda: cascade_search("resnet20_resnet32_resnet44_resnet56"),
    "cascade chosen": lambda: cascade_pages.chosen_table(_cascades("resnet20_resnet56")).markdown(),
    "cascade resnets": lambda: cascade_rows("resnet"),
    "cascade outputs": lambda: cascade_rows("stored"),
    "claims online_shoppers": lambda: claims("online_shoppers"),
    "claims adult": lambda: claims("adult"),
    "scod near": lambda: scod("default", "near"),
    "scod far": lambda: scod("default", "far"),
    "scod mnist": lambda: scod("mnist", "far"),
    "scod cnn": lambda: scod("cnn", "near"),
    "scod clinc150": lambda: scod("clinc150", "outside"),
    "scod mixing": scod_mixing,
    "scod shifts": scod_shifts,
    "abstention default": lambda: abstention("default"),
    "abstention cifar10_jpeg": lambda: abstention("cifar10_jpeg"),
    "abstention claims default": lambda: abstention_claims("default"),
    "abstention claims cifar10_jpeg": lambda: abstention_claims("cifar10_jpeg"),
    "abstention published": abstention_published,
}


def filled(text: str) -> str:
    """The text with every generated block made anew."""

    def block(match: re.Match[str]) -> str:
        return f"<!-- generated: {match[1]} -->\n{BLOCKS[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- generated: ([\w -]+) -->\n.*?<!-- end -->", block, text, flags=re.S)


def _folder(row: str, variant: str) -> str:
    """Where results lie: by the row, with its variant where that is not the default; of the study's own, by the variant."""
    return variant if not row else row if variant == "default" else f"{row}_{variant}"


def collect() -> None:
    """Copies the results of the runs that are there."""
    for workdir in sorted((ROOT / "runs").glob("label_smoothing*-*")):
        study, _, variant = workdir.name.partition("-")
        row = study.removeprefix("label_smoothing").removeprefix("_")  # "adult", or "" of the study's own variants
        if variant in ("smoke", "teacher") or not (workdir / "report.md").exists():  # a teacher shows nothing itself
            continue
        _copy(workdir, STUDY / "results" / _folder(row, variant))
    for workdir in sorted((ROOT / "runs").glob("cascades-*")):
        variant = workdir.name.removeprefix("cascades-")
        if not variant.endswith("smoke") and (workdir / "report.md").exists():
            _copy(workdir, CASCADES / "results" / variant)
    for workdir in sorted((ROOT / "runs").glob("abstention-*")):
        variant = workdir.name.removeprefix("abstention-")
        if variant != "smoke" and (workdir / "report.md").exists():
            _copy(workdir, ABSTENTION / "results" / variant)

    for workdir in sorted((ROOT / "runs").glob("scod*-*")):
        row, _, variant = workdir.name.removeprefix("scod").removeprefix("_").partition("-")
        if variant != "smoke" and (workdir / "scod.json").exists():
            target = SCOD / "results" / _folder(row, variant)
            target.mkdir(parents=True, exist_ok=True)
            for source in [*workdir.glob("scod*.*"), *workdir.glob("shifts.*")]:
                shutil.copy(source, target / source.name)


def _at_home(value: Any, run: str) -> Any:
    """A document whose paths into the run are those of `runs/`, wherever the run was made."""
    if isinstance(value, dict):
        return {name: _at_home(item, run) for name, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item, run) for item in value]
    inside = isinstance(value, str) and value.startswith("/") and f"/{run}/" in value
    return f"runs/{run}/{value.partition(f'/{run}/')[2]}" if inside else value


def _copy(workdir: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    files.write_json(
        target / "metrics.json", _at_home(files.read_json(workdir / "metrics.json"), workdir.name), seal=True
    )
    for source in sorted((workdir / "figures").glob("*.png")):
        shutil.copy(source, target / source.name)
    watched, timings = workdir / "logit_statistics.jsonl", workdir / "timings.json"
    if watched.exists():
        files.write_json(target / "logit_statistics.json", _last_statistics(watched), seal=True)
    if timings.exists():
        shutil.copy(timings, target / timings.name)
    text = (workdir / "report.md").read_text(encoding="utf-8").replace("](figures/", "](")
    files.write_text(target / "report.md", text)


def _last_statistics(watched: Path) -> dict[str, Any]:
    """The last step of a run's statistics of the logits, the seeds of each α taken together."""
    header, last = read_header(watched), read_log(watched)[-1]
    splits = {split: logit_statistics.by_alpha(last[split], header["alphas"]) for split in header["splits"]}
    return {"step": last["step"], "epoch": last["epoch"], "edges": header["edges"], "p": header["p"], "splits": splits}


WITHOUT_RUN = ("guarantees",)
"""The notebooks that read no run."""


def execute_notebooks() -> None:
    """Runs the notebooks in place, so that they carry their pictures."""
    import nbformat
    from nbclient import NotebookClient

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if path.stem not in WITHOUT_RUN and not (ROOT / f"runs/{path.stem}-default/metrics.json").exists():
            continue
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times of day, which would differ every time
        nbformat.write(notebook, path)


if __name__ == "__main__":
    collect()
    execute_notebooks()
    for document in DOCUMENTS:
        files.write_text(document, filled(document.read_text(encoding="utf-8")))
