"""Backbones against timm's PyTorch models of the same weights, and published weights against their published accuracy.

    python -m benchmarks.parity [--only=resnet]      # needs the extra `parity` (torch, timm); torchvision is not needed

Every tensor of timm's model is drawn at random (fresh weights would hide a wrong bias, mean or variance), batch statistics are then
those of the images, the model is written as safetensors, read by `sc_jax.models.pretrained`, and given the same images. Beside the
difference stands what rounding alone does to timm's model: its logits in float32 against those in float64.
With SC_JAX_EXTRA_DATA set, the four CIFAR-10 ResNets are run on all 10,000 test images too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from sc_jax import models
from sc_jax.models import pretrained
from tests.timm_reference import import_timm, randomise

LIMIT = 1e-4
"""The aim: largest difference of logits over the largest logit."""

IMAGES = 2

LAST_SCALE, UNSCALED = 0.2, ("resnet101", "resnet152")
"""γ at the end of a bottleneck. With γ about 1 a random residual network multiplies rounding by its depth, PyTorch's as ours:
the deepest are run so too, outside the limit, beside what rounding does to timm's own."""

ACCURACY = {"resnet20_cifar": 0.8103, "resnet32_cifar": 0.8256, "resnet44_cifar": 0.8267, "resnet56_cifar": 0.8320}
"""Of the four published CIFAR-10 ResNets on the JPEG test images."""

WITHOUT = {
    "mlp": "no published weights",
    "tabular_mlp": "no published weights",
    "cnn": "no published weights",
    "bag_of_words": "no published weights",
    "lstm": "not in timm",
    "resnet110_cifar": "not in timm; ResNetCIFAR is checked by the weights of depths 20 to 56",
    "wide_resnet16_4": "not in timm: not done",
    "wide_resnet28_10": "not in timm: not done",
    "msdnet": "not in timm: not done",
    "msdnet_imagenet": "not in timm: not done",
    "deeplabv3plus_resnet101": "not in timm; small, against PyTorch's layers around timm's ResNet: tests/models/test_deeplab.py",
}
"""Backbones without parity, and why."""


def references(timm: Any) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Backbone → (side of its images, maker of timm's model)."""

    def named(name: str, **options: Any) -> Callable[[], Any]:
        return lambda: timm.create_model(name, **options)

    def densenet_bc_100() -> Any:
        import torch

        model = timm.models.densenet.DenseNet(growth_rate=12, block_config=(16, 16, 16), num_classes=10)
        model.features.conv0 = torch.nn.Conv2d(3, 24, 3, padding=1, bias=False)
        del model.features.norm0, model.features.pool0
        return model

    def mobilenetv2_130() -> Any:
        return timm.models.efficientnet._gen_mobilenet_v2("mobilenetv2_140", channel_multiplier=1.3)

    same = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "densenet121")
    return {
        **{name: (224, named(name)) for name in (*same, "mobilenetv2_100", "mobilenetv2_140")},
        "mobilenetv2_130": (224, mobilenetv2_130),
        "densenet_bc_100": (32, densenet_bc_100),
        **{f"vit_{size}_patch16": (224, named(f"vit_{size}_patch16_224")) for size in ("tiny", "small", "base")},
        **{
            f"efficientnet_b{i}": (side, named(f"efficientnet_b{i}"))
            for i, side in enumerate((224, 240, 260, 300, 380))
        },
    }


