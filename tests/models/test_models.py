"""One battery for every backbone of the registry: what it costs, by published figures; and how it behaves, on a small one of each kind."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sc_jax import models
from sc_jax.files import InputError
from sc_jax.models import costs
from sc_jax.models.mlp import MLP


@pytest.fixture(autouse=True, scope="module")
def flax_broadcasts() -> Iterator[None]:
    """Flax's normalisations broadcast their scales."""
    with jax.numpy_rank_promotion("allow"):
        yield


# What it costs: traced only, at the published size.


class Row(NamedTuple):
    """A backbone at its published size.

    Published figures are given with the digits they are printed with. They are from memory, and multiply-accumulates go there
    by the name of FLOPs: of torchvision's documentation for the networks it has; else of the papers. `closed_forms` does not rest on them.
    """

    shape: tuple[int, ...]
    classes: int
    features: int
    form: Callable[[], closed_forms.Tally]
    parameters: str = ""
    macs: str = ""


def imagenet(features: int, form: Callable[[], closed_forms.Tally], parameters: str, macs: str, side: int = 224) -> Row:
    return Row((side, side, 3), 1000, features, form, parameters, macs)


def cifar(features: int, form: Callable[[], closed_forms.Tally], parameters: str = "", macs: str = "") -> Row:
    return Row((32, 32, 3), 10, features, form, parameters, macs)


OF_TOKENS = ("bag_of_words", "lstm")

f = closed_forms
ROWS = {
    "mlp": Row((28, 28, 1), 10, 256, lambda: f.mlp((784, 256, 256, 10))),
    "tabular_mlp": Row((16,), 2, 32, lambda: f.mlp((16, 64, 32, 2))),
    "cnn": Row((28, 28, 1), 10, 7 * 7 * 64, lambda: f.cnn(28, (1, 32, 64), 10)),
    "bag_of_words": Row((40,), 150, 256, lambda: f.bag_of_words(20_000, (256,), 150)),
    "lstm": Row((256,), 2, 128, lambda: f.lstm(20_000, 300, 256, (256, 128), 2, 256)),
    # He et al. 2016, table 6; FLOPs: He et al. 2019, arXiv:1811.00250, table 1
    "resnet20_cifar": cifar(64, lambda: f.resnet_cifar(20), "0.27M", "40.6M"),
    "resnet32_cifar": cifar(64, lambda: f.resnet_cifar(32), "0.46M", "68.9M"),
    "resnet44_cifar": cifar(64, lambda: f.resnet_cifar(44), "0.66M"),
    "resnet56_cifar": cifar(64, lambda: f.resnet_cifar(56), "0.85M", "125M"),
    "resnet110_cifar": cifar(64, lambda: f.resnet_cifar(110), "1.7M", "253M"),
    "wide_resnet16_4": cifar(256, lambda: f.wide_resnet(16, 4, 10)),
    "wide_resnet28_10": cifar(640, lambda: f.wide_resnet(28, 10, 10), "36.5M"),  # Zagoruyko & Komodakis 2016, table 4
    "densenet_bc_100": cifar(342, lambda: f.densenet((16,) * 3, 12, 10, cifar=True), "0.8M"),  # Huang 2017, table 2
    "densenet121": imagenet(1024, lambda: f.densenet((6, 12, 24, 16), 32, 1000, cifar=False), "7978856", "2.83G"),
    "resnet18": imagenet(512, lambda: f.resnet((2, 2, 2, 2), False), "11689512", "1.81G"),
    "resnet34": imagenet(512, lambda: f.resnet((3, 4, 6, 3), False), "21797672", "3.66G"),
    "resnet50": imagenet(2048, lambda: f.resnet((3, 4, 6, 3), True), "25557032", "4.09G"),
    "resnet101": imagenet(2048, lambda: f.resnet((3, 4, 23, 3), True), "44549160", "7.80G"),
    "resnet152": imagenet(2048, lambda: f.resnet((3, 8, 36, 3), True), "60192808", "11.51G"),
    "wide_resnet50_2": imagenet(2048, lambda: f.resnet((3, 4, 6, 3), True, 128), "68883240", "11.40G"),
    # parameters: timm; FLOPs of tiny and small: Touvron et al. 2021 (DeiT) and its followers
    "vit_tiny_patch16": imagenet(192, lambda: f.vit(192), "5717416", "1.3G"),
    "vit_small_patch16": imagenet(384, lambda: f.vit(384), "22050664", "4.6G"),
    "vit_base_patch16": imagenet(768, lambda: f.vit(768), "86567656", "17.56G"),
    "efficientnet_b0": imagenet(1280, lambda: f.efficientnet(1.0, 1.0, 224), "5288548", "0.39G"),
    "efficientnet_b1": imagenet(1280, lambda: f.efficientnet(1.0, 1.1, 240), "7794184", "0.69G", 240),
    "efficientnet_b2": imagenet(1408, lambda: f.efficientnet(1.1, 1.2, 260), "9109994", "1.0G", 260),  # Tan & Le 2019
    "efficientnet_b3": imagenet(1536, lambda: f.efficientnet(1.2, 1.4, 300), "12233232", "1.83G", 300),
    "efficientnet_b4": imagenet(1792, lambda: f.efficientnet(1.4, 1.8, 380), "19341616", "4.39G", 380),
    # FLOPs of 1.3 and 1.4: the authors' table of checkpoints, whose parameter counts leave other things out
    "mobilenetv2_100": imagenet(1280, lambda: f.mobilenetv2(1.0), "3504872", "0.30G"),
    "mobilenetv2_130": imagenet(1664, lambda: f.mobilenetv2(1.3), "", "509M"),
    "mobilenetv2_140": imagenet(1792, lambda: f.mobilenetv2(1.4), "6.11M", "582M"),  # parameters: timm
    "msdnet": cifar(128, lambda: f.msdnet((4, 2, 2, 2, 2, 2, 2), 16, 6, (1, 2, 4), 10, imagenet=False)[-1]),
    "msdnet_imagenet": imagenet(560, lambda: f.msdnet((4,) * 5, 32, 16, (1, 2, 4, 4), 1000, imagenet=True)[-1], "", ""),
    "deeplabv3plus_resnet101": Row((512, 512, 3), 19, 0, lambda: f.deeplab(512, 19)),
}


