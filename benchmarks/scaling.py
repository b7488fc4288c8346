"""Arithmetic, no measurement: what ensembles of ImageNet's size take in memory and operations → benchmarks/results/scaling.json.

    python -m benchmarks.scaling

Nothing is computed on a device: parameters and multiply-accumulates are counted in the traced program, and activations are what
automatic differentiation keeps between the two passes, before XLA fuses any of it away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sc_jax import files, models
from sc_jax.models import costs

OUT = Path(__file__).parent / "results/scaling.json"
IMAGES, SIDE, CLASSES = 1_281_167, 224, 1000
BATCH = 8  # of the traced program; what grows with the batch is divided by it


def kept(model: models.Model, batch: int) -> int:
    """Bytes that the backward pass is left by the forward pass, beside parameters and batch statistics."""
    params, model_state = jax.eval_shape(model.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((batch, SIDE, SIDE, 3), jnp.float32)

    def backward(params: Any, model_state: Any, inputs: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            outputs, _ = model.apply(params, model_state, inputs, train=True, key=jax.random.key(0))
            labels = jnp.zeros(batch, jnp.int32)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs["logits"], labels))

        return jax.vjp(loss, params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, params, model_state, inputs))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)


def of(name: str) -> dict[str, Any]:
    """Counts of one member of a backbone."""
    shape = {"input_shape": (SIDE, SIDE, 3), "num_classes": CLASSES}
    model = models.build(name, **shape)
    _, model_state = jax.eval_shape(model.init, jax.random.key(0))
    found = {
        "parameters": costs.parameters(model),
        "statistics": sum(leaf.size for leaf in jax.tree.leaves(model_state)),
        "macs": costs.macs(model, shape["input_shape"]),
    }
    for dtype in ("float32", "bfloat16"):
        typed = models.build(name, **shape, dtype=jnp.dtype(dtype))
        found[f"kept_bytes_per_image_{dtype}"] = (kept(typed, 2 * BATCH) - kept(typed, BATCH)) // BATCH
    return found


def main() -> None:
    """Writes the file."""
    figures = {"images": IMAGES, "side": SIDE, "classes": CLASSES, "models": {}}
    for name in ("resnet50", "vit_small_patch16", "efficientnet_b0"):
        figures["models"][name] = of(name)
        print(name, {key: f"{value:,}" for key, value in figures["models"][name].items()})
    files.write_json(OUT, figures)


if __name__ == "__main__":
    main()
