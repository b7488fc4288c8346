"""Backbones in Flax NNX, all behind one contract: inputs to `{"logits", "features"}`, by a pure function.

    model = build("resnet50", input_shape=(224, 224, 3), num_classes=1000)
    params, model_state = model.init(jax.random.key(0))
    outputs, _ = model.apply(params, model_state, images)

To add one: write the module in a file of its own, with the class attributes `member_mapping` and `head_parts` (see `Model`), and
a line in `BACKBONES`; the test battery finds it there. Attributes are named as the tensors of its published weights (timm's names,
where timm has it), so that `pretrained` reads them by one rule.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Literal

import jax
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout

BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("sc_jax.models.mlp:MLP", {}),
    "tabular_mlp": ("sc_jax.models.mlp:TabularMLP", {}),
    "cnn": ("sc_jax.models.cnn:CNN", {}),
    "bag_of_words": ("sc_jax.models.bag_of_words:BagOfWords", {}),
    "lstm": ("sc_jax.models.lstm:LSTM", {}),
    "resnet20_cifar": ("sc_jax.models.resnet_cifar:ResNetCIFAR", {"depth": 20}),
    "resnet32_cifar": ("sc_jax.models.resnet_cifar:ResNetCIFAR", {"depth": 32}),
    "resnet44_cifar": ("sc_jax.models.resnet_cifar:ResNetCIFAR", {"depth": 44}),
    "resnet56_cifar": ("sc_jax.models.resnet_cifar:ResNetCIFAR", {"depth": 56}),
    "resnet110_cifar": ("sc_jax.models.resnet_cifar:ResNetCIFAR", {"depth": 110}),
    "wide_resnet16_4": ("sc_jax.models.wide_resnet:WideResNet", {"depth": 16, "widen": 4}),
    "wide_resnet28_10": ("sc_jax.models.wide_resnet:WideResNet", {"depth": 28, "widen": 10}),
    "densenet_bc_100": ("sc_jax.models.densenet:DenseNet", {"blocks": (16, 16, 16), "growth": 12, "stem": "cifar"}),
    "densenet121": ("sc_jax.models.densenet:DenseNet", {"blocks": (6, 12, 24, 16), "growth": 32, "stem": "imagenet"}),
    "resnet18": ("sc_jax.models.resnet:ResNet", {"blocks": (2, 2, 2, 2), "bottleneck": False}),
    "resnet34": ("sc_jax.models.resnet:ResNet", {"blocks": (3, 4, 6, 3), "bottleneck": False}),
    "resnet50": ("sc_jax.models.resnet:ResNet", {"blocks": (3, 4, 6, 3), "bottleneck": True}),
    "resnet101": ("sc_jax.models.resnet:ResNet", {"blocks": (3, 4, 23, 3), "bottleneck": True}),
    "resnet152": ("sc_jax.models.resnet:ResNet", {"blocks": (3, 8, 36, 3), "bottleneck": True}),
    "wide_resnet50_2": ("sc_jax.models.resnet:ResNet", {"blocks": (3, 4, 6, 3), "bottleneck": True, "base_width": 128}),
    "vit_tiny_patch16": ("sc_jax.models.vit:ViT", {"width": 192, "heads": 3}),
    "vit_small_patch16": ("sc_jax.models.vit:ViT", {"width": 384, "heads": 6}),
    "vit_base_patch16": ("sc_jax.models.vit:ViT", {"width": 768, "heads": 12}),
    "efficientnet_b0": ("sc_jax.models.efficientnet:EfficientNet", {"width": 1.0, "depth": 1.0, "dropout": 0.2}),
    "efficientnet_b1": ("sc_jax.models.efficientnet:EfficientNet", {"width": 1.0, "depth": 1.1, "dropout": 0.2}),
    "efficientnet_b2": ("sc_jax.models.efficientnet:EfficientNet", {"width": 1.1, "depth": 1.2, "dropout": 0.3}),
    "efficientnet_b3": ("sc_jax.models.efficientnet:EfficientNet", {"width": 1.2, "depth": 1.4, "dropout": 0.3}),
    "efficientnet_b4": ("sc_jax.models.efficientnet:EfficientNet", {"width": 1.4, "depth": 1.8, "dropout": 0.4}),
    "mobilenetv2_100": ("sc_jax.models.mobilenetv2:MobileNetV2", {"width": 1.0}),
    "mobilenetv2_130": ("sc_jax.models.mobilenetv2:MobileNetV2", {"width": 1.3}),
    "mobilenetv2_140": ("sc_jax.models.mobilenetv2:MobileNetV2", {"width": 1.4}),
    "msdnet": ("sc_jax.models.msdnet:MSDNet", {}),
    "msdnet_imagenet": (
        "sc_jax.models.msdnet:MSDNet",
        {"blocks": (4,) * 5, "channels": 32, "growth": 16, "factors": (1, 2, 4, 4), "stem": "imagenet"},
    ),
    "deeplabv3plus_resnet101": ("sc_jax.models.deeplab:DeepLabV3Plus", {"blocks": (3, 4, 23, 3)}),
}
"""Name → ("module:class", options of its constructor); the module is imported when the backbone is asked for."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone as pure functions of explicit state, built by `build`.

    Attributes:
      init: key → (params, model_state): trainable arrays, and the others (batch statistics).
      apply: (params, model_state, inputs [b, …], train, key, dropout) → (outputs, model_state), outputs {"logits" [b, k],
        "features" [b, d]}; of segmentation "logits" [b, h, w, k] alone, of several exits also "exit_logits" [e, b, k],
        the last of which are the logits, of a network of several members also "member_logits" [m, b, k], of one with `heads` also those of
        `sc_jax.models.heads`. With `dropout` values are dropped by `key` though `train` is false (Monte-Carlo
        dropout): batch statistics stay as they are, and so does stochastic depth.
      statistics: (params, model_state, inputs [b, …], key) → model_state, the batch statistics of this batch alone, in training.
      member_mapping: how many members run in one program; see `map_members`. Chosen for each backbone from measurements
        (docs/speed.md).
      head_parts: the attributes that are the classifier, as the class of the backbone names them: dotted paths, "*" for any
        index. What remains is the backbone, which weights made for other classes can fill.
      dropout: the rate of dropout, 0 for none.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    apply: Callable[..., tuple[dict[str, jax.Array], Any]]
    statistics: Callable[..., Any]
    member_mapping: Literal["vmap", "unroll", "map"]
    head_parts: tuple[str, ...] = ()
    dropout: float = 0.0