def agrees(number: int, published: str) -> bool:
    """Whether `number` rounds to what is printed."""
    digits, unit = published.rstrip("MG"), {"M": 1e6, "G": 1e9}.get(published[-1], 1)
    last = unit * 10.0 ** -len(digits.partition(".")[2])
    return abs(number - float(digits) * unit) <= last / 2


@pytest.mark.parametrize("name", models.BACKBONES)
def test_parameters_multiply_accumulates_and_shapes_at_the_published_size(name: str) -> None:
    """Computing in bfloat16, which leaves parameters, statistics and outputs float32."""
    row = ROWS[name]
    options = {"vocabulary_size": 20_000} if name in OF_TOKENS else {}
    model = models.build(name, input_shape=row.shape, num_classes=row.classes, dtype=jnp.bfloat16, **options)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    inputs = jax.ShapeDtypeStruct((2, *row.shape), jnp.int32 if name in OF_TOKENS else jnp.float32)
    program, (outputs, after) = jax.make_jaxpr(model.apply, return_shape=True)(params, state, inputs)

    parameters, macs = sum(leaf.size for leaf in jax.tree.leaves(params)), costs.count(program.jaxpr)
    assert parameters == row.form().parameters
    assert macs == 2 * row.form().macs  # two examples
    assert not row.parameters or agrees(parameters, row.parameters)
    assert not row.macs or agrees(macs // 2, row.macs)

    segments = name.startswith("deeplab")
    assert outputs["logits"].shape == ((2, *row.shape[:2], row.classes) if segments else (2, row.classes))
    if not segments:
        assert outputs["features"].shape == (2, row.features)
    assert set(outputs) <= {"logits", "features", "exit_logits"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, outputs))} == {"float32"}
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} <= {"float32"}


