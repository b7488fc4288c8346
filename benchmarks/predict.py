"""Prediction: examples per second of each network, against a plain PyTorch loop, and the share of the machine's arithmetic rate.

    make bench        # or: python -m benchmarks.predict [--only=mlp,cnn]

Float32, random weights, batches of uint8 images that lie on the host and whose logits come back to it, in alternating rounds. The share is 2 MACs × examples/s
over the rate of a 2048³ float32 product. PyTorch runs eagerly under `inference_mode`, channels last, with as many threads as there are cores;
`torch.compile` where it works. GPUs: not measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import machine, networks
from sc_jax import files
from sc_jax.data.pipelines import evaluation_transform
from sc_jax.training import parallel


def ways_of(network: networks.Network) -> tuple[dict[str, Callable[[], Any]], str]:
    """How a batch is predicted: by us, by PyTorch, by compiled PyTorch; and why not the last, if not."""
    import torch

    images = np.random.default_rng(0).integers(0, 256, (network.batch, *network.shape), np.uint8)
    model, transform = network.build(), evaluation_transform((0.5,), (0.5,))
    params, model_state = model.init(jax.random.key(0))
    weights = parallel.replicate((params, model_state), mesh := parallel.data_mesh())
    raw = images[..., 0] if network.shape[-1] == 1 else images

    def outputs(weights: Any, batch: jax.Array) -> jax.Array:
        return model.apply(*weights, transform(batch))[0]["logits"][None]

    mapped = parallel.map_over_devices(outputs, mesh)
    theirs = networks.torch_model(network).eval()

    def with_torch(module: Any) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return module(networks.torch_input(network, images)).numpy()

        return run

    ways = {"sc_jax": lambda: jax.device_get(mapped(weights, raw)), "torch": with_torch(theirs)}
    try:
        compiled = with_torch(torch.compile(theirs))
        compiled()
    except Exception as error:  # of whatever it needs
        return ways, (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ways | {"torch_compile": compiled}, ""


def main() -> None:
    """Measures and writes `results/predict.json`; networks that are not measured stay as they were."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    only = [name for name in parser.parse_args().only.split(",") if name]
    path, rate = machine.RESULTS / "predict.json", networks.matmul_flops()
    rows = networks.others(files.read_json(path)["rows"] if path.exists() else [], only)
    for network in networks.NETWORKS:
        if only and network.backbone not in only:
            continue
        ways, why_not = ways_of(network)
        rates = networks.median_rates(networks.rounds(ways), network.batch)
        share = {name: 2 * network.macs() * value / rate for name, value in rates.items()}
        row = {"network": network.name, "batch": network.batch, "macs": network.macs(), "examples_per_second": rates}
        rows.append(
            {
                **row,
                "share_of_matmul_rate": share,
                "torch_compile_fails": why_not,
                "matmul_2048_flops_per_second": rate,
                **networks.stamp(),
            }
        )
        print({key: value for key, value in rows[-1].items() if key != "machine"}, flush=True)
    machine.write("predict", {"rows": rows, "gpu": "not measured"})


if __name__ == "__main__":
    main()