def build(name: str, *, input_shape: tuple[int, ...], num_classes: int, **options: Any) -> Model:
    """Builds the backbone `name`.

    Args:
      name: a key of `BACKBONES`.
      input_shape: of one input: (h, w, c) of an image, (d,) of a row of a table, (t,) of a text of t tokens.
      num_classes: k.
      options: what the backbone's constructor takes besides (hidden, dropout, dtype …), over those of `BACKBONES`.

    Returns:
      A `Model`.

    Raises:
      InputError: there is no such backbone (the nearest is named), or it does not take an option, or lacks one.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(BACKBONES)}"
        raise InputError(f"model.name: there is no backbone {name!r}; {hint}")
    reference, preset = BACKBONES[name]
    backbone = pkgutil.resolve_name(reference)
    options = _checked_options(name, backbone, {**preset, **options})

    hashable = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    init, apply, statistics = _functions(backbone, tuple(input_shape), num_classes, tuple(sorted(hashable.items())))
    by_default = inspect.signature(backbone.__init__).parameters.get("dropout")
    dropout = options.get("dropout", 0.0 if by_default is None else by_default.default)
    return Model(init, apply, statistics, backbone.member_mapping, getattr(backbone, "head_parts", ()), dropout)


def takes(name: str, option: str) -> bool:
    """Whether the constructor of the backbone `name`, a key of `BACKBONES`, takes the option."""
    return option in inspect.signature(pkgutil.resolve_name(BACKBONES[name][0]).__init__).parameters


class _Keys:
    """The stream "params" of `nnx.Rngs(key)`, counted in Python: Flax counts in a traced array, and walks all that was traced before it."""

    def __init__(self, key: jax.Array):
        self._key, self._drawn = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self._drawn += 1
        return jax.random.fold_in(self._key, self._drawn - 1)


@functools.lru_cache(maxsize=8)
def _functions(
    backbone: type[nnx.Module], input_shape: tuple[int, ...], num_classes: int, options: tuple[tuple[str, Any], ...]
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """`init`, `apply` and `statistics`; the same functions for the same backbone, so that what JAX traced and compiled of them is found again."""

    def parts(key: jax.Array) -> tuple[Any, Any, Any]:
        return nnx.split(
            backbone(input_shape=input_shape, num_classes=num_classes, rngs=_Keys(key), **dict(options)),
            nnx.Param,
            ...,
        )

    # Initialisation runs once; optimised, the generator of random numbers takes a CPU longer to compile than many a network.
    cheaply = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    traced, compiled = jax.jit(parts), jax.jit(parts, compiler_options=cheaply)
    graphdef, _, _ = jax.eval_shape(traced, jax.random.key(0))

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, model_state = (traced if isinstance(key, jax.core.Tracer) else compiled)(key)
        return params, model_state

    def apply(
        params: Any,
        model_state: Any,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        dropout: bool = False,
    ) -> tuple[dict[str, jax.Array], Any]:
        module = nnx.merge(graphdef, params, model_state, copy=True)
        if dropout:
            for _, part in nnx.iter_modules(module):
                if isinstance(part, Dropout):
                    part.stays_on = True
        outputs = module(inputs, train=train, key=key)
        _, _, model_state = nnx.split(module, nnx.Param, ...)
        return outputs, model_state

    def statistics(params: Any, model_state: Any, inputs: jax.Array, key: jax.Array | None = None) -> Any:
        module = nnx.merge(graphdef, params, model_state, copy=True)
        for _, part in nnx.iter_modules(module):
            if isinstance(part, nnx.BatchNorm):
                part.momentum = 0.0  # nothing of what was there before
        module(inputs, train=True, key=key)
        return nnx.split(module, nnx.Param, ...)[2]

    return init, apply, statistics


def _checked_options(name: str, backbone: type[nnx.Module], options: dict[str, Any]) -> dict[str, Any]:
    """The options, all of which the constructor takes, and all that it needs."""
    parameters = inspect.signature(backbone.__init__).parameters
    taken = {
        key: parameters[key].default for key in parameters if key not in ("self", "input_shape", "num_classes", "rngs")
    }
    for option in options:
        if option not in taken:
            raise InputError(f"model.{option}: {name} does not take it; it takes {', '.join(taken)}")
    for option, default in taken.items():
        if default is inspect.Parameter.empty and option not in options:
            raise InputError(f"model.{option}: {name} needs it; give it")
    if "dtype" in options:
        try:
            dtype = jax.numpy.dtype(options["dtype"])
        except TypeError:
            dtype = None
        if dtype is None or not jax.numpy.issubdtype(dtype, jax.numpy.floating):
            raise InputError(f"model.dtype: {options['dtype']!r}; take 'float32' or 'bfloat16'")
        options = {**options, "dtype": dtype}
    return options


def map_members(function: Callable[..., Any], mapping: str) -> Callable[..., Any]:
    """`function` of one member → function of all, over a leading member axis of every argument and result.

    Args:
      function: of one member; mapping: "vmap", all at once; "unroll", one after the other in the same program, which for convolutions
        on a CPU is several times faster but takes as many times as long to compile; "map", the same as a loop of the program,
        compiled once.
    """
    if mapping == "vmap":
        return jax.vmap(function)
    if mapping == "map":
        return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)

    once = jax.jit(function)  # traced once for all members

    def unrolled(*arguments: Any) -> Any:
        members = jax.tree.leaves(arguments)[0].shape[0]
        each = [once(*jax.tree.map(lambda leaf, m=m: leaf[m], arguments)) for m in range(members)]
        return jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *each)

    return unrolled


def member_outputs(
    model: Model, params: Any, model_state: Any, inputs: jax.Array, names: tuple[str, ...]
) -> dict[str, jax.Array]:
    """Outputs of these names ("logits", "features", a head's) of every member, not training: inputs [b, …] → float32 [m, b, …] each."""

    def one(params: Any, model_state: Any) -> dict[str, jax.Array]:
        outputs, _ = model.apply(params, model_state, inputs)
        return {name: outputs[name] for name in names}

    return map_members(one, model.member_mapping)(params, model_state)


def member_logits(model: Model, params: Any, model_state: Any, inputs: jax.Array) -> jax.Array:
    """Logits of every member, not training: inputs as the model takes them [b, …] → float32 [m, b, k]."""
    return member_outputs(model, params, model_state, inputs, ("logits",))["logits"]


def member_heads(model: Model, params: Any) -> tuple[jax.Array, jax.Array] | None:
    """The last layers: kernel [m, d, k] and bias [m, k] of logits = features · kernel + bias, or None.

    None where the classifier of a backbone (`Model.head_parts`) is not one linear layer.
    """
    if len(model.head_parts) != 1 or model.head_parts[0] not in params:
        return None
    head = params[model.head_parts[0]]
    if set(head) != {"kernel", "bias"} or head["kernel"][...].ndim != 3:
        return None
    return head["kernel"][...], head["bias"][...]