@pytest.mark.parametrize("result", ["models", "parity"])
def test_results_in_the_docs_are_of_every_backbone_as_it_is(result: str) -> None:
    file = Path(__file__).parents[2] / f"benchmarks/results/{result}.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    if result == "parity":
        stands = [*found["timm"], *found["published_weights"], *found["without"]]
        assert sorted(stands) == sorted(models.BACKBONES), "run `python -m benchmarks.parity`"
        return
    assert list(found["models"]) == list(models.BACKBONES), "run `python -m benchmarks.models`"
    for name, row in found["models"].items():
        form, measured = ROWS[name].form(), (row["parameters"], row["macs"])
        if (tuple(row["input_shape"]), row["num_classes"]) == (
            ROWS[name].shape,
            ROWS[name].classes,
        ) and name not in OF_TOKENS:
            assert measured == (form.parameters, form.macs), name
        elif name.startswith("deeplab"):  # 1024×2048 is eight times 512×512, but for the one mean of the whole image
            assert measured == (form.parameters, 8 * form.macs - 7 * 2048 * 256), name
        else:
            assert name in ("tabular_mlp", *OF_TOKENS)  # of another width, and another vocabulary


# How it behaves: compiled, on small ones.

SMALL: dict[str, tuple[tuple[int, ...], str, dict[str, Any]]] = {
    "mlp": ((6, 6, 1), "head", {"hidden": (16, 12)}),
    "tabular_mlp": ((6,), "head", {}),
    "cnn": ((12, 12, 1), "head", {"hidden": (4, 8)}),
    "bag_of_words": ((9,), "head", {"vocabulary_size": 20, "hidden": (8, 6)}),
    "lstm": ((9,), "head", {"vocabulary_size": 20, "embedding": 6, "hidden": 5, "head": (8, 6)}),
    "resnet20_cifar": ((16, 16, 3), "linear", {"depth": 8}),
    "wide_resnet16_4": ((16, 16, 3), "fc", {"depth": 10, "widen": 1}),
    "densenet_bc_100": ((16, 16, 3), "classifier", {"blocks": (2, 1), "growth": 4}),
    "resnet50": ((32, 32, 3), "fc", {"blocks": (1, 1, 1, 1)}),
    "vit_tiny_patch16": ((32, 32, 3), "head", {"width": 24, "heads": 3, "depth": 2}),
    "efficientnet_b0": ((32, 32, 3), "classifier", {"width": 0.25, "depth": 0.1}),
    "mobilenetv2_100": ((64, 64, 3), "classifier", {"width": 0.25}),
    "msdnet": ((32, 32, 3), "", {"blocks": (1, 1, 1), "channels": 4, "growth": 2}),
    "deeplabv3plus_resnet101": ((32, 32, 3), "", {"blocks": (1, 1, 1, 1)}),
}
"""Of every class: size of an input, name of the head, options."""

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # to compile, not to run