def compare(name: str, side: int, reference: Any, *, last_scale: float = LAST_SCALE) -> dict[str, Any]:
    """Parameters and logits of a backbone against those of timm's model, on random images [IMAGES, side, side, 3].

    `last_scale` is about what γ is at the end of a bottleneck.
    """
    import safetensors.numpy
    import torch

    images = np.random.default_rng(0).standard_normal((IMAGES, side, side, 3)).astype(np.float32)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    randomise(reference)
    with torch.no_grad():
        for key, tensor in reference.state_dict().items():
            if key.endswith("bn3.weight"):
                tensor.mul_(last_scale)
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        reference.train()(inputs)
        theirs = reference.eval()(inputs).numpy()
        tensors = {key: tensor.numpy().copy() for key, tensor in reference.state_dict().items()}
        exact = reference.double()(inputs.double()).numpy()
    options = {"input_shape": (side, side, 3), "num_classes": theirs.shape[1]}
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "timm.safetensors", Path(folder) / "ours.safetensors"
        safetensors.numpy.save_file(tensors, path)
        params, model_state = pretrained.load(path, name, **options)
        pretrained.save(again, params, model_state)
        written = pretrained.read_tensors(again)
    model = models.build(name, **options)
    ours = np.asarray(jax.jit(lambda x: model.apply(params, model_state, x)[0]["logits"])(images))
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
    return {
        "image": side,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "parameters_timm": sum(parameter.numel() for parameter in reference.parameters()),
        "largest_logit": float(np.abs(theirs).max()),
        "spread_of_logits": float(np.abs(theirs[0] - theirs[1]).max()),
        "relative_error": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        "rounding_of_timm": float(np.abs(theirs - exact).max() / np.abs(theirs).max()),
        "export_equal": written.keys() == kept.keys() and all((written[key] == kept[key]).all() for key in kept),
    }


def published(name: str, data: Path) -> dict[str, Any]:
    """Accuracy of a CIFAR-10 ResNet on the 10,000 JPEG test images, and its logits against PyTorch's."""
    file, options = (
        data / "weights" / f"cifar10_{name.removesuffix('_cifar')}.safetensors",
        {"input_shape": (32, 32, 3), "num_classes": 10},
    )
    params, model_state = pretrained.load(file, name, **options)
    model, numbers = models.build(name, **options), pretrained.preprocessing(name)
    with np.load(data / "images" / "cifar10_test_images.npz") as test:
        images, label = test["x"], test["y"]
    with np.load(data / "cifar10_test_outputs.npz") as outputs:
        theirs = outputs[f"logits_jpg_{name.removesuffix('_cifar')}"]
    inputs = ((images / 255 - numbers.mean) / numbers.std).astype(np.float32)
    forward = jax.jit(lambda x: model.apply(params, model_state, x)[0]["logits"])
    ours = np.concatenate([forward(inputs[start : start + 500]) for start in range(0, len(inputs), 500)])
    return {
        "images": len(label),
        "accuracy": float((ours.argmax(1) == label).mean()),
        "accuracy_published": ACCURACY[name],
        "relative_error": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    }


def main() -> None:
    """Runs every comparison and writes results/parity.json, unless only some were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="backbones whose name contains this; nothing is written")
    only = parser.parse_args().only
    rows, unscaled, weights, broken = {}, {}, {}, []
    for name, (side, make) in references(import_timm()).items():
        if only in name:
            start = time.perf_counter()
            row = rows[name] = compare(name, side, make())
            good = (
                row["relative_error"] <= LIMIT and row["parameters"] == row["parameters_timm"] and row["export_equal"]
            )
            broken += [] if good else [name]
            print(
                f"{name:20} {row['parameters']:>11,} parameters  {row['relative_error']:.1e}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            if name in UNSCALED:
                row = unscaled[name] = compare(name, side, make(), last_scale=1.0)
                print(
                    f"{name:20} γ ≈ 1: {row['relative_error']:.1e}, of rounding {row['rounding_of_timm']:.1e}",
                    flush=True,
                )
    data = os.environ.get("SC_JAX_EXTRA_DATA")
    for name in ACCURACY if data else ():
        if only in name:
            row = weights[name] = published(name, Path(data))
            good = row["relative_error"] <= LIMIT and round(row["accuracy"], 4) == row["accuracy_published"]
            broken += [] if good else [name]
            print(f"{name:20} accuracy {row['accuracy']:.4f}  {row['relative_error']:.1e}", flush=True)
    if not only:
        figures = {
            "limit": LIMIT,
            "timm": rows,
            "timm_unscaled": unscaled,
            "published_weights": weights,
            "without": WITHOUT,
            "broken": broken,
        }
        machine.write("parity", figures, ("timm", "torch", "safetensors"))
    if broken:
        raise SystemExit(f"outside the limit: {', '.join(broken)}")


if __name__ == "__main__":
    main()
