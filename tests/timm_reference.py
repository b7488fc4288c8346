"""timm's PyTorch models, as the reference of the parity tests, where torchvision may be missing."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from sc_jax import models
from sc_jax.models import pretrained


class _Name(type):
    """A class whose every attribute exists: its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(ModuleType):
    """A module in which every name exists: an empty class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name(name, (), {})


class _Torchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, of which timm's models need nothing but timm imports names from."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def import_timm() -> ModuleType:
    """timm; the test is skipped where torch or timm is missing."""
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    stand_in = [] if importlib.util.find_spec("torchvision") else [_Torchvision()]
    sys.meta_path.extend(stand_in)
    try:
        return importlib.import_module("timm")
    finally:
        for finder in stand_in:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]


def randomise(model: Any) -> None:
    """Gives every tensor of a torch module random values (scales of norms e^{0.7 z}, z normal).

    Fresh weights would hide what is wrong: zero biases, zero means and unit variances.
    """
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * noise.abs())
            elif tensor.ndim > 1:  # so that signals keep their size
                tensor.copy_(noise * (tensor[0].numel() ** -0.5))
            elif name.endswith("weight"):  # of norms: wide, so that ReLU6 has something to cut
                tensor.copy_(torch.exp(0.7 * noise))
            else:
                tensor.copy_(0.1 * noise)


def assert_parity(
    name: str,
    reference: Any,
    input_shape: tuple[int, ...],
    num_classes: int,
    folder: Path,
    **options: Any,
) -> float:
    """The backbone with the torch module's random weights gives its logits and features, to 1e-4 of their size.

    Args:
      name: of the backbone.
      reference: timm's model of the same options.
      input_shape: of an image.
      num_classes: of both.
      folder: for the file of weights.
      options: of the backbone.

    Returns:
      The larger of the two errors, over the largest magnitude of what is compared.
    """
    import safetensors.numpy
    import torch

    images = np.random.default_rng(0).standard_normal((4, *input_shape)).astype(np.float32)
    inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    randomise(reference)
    for module in reference.modules():  # statistics near those of these images, lest deep layers see the same of each
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.97  # not 1: a channel that hardly varies would blow up its rounding
    with torch.no_grad():
        reference.train()(inputs)
    tensors = {key: np.ascontiguousarray(tensor) for key, tensor in reference.state_dict().items()}
    safetensors.numpy.save_file(tensors, folder / "weights.safetensors")
    options = {"input_shape": input_shape, "num_classes": num_classes, **options}
    state = pretrained.load(folder / "weights.safetensors", name, **options)
    model = models.build(name, **options)
    ours = jax.jit(lambda state, x: model.apply(*state, x)[0])(state, images)
    reference.eval()
    with torch.no_grad():
        features = reference.forward_head(reference.forward_features(inputs), pre_logits=True)
        theirs = {"features": features, "logits": reference(inputs)}
    errors = []
    for output, expected in theirs.items():
        expected = expected.numpy()
        error, size = np.abs(ours[output] - expected).max(), np.abs(expected).max()
        assert error < 1e-4 * size, output
        assert error < 1e-3 * np.ptp(expected, axis=0).max(), f"{output}: errors may hide in what all images share"
        errors.append(float(error / size))
    return max(errors)