class Small:
    """A small backbone with dropout, its compiled functions, and how often each was traced."""

    def __init__(self, name: str):
        self.name = name
        self.shape, self.head, self.options = SMALL[name]
        self.traces = {"evaluate": 0, "step": 0}
        self.model = self.build()
        self.compiler_options = {} if name.startswith("deeplab") else FAST  # dilated gradients run too slowly

        def evaluate(params: Any, state: Any, inputs: jax.Array, key: jax.Array) -> Any:
            self.traces["evaluate"] += 1
            return self.model.apply(params, state, inputs, train=False, key=key)[0]

        def step(params: Any, state: Any, inputs: jax.Array, key: jax.Array) -> Any:
            self.traces["step"] += 1

            def loss(params: Any) -> Any:
                outputs, after = self.model.apply(params, state, inputs, train=True, key=key)
                logits = outputs.get("exit_logits", outputs["logits"])  # every exit learns
                weights = jnp.sin(1.0 + jnp.arange(logits.size)).reshape(logits.shape)
                return jnp.sum(weights * logits), (outputs, after)

            return jax.grad(loss, has_aux=True)(params)

        self.evaluate = jax.jit(evaluate, compiler_options=self.compiler_options)
        self.step = jax.jit(step, compiler_options=self.compiler_options)

    def build(self, **options: Any) -> models.Model:
        return models.build(
            self.name, input_shape=self.shape, num_classes=3, dropout=0.5, **{**self.options, **options}
        )

    @cache  # noqa: B019 (as many as there are kinds)
    def variables(self, seed: int = 0) -> tuple[Any, Any]:
        """Parameters drawn at random, none of them zero, so that nothing hides behind an initialisation; and a state near that of
        other inputs: where a normalisation leaves the mean of what enters, examples look alike behind it.
        """
        params, state = self.drawn(seed)
        _, (_, after) = self.step(params, state, self.inputs(100 + seed), jax.random.key(seed))
        # One step takes momentum's tenth of the inputs' statistics; nine tenths of them and a tenth of the old are wanted.
        return params, jax.tree.map(lambda old, new: old + 9 * (new - old), state, after)

    def drawn(self, seed: int) -> tuple[Any, Any]:
        """Random kernels that keep the size of what passes, scales and variances about 1, the rest about 0."""
        rng = np.random.default_rng(seed)

        def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            noise = rng.standard_normal(leaf.shape)
            kind = jax.tree_util.keystr(path)
            if "'scale'" in kind or "'var'" in kind:
                return jnp.asarray(np.exp(0.2 * noise), leaf.dtype)
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.2
            return jnp.asarray(deviation * noise, leaf.dtype)

        return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(self.model.init, jax.random.key(0)))

    def inputs(self, seed: int = 0, n: int = 4) -> jax.Array:
        rng = np.random.default_rng([7, seed])
        if self.name in OF_TOKENS:
            return jnp.asarray(rng.integers(1, 20, (n, *self.shape)), jnp.int32)
        return jnp.asarray(rng.standard_normal((n, *self.shape)), jnp.float32)


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Small:
    return compiled(request.param)


compiled = cache(Small)


def test_a_small_one_of_every_class_is_tried() -> None:
    assert {models.BACKBONES[name][0] for name in SMALL} == {reference for reference, _ in models.BACKBONES.values()}


def test_logits_vary_between_examples(small: Small) -> None:
    """Else what follows would say little: errors might hide in what all examples share."""
    for seed in range(2):
        logits = small.evaluate(*small.variables(seed), small.inputs(seed), jax.random.key(0))["logits"]
        assert rms(logits - logits.mean(0, keepdims=True)) > 0.05 * rms(logits)


def rms(x: jax.Array) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x))))


def test_the_head_is_what_the_class_says(small: Small) -> None:
    """Changed, it changes the logits (of every exit), and no feature; and there is more than it."""
    params, state = small.variables()
    heads = []

    def changed(path: Any, leaf: jax.Array) -> jax.Array:
        name = ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
        heads.append(any(fnmatch.fnmatchcase(name, f"{part}.*") for part in small.model.head_parts))
        return leaf + 1 if heads[-1] else leaf

    other = jax.tree_util.tree_map_with_path(changed, params)
    assert any(heads)
    assert not all(heads)
    before, after = (small.evaluate(p, state, small.inputs(), jax.random.key(0)) for p in (params, other))
    for output in before:
        if output == "features":
            np.testing.assert_array_equal(before[output], after[output])
        else:
            difference = np.abs(before[output] - after[output])
            assert difference.reshape(-1, *difference.shape[-2:]).max((1, 2)).min() > 0, output


