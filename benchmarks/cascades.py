"""What a cascade of convolutional networks costs when it runs, against what its multiply-accumulates promise.

    make bench        # or: python -m benchmarks.cascades

ResNet-20 → ResNet-56 for 32×32 images, random weights, every window of the outputs that passes on a fifth. Images/s of each network alone in batches, of
`cascade.predict` and of `cascade.as_function`; the promise is (n₁ + f n₂ c₂/c₁) in the time of the first network, f the share passed on; beside it what the
two networks take by the clock. Latency of one image at a time: the second network runs where the window says so. Medians of alternating rounds. Also the
time of a search over 10⁵ policies on 50,000 examples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from sc_jax import models
from sc_jax.methods import cascade
from sc_jax.methods.cascade import Task
from sc_jax.models import costs
from sc_jax.predictions import Predictions

NETWORKS, SHAPE = ("resnet20_cifar", "resnet56_cifar"), (32, 32, 3)
EXAMPLES, BATCHES, ROUNDS, SINGLE = 4096, (256, 512), 3, 200


def main() -> None:
    """Measures and writes `results/cascades.json`."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(EXAMPLES, *SHAPE)).astype(np.float32)
    networks, cost = [], []
    for seed, name in enumerate(NETWORKS):
        model = models.build(name, input_shape=SHAPE, num_classes=10)
        params, model_state = model.init(jax.random.key(seed))
        networks.append(_network(model, params, model_state))
        cost.append(costs.macs(model, SHAPE))
    given = cascade.stages([_predicted(network, images) for network in networks], cost)
    center = float(np.median(given.score[0]))
    window = cascade.window_around(given.score[0], center, 0.1)
    policy = cascade.Policy((window,), (center,), (0.1,), center, Task("threshold", center), "msp", "ensemble", "")
    passed = float((cascade.follow(policy.windows, given).stage == 1).mean())
    figures: dict[str, Any] = {
        "networks": list(NETWORKS),
        "macs": cost,
        "examples": EXAMPLES,
        "passed_on": passed,
        "batches": [_throughput(policy, networks, images, cost, passed, batch) for batch in BATCHES],
        "latency": _latency(policy, networks, images[:SINGLE], passed, cost),
        "search": _search(),
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine.write("cascades", figures)


def _network(model: models.Model, params: Any, model_state: Any) -> Callable[[Any], jax.Array]:
    return jax.jit(lambda inputs: model.apply(params, model_state, inputs)[0]["logits"])


def _predicted(network: Callable[[Any], jax.Array], images: np.ndarray) -> Predictions:
    logits = np.concatenate([np.asarray(network(images[i : i + 256])) for i in range(0, len(images), 256)])
    return Predictions(np.zeros(len(images), int), logits, np.arange(len(images)))


def _throughput(
    policy: cascade.Policy,
    networks: list[Callable[[Any], jax.Array]],
    images: np.ndarray,
    cost: list[int],
    passed: float,
    batch: int,
) -> dict[str, float]:
    """Images per second of each way, and the shares of the promises that the cascade reaches."""
    room = int(np.ceil(1.5 * passed * batch))
    together = cascade.as_function(policy, networks, (room,))
    overflow = 0

    def alone(network: Callable[[Any], jax.Array]) -> Callable[[], None]:
        def run() -> None:
            for i in range(0, len(images), batch):
                out = network(images[i : i + batch])
            out.block_until_ready()

        return run

    def in_one_function() -> None:
        nonlocal overflow
        outs = [together(images[i : i + batch]) for i in range(0, len(images), batch)]
        overflow = int(sum(np.asarray(out[3]) for out in outs))

    ways = {
        "first": alone(networks[0]),
        "second": alone(networks[1]),
        "predict": lambda: cascade.predict(policy, networks, images, cost, batch_size=batch),
        "function": in_one_function,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):  # the first compiles
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    took = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    by_macs = took["first"] * (1 + passed * cost[1] / cost[0])
    by_clock = took["first"] + passed * took["second"]
    return {
        "batch": batch,
        **{f"{name}_images_per_second": len(images) / value for name, value in took.items()},
        "predict_share_of_macs_promise": by_macs / took["predict"],
        "predict_share_of_clock_promise": by_clock / took["predict"],
        "function_room": room,
        "function_overflow": overflow,
        "function_share_of_macs_promise": by_macs / took["function"],
    }


def _latency(
    policy: cascade.Policy,
    networks: list[Callable[[Any], jax.Array]],
    images: np.ndarray,
    passed: float,
    cost: list[int],
) -> dict[str, float]:
    """Milliseconds per image, one at a time."""
    (low, high), score = policy.windows[0], jax.jit(lambda logits: cascade.scorer("msp")(logits))

    def first(image: np.ndarray) -> jax.Array:
        return networks[0](image)

    def both(image: np.ndarray) -> jax.Array:
        logits = networks[0](image)
        if low <= float(score(logits)[0]) <= high:
            logits = jnp.logaddexp(jax.nn.log_softmax(logits), jax.nn.log_softmax(networks[1](image)))
        return logits

    seconds: dict[str, list[float]] = {"first": [], "second": [], "cascade": []}
    ways = {"first": first, "second": lambda image: networks[1](image), "cascade": both}
    for way in ways.values():  # compiles
        for i in range(20):
            way(images[i : i + 1]).block_until_ready()
    for i in range(len(images)):
        for name, way in ways.items():
            start = time.perf_counter()
            way(images[i : i + 1]).block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    mean = {f"{name}_milliseconds": 1000 * statistics.fmean(values) for name, values in seconds.items()}
    return {**mean, "images": len(images), "macs_promise": 1 + passed * cost[1] / cost[0]}


def _search() -> dict[str, float]:
    """Seconds of one search."""
    rng, n = np.random.default_rng(0), 50_000
    score = rng.normal(size=(2, n))
    error = rng.random((2, n)) < 0.6 / (1 + np.exp(2 * score))
    ids = np.arange(n)
    given = cascade.Stages(score, np.zeros((2, n), int), error, np.ones(2), ids, None, "msp", "ensemble")
    thresholds, windows = np.quantile(score[1], np.linspace(0.02, 0.98, 122)), [cascade.window_grid(score[0], 40)]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        table = cascade.search(given, thresholds, windows)
        cascade.front(table, Task("risk", 0.05))
        seconds.append(time.perf_counter() - start)
    return {"examples": n, "policies": len(table.cost), "seconds": statistics.median(seconds)}


if __name__ == "__main__":
    main()
