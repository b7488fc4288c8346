"""The metrics against other packages, in one process on one core; and the bootstrap, and a whole report.

    make bench        # or, in .venv-peers: python -m benchmarks.metrics [--n=10000,100000]
    python -m benchmarks.metrics --device     # on an accelerator: AURC against a sort of its scores

Competitors take turns, round by round, on the same arrays. Before they are timed their values must agree with ours by the
same definition, where order at ties plays no part in it. Seconds are of the processor, least and median of the rounds: with
one thread those of the clock, if nobody else were on the machine. (A report and a device are timed by the clock.)
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine
from sc_jax import files, ops

SIZES = (10**4, 10**5, 10**6, 10**7)
RATES = (0.01, 0.1, 0.3)
TIES = ("none", "blocks of ten", "3 decimals")
FEWEST, MOST, SECONDS, TURN = 3, 25, 0.4, 0.004
"""Rounds of a competitor: as many as fit into `SECONDS`, within these; in each, calls in a row for at least `TURN` seconds."""

LOOP_LIMIT = 10**6
"""The largest n for loops over samples."""

RESAMPLES, BOOTSTRAP_N = 1000, 10**4
REPORT_N, REPORT_CLASSES, REPORT_SCORES = 10**4, 100, 12

TARGET_N, OF_SORT, OF_PEER, BOOTSTRAP_SECONDS, REPORT_SECONDS = 10**6, 2.5, 1.7, 0.2, 10.0
"""The aims: AURC in sorts of its scores, and times faster than torch-uncertainty; seconds of the two others."""

PEERS = ("sc_jax", "torch-uncertainty", "torchmetrics", "scikit-learn")


class Sample(NamedTuple):
    """Scores [n] and losses [n], bool or of the type of the scores."""

    score: np.ndarray
    loss: np.ndarray


class Competitor(NamedTuple):
    """One way to the value.

    Attributes:
      call: the value; ours: what it must agree with, or None where its definition leaves the value open.
      tolerance: relative to ours.
    """

    call: Callable[[], Any]
    ours: Callable[[], float] | None = None
    tolerance: float = 1e-9


@functools.lru_cache(maxsize=1)
def latent(n: int, ties: str, signed: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores in increasing order as float32 and float64, and a permutation for them.

    Log-odds of both signs (or, unless `signed`, probabilities), spread evenly over exponents: all distinct, in both types,
    or ten samples to a value; or softmax confidences to 3 decimals, of which a twelfth is 1.000.
    """
    rng = np.random.default_rng([n, TIES.index(ties)])
    rank = (np.arange(n) + 0.5) / n
    if ties == "3 decimals":
        narrow = wide = np.round(1 - 0.9 * (1 - rank) ** 3, 3)
        return narrow.astype(np.float32), wide, rng.permutation(n)
    values = n if ties == "none" else n // 10
    low, high = np.array([2.0**-10, 2.0**5 if signed else 1.0], np.float32).view(np.int32)
    magnitude = np.empty(0, np.int64)
    while len(magnitude) < values:
        drawn = rng.integers(-(high - low) if signed else 0, high - low, size=values + values // 5 + 10)
        magnitude = np.union1d(magnitude, drawn)
    kept = np.sort(rng.permutation(magnitude)[:values])
    sign = np.where(kept < 0, -1, 1)
    narrow = sign * (np.where(kept < 0, -kept - 1, kept) + low).astype(np.int32).view(np.float32)
    wide = narrow * (1 + (rng.random(values) - 0.5) * 2.0**-25)  # less than half a float32 away
    repeats = -(-n // values)
    narrow, wide = (np.repeat(s, repeats)[:n] for s in (narrow.astype(np.float32), wide))
    return narrow, wide, rng.permutation(n)


def sample(n: int, ties: str, dtype: str, rate: float, kind: str, signed: bool = True) -> Sample:
    """A sample whose loss falls from twice its mean `rate` to 0 as the score rises; `kind` is "0/1" or "soft"."""
    narrow, wide, order = latent(n, ties, signed)
    rng = np.random.default_rng([n, int(1000 * rate)])
    expected = 2 * rate * (1 - (np.arange(n) + 0.5) / n)
    loss = rng.random(n) < expected if kind == "0/1" else (2 * rng.random(n) * expected).astype(dtype)
    return Sample((narrow if dtype == "float32" else wide)[order], loss[order])


def measure(
    competitors: dict[str, Competitor], clock: Callable[[], float] = time.process_time
) -> dict[str, dict[str, Any]]:
    """Value, least and median seconds of each, after a check that they agree.

    Raises:
      AssertionError: a value differs from ours.
    """
    found, turns = {}, {}
    for name, competitor in competitors.items():
        value = competitor.call()
        found[name] = {} if value is None else {"value": float(value)}
        if competitor.ours is not None:
            ours = float(competitor.ours())
            assert abs(value - ours) <= competitor.tolerance * abs(ours), f"{name}: {value}, ours is {ours}"
        once = _seconds(competitor.call, 1, clock)
        calls = int(max(TURN / once, 1))
        turns[name] = calls, int(min(max(SECONDS / (once * calls), FEWEST), MOST))
    names = list(competitors)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    for turn in range(max(rounds for _, rounds in turns.values())):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # nobody always comes after the same one
            calls, rounds = turns[name]
            if turn < rounds:
                seconds[name].append(_seconds(competitors[name].call, calls, clock))
    gc.enable()
    for name, times in seconds.items():
        found[name] |= {"min": min(times), "median": statistics.median(times), "rounds": len(times)}
    return found


def _seconds(call: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    """Mean of several calls in a row: a single short one would be that of cold caches."""
    start = clock()
    for _ in range(calls):
        call()
    return max(clock() - start, 1e-9) / calls


def aurc_competitors(score: np.ndarray, loss: np.ndarray, ties: str) -> dict[str, Competitor]:
    """Everyone who has an AURC, and the sort of the scores alone."""
    from benchmarks.peers import implementations as peers

    def ours(*estimator: str) -> Callable[[], Any]:
        return lambda: ops.aurc(score, loss, *estimator)

    def sort() -> None:
        np.sort(score)

    distinct = ties == "none"  # with ties the others depend on the order of the rows
    found = {
        "sc_jax": Competitor(ours()),
        "np.sort": Competitor(sort),
        "NumPy": Competitor(lambda: peers.numpy_aurc(score, loss), ours() if distinct else None),
    }
    if loss.dtype == bool:
        tensors = peers.to_torch(score, loss)
        found["torch-uncertainty"] = Competitor(
            lambda: peers.torch_uncertainty("AURC", *tensors), ours("torch_uncertainty") if distinct else None, 1e-4
        )
    if len(score) <= LOOP_LIMIT:
        loop = functools.partial(peers.fd_shifts_style_loop, score, loss)
        found["fd-shifts-style loop"] = Competitor(loop, ours("fd_shifts"), 1e-7)
    return found


def aurc_cases(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """AURC in every case."""
    for n, ties, dtype, kind, rate in itertools.product(sizes, TIES, ("float32", "float64"), ("0/1", "soft"), RATES):
        if (dtype, ties) == ("float64", "blocks of ten"):
            continue
        score, loss = sample(n, ties, dtype, rate, kind)
        case = {"metric": "aurc", "n": n, "ties": ties, "dtype": dtype, "loss": kind, "rate": rate}
        yield case | {"seconds": measure(aurc_competitors(score, loss, ties))}


def other_competitors(score: np.ndarray, error: np.ndarray, ties: str) -> dict[str, dict[str, Competitor]]:
    """The other metrics that another package has too."""
    from benchmarks.peers import implementations as peers

    n, distinct, right = len(score), ties == "none", ~error
    score_t, error_t, right_t = peers.to_torch(score, error, right)

    def augrc() -> float:
        return float(ops.augrc(score, error))

    def coverage() -> float:
        return float(ops.coverage_at_risk(score, error, 0.05))

    def auroc() -> float:
        return float(ops.failure_auroc(score, error))

    def ece() -> float:
        return float(ops.expected_calibration_error(score, error))

    def augrc_from_first_point() -> float:  # without the half trapezoid before coverage 1/n, over 1 − 1/n
        return (augrc() - float(error[np.argmax(score)]) / (2 * n * n)) * n / (n - 1)

    return {
        "augrc": {
            "sc_jax": Competitor(augrc),
            "torch-uncertainty": Competitor(
                lambda: peers.torch_uncertainty("AUGRC", score_t, error_t),
                augrc_from_first_point if distinct else None,
                1e-4,
            ),
        },
        "coverage_at_risk": {
            "sc_jax": Competitor(coverage),
            "torch-uncertainty": Competitor(
                lambda: peers.torch_uncertainty("CovAtxRisk", score_t, error_t, 0.05),
                coverage if distinct else None,
                1e-3,  # it compares float32 risks with 0.05
            ),
        },
        "failure_auroc": {
            "sc_jax": Competitor(auroc),
            "scikit-learn": Competitor(lambda: peers.sklearn_auroc(score, right), auroc),
            "torchmetrics": Competitor(lambda: peers.torchmetrics_auroc(score_t, right_t), auroc, 1e-4),
        },
        "expected_calibration_error": {
            "sc_jax": Competitor(ece),
            "torchmetrics": Competitor(
                lambda: peers.torchmetrics_ece(score_t, right_t),
                ece if distinct else None,  # there a confidence of 1.0 has a bin of its own
                1e-3,
            ),
        },
    }


def other_cases(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The other metrics on probabilities, 10 % wrong."""
    for n, ties in itertools.product(sizes, ("none", "3 decimals")):
        score, error = sample(n, ties, "float32", 0.1, "0/1", signed=False)
        for metric, competitors in other_competitors(score, error, ties).items():
            case = {"metric": metric, "n": n, "ties": ties, "dtype": "float32", "loss": "0/1", "rate": 0.1}
            yield case | {"seconds": measure(competitors)}


def bootstrap_competitors(score: np.ndarray, loss: np.ndarray) -> dict[str, Competitor]:
    """The standard error of AURC by resampling; each draws its own resamples."""
    from benchmarks.peers import implementations as peers

    n = len(score)

    def ours() -> float:
        return float(np.std(ops.bootstrap(ops.aurc, score, loss, resamples=RESAMPLES, seed=0).replicates))

    def loop(metric: Callable[..., float], *arrays: Any) -> float:
        rng = np.random.default_rng(1)
        drawn = (rng.integers(0, n, n) for _ in range(RESAMPLES))
        return float(np.std([metric(*(a[rows] for a in arrays)) for rows in drawn]))

    noise = 5 / np.sqrt(RESAMPLES)  # five standard deviations of the ratio of two such estimates
    found = {
        "sc_jax": Competitor(ours),
        "NumPy, a loop": Competitor(lambda: loop(peers.numpy_aurc, score, loss), ours, noise),
    }
    if loss.dtype == bool:
        tensors = peers.to_torch(score, loss)
        aurc = functools.partial(peers.torch_uncertainty, "AURC")
        found["torch-uncertainty, a loop"] = Competitor(lambda: loop(aurc, *tensors), ours, noise)
    return found


def bootstrap_cases() -> Iterator[dict[str, Any]]:
    """1,000 resamples of AURC at n = 10⁴."""
    for kind, ties, rate in itertools.product(("0/1", "soft"), TIES, RATES):
        score, loss = sample(BOOTSTRAP_N, ties, "float32", rate, kind)
        case = {"metric": "bootstrap of aurc", "n": BOOTSTRAP_N, "ties": ties, "dtype": "float32", "loss": kind}
        yield case | {"rate": rate, "seconds": measure(bootstrap_competitors(score, loss))}


_REPORT = """
import json, sys, time
from sc_jax import evaluate, predictions
from sc_jax.methods import evaluation
from sc_jax.methods.scores import SCORES, obstacle
folder, count, resamples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
tests, tuning = predictions.read_files([folder + "/test.npz"], folder + "/validation.npz")
scores = [name for name in SCORES if obstacle(SCORES[name], tests[0], tuning) is None][:count]
settings = evaluation.Settings(
    scores=tuple(scores), p_grid=tuple(range(1, 11)), ece_bins=15, resamples=resamples, level=0.95, seed=0)
runs = evaluate.evaluate_files(tests, tuning, settings)["runs"]
seconds = time.perf_counter() - start
found = {"seconds": seconds, "scores": [run["score"] for run in runs], "error": runs[0]["metrics"]["error"],
         "metrics": sum(len(run["metrics"]) for run in runs)}
json.dump(found, open(folder + "/seconds.json", "w"))
"""


def whole_report() -> dict[str, Any]:
    """Seconds of `sc_jax.evaluate` on two cores by the clock, from the files to all metrics with their intervals."""
    with tempfile.TemporaryDirectory() as folder, machine.cores(2):
        for seed, name in enumerate(("test", "validation")):
            rng = np.random.default_rng(seed)
            label = rng.integers(0, REPORT_CLASSES, REPORT_N)
            logits = rng.normal(size=(REPORT_N, REPORT_CLASSES)).astype(np.float32)
            logits[np.arange(REPORT_N), label] += rng.gamma(4.0, 1.2, REPORT_N)  # about 15 % wrong
            np.savez(Path(folder) / f"{name}.npz", label=label, logits=logits)
        threads = {name: "2" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        runs = []
        for _ in range(FEWEST):
            command = [sys.executable, "-c", _REPORT, folder, str(REPORT_SCORES), str(RESAMPLES)]
            subprocess.run(command, check=True, env=os.environ | threads)
            runs.append(files.read_json(Path(folder) / "seconds.json"))
    seconds = [run["seconds"] for run in runs]
    case = {"n": REPORT_N, "classes": REPORT_CLASSES, "resamples": RESAMPLES, "scores": runs[0]["scores"]}
    case |= {name: runs[0][name] for name in ("error", "metrics")}
    return case | {"min": min(seconds), "median": statistics.median(seconds)}


def targets(cases: Sequence[dict[str, Any]], report: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What was to be reached, and what was, by the share of wrong ones; medians."""
    found: dict[str, dict[str, Any]] = {}

    def add(what: str, share: str, value: float, limit: float, unit: str, at_most: bool = True) -> None:
        row = found.setdefault(what, {"what": what, "limit": limit, "unit": unit, "at_most": at_most, "values": {}})
        row["values"][share] = value
        row["met"] = all(v <= limit if at_most else v >= limit for v in row["values"].values())

    for case in cases:
        seconds = {name: result["median"] for name, result in case["seconds"].items()}
        share = f"{case['rate']:.0%}"
        if (case["metric"], case["n"], case["dtype"], case["loss"]) == ("aurc", TARGET_N, "float32", "0/1"):
            what = f"AURC, 0/1 loss, n = {TARGET_N:,}, ties: {case['ties']}"
            add(f"{what}; in sorts of the scores", share, seconds["sc_jax"] / seconds["np.sort"], OF_SORT, "×")
            ratio = seconds["torch-uncertainty"] / seconds["sc_jax"]
            add(f"{what}; faster than torch-uncertainty", share, ratio, OF_PEER, "×", at_most=False)
        if (case["metric"], case["loss"]) == ("bootstrap of aurc", "0/1"):
            what = f"{RESAMPLES:,} resamples of AURC, {case['loss']} loss, n = {case['n']:,}, ties: {case['ties']}"
            add(what, share, seconds["sc_jax"], BOOTSTRAP_SECONDS, "s")
    if report is not None:
        what = f"report of {len(report['scores'])} scores, {report['n']:,} × {report['classes']} logits, two cores"
        add(what, f"{report['error']:.0%}", report["median"], REPORT_SECONDS, "s")
    order = (OF_SORT, OF_PEER, BOOTSTRAP_SECONDS, REPORT_SECONDS)
    return sorted(found.values(), key=lambda row: order.index(row["limit"]))


def tables(figures: dict[str, Any]) -> str:
    """Markdown for README: AURC by n; the other metrics and the bootstrap; the aims."""
    from sc_jax.tables import Table

    cases = figures["cases"]

    def cell(case: dict[str, Any], name: str) -> str:
        if name not in case["seconds"]:
            return "–"
        milliseconds = 1000 * case["seconds"][name]["median"]
        return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.2g}"

    names = ("np.sort", "sc_jax", "torch-uncertainty", "NumPy", "fd-shifts-style loop")
    areas = Table(
        ["AURC (10 % wrong, float32), ms", "np.sort of the scores", *names[1:]],
        [
            [f"n = {c['n']:,}, {c['loss']} loss, ties: {c['ties']}", *(cell(c, name) for name in names)]
            for c in cases
            if (c["metric"], c["dtype"], c["rate"]) == ("aurc", "float32", 0.1)
            and (c["ties"] == "none" or (c["ties"] == "3 decimals" and c["loss"] == "0/1"))
        ],
    )
    others = [c for c in cases if c["metric"] not in ("aurc", "bootstrap of aurc") and c["ties"] == "none"]
    largest = max((c["n"] for c in others if c["n"] <= TARGET_N), default=0)
    rows = [
        [f"{c['metric']}, n = {c['n']:,}", *(cell(c, name) for name in PEERS), "–"] for c in others if c["n"] == largest
    ]
    rows += [
        [f"{RESAMPLES:,} resamples of AURC, n = {c['n']:,}, {c['loss']} loss", cell(c, "sc_jax")]
        + [cell(c, "torch-uncertainty, a loop"), "–", "–", cell(c, "NumPy, a loop")]
        for c in cases
        if (c["metric"], c["ties"], c["rate"]) == ("bootstrap of aurc", "none", 0.1)
    ]
    rest = Table(["other metrics (no ties), ms", *PEERS, "NumPy"], rows)
    aims = Table(
        ["aim", "limit", *(f"{rate:.0%} wrong" for rate in RATES), "met"],
        [
            [row["what"], f"{'≤' if row['at_most'] else '≥'} {row['limit']:g} {row['unit']}"]
            + [f"{row['values'][share]:.2g}" if (share := f"{rate:.0%}") in row["values"] else "" for rate in RATES]
            + ["yes" if row["met"] else "**no**"]
            for row in figures["targets"]
            if row["what"][:6] != "report"
        ],
    )
    report = figures["report"]
    m = figures["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["peers"].items())
    return (
        f"{areas.markdown()}\n\n{rest.markdown()}\n\n{aims.markdown()}\n\nA whole report (`sc_jax.evaluate`, {len(report['scores'])} "
        f"scores with all metrics, {report['resamples']:,} resamples, {report['n']:,} × {report['classes']} logits and as many to "
        f"calibrate on) takes {report['median']:.1f} s on two cores; the aim is {REPORT_SECONDS:g} s. All else ran in one process on "
        f"one core, competitors taking turns; medians of processor time. {figures['note']} The loop is our writing of what fd-shifts computes. "
        f"{m['cpu']}, NumPy {m['numpy']}, jax {m['jax']}, {versions}, {m['date']}; `make bench` measures it on your machine."
    )


def on_device(n: int) -> dict[str, Any]:
    """AURC under `jit` on the default device, against a sort of the same scores there."""
    import jax
    import jax.numpy as jnp

    sort, aurc = jax.jit(jnp.sort), jax.jit(ops.aurc)

    def competitors(host: Sample) -> dict[str, Competitor]:
        score, error = jax.device_put(host.score), jax.device_put(host.loss)

        def sorted_alone() -> None:
            sort(score).block_until_ready()

        return {
            "sc_jax": Competitor(lambda: float(aurc(score, error)), lambda: ops.aurc(*host), 1e-5),
            "jnp.sort": Competitor(sorted_alone),
        }

    cases = []
    for ties, rate in itertools.product(TIES, RATES):
        case = {"metric": "aurc", "n": n, "ties": ties, "dtype": "float32", "loss": "0/1", "rate": rate}
        found = measure(competitors(sample(n, ties, "float32", rate, "0/1")), time.perf_counter)
        cases.append(case | {"seconds": found})
        _print(cases[-1])
    return {"device": jax.devices()[0].device_kind, "cases": cases}


def _print(case: dict[str, Any]) -> None:
    what = ", ".join(str(value) for key, value in case.items() if key != "seconds")
    times = " | ".join(f"{name} {1000 * result['median']:.3g}" for name, result in case["seconds"].items())
    print(f"{what}: {times} ms", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes `results/metrics.json`, or `results/metrics_device.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.metrics", description=__doc__.splitlines()[0])
    parser.add_argument("--n", help="sizes in place of the default ones; nothing is written then")
    parser.add_argument("--device", action="store_true", help="on JAX's default device, which must be an accelerator")
    given = parser.parse_args(argv)
    sizes = tuple(int(float(n)) for n in given.n.split(",")) if given.n else SIZES
    if given.device:
        import jax

        if jax.default_backend() == "cpu" and not given.n:
            parser.error("--device: JAX's default device is a CPU here")
        figures = on_device(max(sizes))
        if not given.n:
            machine.write("metrics_device", figures)
        return
    from benchmarks.peers import implementations as peers

    load = os.getloadavg()[0]
    report = whole_report()
    print(f"report of {', '.join(report['scores'])}: {report['median']:.1f} s")
    cases = []
    with machine.cores(1), peers.one_thread():
        for case in itertools.chain(bootstrap_cases(), other_cases(sizes), aurc_cases(sizes)):
            _print(case)
            cases.append(case)
    figures = {
        "note": peers.NOTE,
        "load_average_before": load,
        "targets": targets(cases, report),
        "report": report,
        "cases": cases,
    }
    for row in figures["targets"]:
        print(("met     " if row["met"] else "NOT MET ") + f"{row['what']}: {row['values']} (limit {row['limit']:g})")
    if not given.n:
        machine.write("metrics", figures, peers.PACKAGES)


if __name__ == "__main__":
    main()