def test_logits_are_the_head_on_the_features(small: Small) -> None:
    params, state = small.variables()
    outputs = small.evaluate(params, state, small.inputs(), jax.random.key(0))
    if small.name == "msdnet":
        np.testing.assert_array_equal(outputs["logits"], outputs["exit_logits"][-1])
        head = params["exits"][len(small.options["blocks"]) - 1]["head"]
    elif small.head:
        head = params[small.head]
    else:
        assert set(outputs) == {"logits"}  # of segmentation: no features
        return
    expected = outputs["features"] @ head["kernel"][...] + head["bias"][...]
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)


def test_the_heads_of_members_are_where_they_are_one_linear_layer(small: Small) -> None:
    members = [small.variables(seed) for seed in range(2)]
    params, _ = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *members)
    heads = models.member_heads(small.model, params)
    if small.name == "msdnet" or not small.head:
        assert heads is None
        return
    for m, own in enumerate(members):
        outputs = small.evaluate(*own, small.inputs(), jax.random.key(0))
        expected = outputs["features"] @ heads[0][m] + heads[1][m]
        np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)


def test_examples_do_not_mix_in_evaluation(small: Small) -> None:
    params, state = small.variables()
    inputs = small.inputs()
    whole = small.evaluate(params, state, inputs, jax.random.key(0))["logits"]
    changed = small.evaluate(params, state, inputs.at[3].set(inputs[0]), jax.random.key(0))["logits"]
    scale = np.abs(whole).max()
    np.testing.assert_allclose(whole[:3] / scale, changed[:3] / scale, atol=1e-6)
    np.testing.assert_allclose(changed[3] / scale, whole[0] / scale, atol=1e-5)
    assert np.abs(whole[3] - whole[0]).max() > 0.05 * scale


def test_gradients_are_finite_and_reach_every_parameter(small: Small) -> None:
    """At random parameters: at the start a zero-initialised scale or layer keeps gradients from what lies before it."""
    params, state = small.variables()
    grads, _ = small.step(params, state, small.inputs(), jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_dropout_acts_in_training_only_and_by_its_key(small: Small) -> None:
    params, state = small.variables()

    def logits(train: bool, seed: int) -> np.ndarray:
        arguments = (params, state, small.inputs(), jax.random.key(seed))
        return np.asarray((small.step(*arguments)[1][0] if train else small.evaluate(*arguments))["logits"])

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    np.testing.assert_array_equal(logits(True, 0), logits(True, 0))
    assert not np.array_equal(logits(True, 0), logits(True, 1))


def test_members_under_vmap_equal_each_alone(small: Small) -> None:
    """Two members with parameters, batch statistics, inputs and dropout of their own, in training."""
    each = [(*small.variables(m), small.inputs(m), jax.random.key(m)) for m in range(2)]
    together = jax.jit(
        jax.vmap(lambda p, s, x, k: small.model.apply(p, s, x, train=True, key=k)),
        compiler_options=small.compiler_options,
    )
    outputs, after = together(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    for m in range(2):
        _, alone = small.step(*each[m])
        found = jax.tree_util.tree_leaves_with_path((outputs, after))
        for (path, leaf), single in zip(found, jax.tree.leaves(alone), strict=True):
            scale = np.abs(single).max()
            np.testing.assert_allclose(leaf[m] / scale, single / scale, atol=2e-4, err_msg=str(path))
        before = jax.tree.leaves(each[m][1])
        assert all(not np.array_equal(a[m], b) for a, b in zip(jax.tree.leaves(after), before, strict=True))


def test_bfloat16_is_near_float32(small: Small) -> None:
    """Within what rounding does to this network.

    How much a random network amplifies rounding is told by float32 with parameters rounded to bfloat16: one rounding in every
    layer. Computing in bfloat16 rounds these too, then what the layer gives, what normalisation and activation give, and
    the sum with a shortcut: up to five of that size, independent, so √5 times the effect, and as much again as both are single draws.
    """
    params, state = small.variables()
    model = small.build(dtype=jnp.bfloat16)
    evaluate = jax.jit(lambda p, s, x: model.apply(p, s, x)[0]["logits"], compiler_options=small.compiler_options)
    half = evaluate(params, state, small.inputs())
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(leaf.dtype), params)
    full, near = (small.evaluate(p, state, small.inputs(), jax.random.key(0))["logits"] for p in (params, rounded))
    assert 0 < rms(half - full) < 5 * rms(near - full)
    assert rms(half - full) < 0.5 * rms(full - full.mean(0, keepdims=True)), "examples are told apart"


def test_batch_statistics_stay_float32_in_bfloat16(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training they are those of the bfloat16 activations, to float32's rounding; in evaluation they are not rounded either.

    With u = 2⁻²⁴ a float32 sum of n terms, in any order, errs by at most (n − 1)·u·Σ|x|; hence a mean by (n + 1)·u·E|x|, and
    E[x²] − E[x]² by (3n + 8)·u·E[x²]. In evaluation y is rounded once to 8 bits, half a unit of which is at most 2⁻⁸·|y|.
    """
    if not jax.tree.leaves(small.variables()[1]):
        return  # nothing is normalised by batches
    norm_of, seen = nnx.BatchNorm.__call__, []

    def noted(norm: nnx.BatchNorm, x: jax.Array, **options: Any) -> jax.Array:
        x = jax.lax.optimization_barrier(x)  # what is seen here is what is normalised
        before = norm.mean[...], norm.var[...]
        y = norm_of(norm, x, **options)
        seen.append((x, y, norm.scale[...], norm.bias[...], *before, norm.mean[...], norm.var[...]))
        return y

    monkeypatch.setattr(nnx.BatchNorm, "__call__", noted)
    model = small.build(dtype=jnp.bfloat16)
    exact = {**small.compiler_options, "xla_allow_excess_precision": False}  # roundings to bfloat16 are not left out

    @jax.jit(compiler_options=exact)
    def both(p: Any, s: Any, x: jax.Array, key: jax.Array) -> Any:
        seen.clear()
        _, after = model.apply(p, s, x, train=True, key=key)
        trained = tuple(seen)
        seen.clear()
        model.apply(p, s, x)
        return after, trained, tuple(seen)

    after, trained, evaluated = both(*small.variables(), small.inputs(), jax.random.key(0))
    leaves = jax.tree.leaves(after)
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert len(trained) == len(evaluated) == len(leaves) / 2
    kept = np.concatenate([leaf for *_, mean, var in trained for leaf in (mean, var)])
    np.testing.assert_array_equal(np.sort(kept), np.sort(np.concatenate(leaves)))
    assert (kept != kept.astype(jnp.bfloat16)).mean() > 0.9, "bfloat16 would have to round them"

    u, told_apart = 2.0**-24, False
    for x, _, _, _, mean_before, var_before, mean, var in trained:
        assert x.dtype == jnp.bfloat16
        values = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
        n, size, square = len(values), np.abs(values).mean(0), np.square(values).mean(0)
        for old, new, of_batch, error in (
            (mean_before, mean, values.mean(0), (n + 1) * u * size),
            (var_before, var, values.var(0), (3 * n + 8) * u * square),
        ):
            old = np.asarray(old, np.float64)
            tolerance = 0.1 * error + 3 * u * (0.9 * np.abs(old) + 0.1 * np.abs(of_batch))
            assert (np.abs(new - (0.9 * old + 0.1 * of_batch)) <= tolerance).all()
            rounded = of_batch.astype(jnp.bfloat16).astype(np.float64)
            told_apart |= bool((0.1 * np.abs(rounded - of_batch) > tolerance).any())
    assert told_apart, "statistics rounded to bfloat16 would be seen"

    for arrays in evaluated:
        x, y, scale, bias, mean, var = (np.asarray(array, np.float64) for array in arrays[:6])
        factor = np.abs(scale) / np.sqrt(var + 1e-5)
        expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
        tolerance = 2.0**-8 * np.abs(expected) + 16 * u * (np.abs(x - mean) * factor + np.abs(bias))
        assert (np.abs(y - expected) <= tolerance).all()


def test_one_compilation_per_shape(small: Small) -> None:
    """Other values, and a state that training returned, are the same program."""
    params, state = small.variables()
    for seed in range(2):
        small.evaluate(params, state, small.inputs(seed), jax.random.key(seed))
        _, (_, state) = small.step(params, state, small.inputs(seed), jax.random.key(seed))
    assert small.traces == {"evaluate": 1, "step": 1}


@pytest.mark.parametrize("mapping", ["vmap", "unroll"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_both_mappings_of_members_equal_each_alone(name: str, mapping: str) -> None:
    small = compiled(name)
    each = [small.variables(m) for m in range(3)]
    forward = models.map_members(lambda p, s: small.model.apply(p, s, small.inputs())[0]["logits"], mapping)
    together = forward(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))
    for m in range(3):
        alone = small.evaluate(*each[m], small.inputs(), jax.random.key(0))["logits"]
        np.testing.assert_allclose(together[m], alone, atol=2e-5)


def test_members_one_after_the_other_are_traced_once() -> None:
    traces = []

    def square(x: jax.Array) -> jax.Array:
        traces.append(x.shape)
        return x * x

    np.testing.assert_array_equal(models.map_members(square, "unroll")(jnp.arange(6.0).reshape(3, 2))[2], [16, 25])
    assert traces == [(2,)]


@pytest.mark.parametrize("traced", [False, True])
def test_parameters_are_drawn_from_the_keys_of_flax(traced: bool) -> None:
    model = models.build("mlp", input_shape=(5,), num_classes=3, hidden=(4, 4))
    backbone = MLP(input_shape=(5,), num_classes=3, hidden=(4, 4), rngs=nnx.Rngs(jax.random.key(8)))
    params, _ = (jax.jit(model.init) if traced else model.init)(jax.random.key(8))
    expected = nnx.split(backbone, nnx.Param, ...)[1]
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for found, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, leaf, rtol=1e-6)


def test_a_backbone_built_again_is_the_same_functions() -> None:
    """So that what was traced and compiled is found again, in whatever form an option is given."""
    one, same, other = (
        models.build("mlp", input_shape=(5,), num_classes=3, hidden=hidden) for hidden in ((4, 4), [4, 4], (4, 5))
    )
    assert (one.init, one.apply) == (same.init, same.apply)
    assert one.apply != other.apply


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("mlp", {"wat": 1}, r"model\.wat: mlp does not take it; it takes hidden, dropout, dtype"),
        (
            "resnet20_cifar",
            {"heads": 3},
            r"model\.heads: resnet20_cifar does not take it; it takes depth, hidden, dropout, dtype",
        ),
        ("lstm", {}, r"model\.vocabulary_size: lstm needs it"),
        ("mlp", {"dtype": "bfloat61"}, r"model\.dtype: 'bfloat61'; take 'float32' or 'bfloat16'"),
        ("mlp", {"dtype": "int32"}, r"model\.dtype: 'int32'; take 'float32' or 'bfloat16'"),
        ("cnn", {}, r"model\.input_shape: \(6,\); this network takes images"),
        ("densenet121", {}, r"model\.input_shape: \(6,\); this network takes images"),
        ("vit_tiny_patch16", {}, r"model\.input_shape: \(6,\); this network takes images"),
        ("deeplabv3plus_resnet101", {}, r"model\.input_shape: \(6,\); this network takes images"),
    ],
)
def test_what_a_constructor_does_not_take_is_refused(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        models.build(name, input_shape=(6,), num_classes=3, **options)


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"model\.name.*'mpl'.*did you mean 'mlp'"):
        models.build("mpl", input_shape=(6,), num_classes=10)
