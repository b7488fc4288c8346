"""Published weights: reading, names and layouts, refusals, export, preprocessing; and real weights on real images."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path
from types import ModuleType

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from timm_reference import assert_parity, import_timm

from sc_jax import models
from sc_jax.data.images import eval_crop, eval_record
from sc_jax.data.pipelines import evaluation_transform
from sc_jax.files import InputError
from sc_jax.models import pretrained

SHAPE = (16, 16, 3)
SMALL = {
    "mlp": {},
    "tabular_mlp": {},
    "cnn": {},
    "bag_of_words": {"vocabulary_size": 20},
    "lstm": {"vocabulary_size": 20},
    "resnet20_cifar": {"depth": 8},
    "wide_resnet16_4": {"depth": 10, "widen": 1},
    "densenet121": {"blocks": (2, 1), "growth": 4},
    "resnet50": {"blocks": (1, 1, 1, 1)},
    "vit_tiny_patch16": {"depth": 1, "width": 6, "heads": 2},
    "efficientnet_b0": {"width": 0.25, "depth": 0.1},
    "mobilenetv2_100": {"width": 0.25},
    "msdnet": {"blocks": (1, 1, 1), "channels": 4, "growth": 2},
    "deeplabv3plus_resnet101": {"blocks": (1, 1, 1, 1)},
}
"""One backbone of each family, and what makes it small."""

HEADS = {
    **dict.fromkeys(("mlp", "tabular_mlp", "cnn", "bag_of_words", "lstm", "vit_tiny_patch16"), r"head\."),
    **dict.fromkeys(("densenet121", "efficientnet_b0", "mobilenetv2_100"), r"classifier\."),
    **dict.fromkeys(("wide_resnet16_4", "resnet50"), r"fc\."),
    "resnet20_cifar": r"linear\.",
    "msdnet": r"exits\.[012]\.head\.",
    "deeplabv3plus_resnet101": r"(aspp|low|decoder|head)\.",
}
"""What the names of the classifier's tensors begin with."""


@pytest.fixture(autouse=True)
def _allow_flax_to_broadcast():
    with jax.numpy_rank_promotion("allow"):  # Flax's BatchNorm broadcasts its scale
        yield


def arguments(name: str) -> dict[str, object]:
    return {
        "input_shape": (7,) if name in ("bag_of_words", "lstm", "tabular_mlp") else SHAPE,
        "num_classes": 5,
        **SMALL[name],
    }


@functools.cache
def state(name: str) -> tuple[object, object]:
    """(params, model_state) of the small backbone, every number of them different."""
    shapes = jax.eval_shape(models.build(name, **arguments(name)).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


@functools.cache
def names(name: str) -> list[str]:
    """Torch names of all tensors of the backbone, in its full depth where the names depend on that."""
    options = {"densenet121": {"blocks": (2, 12)}, "vit_base_patch16": {"depth": 2}}.get(name, {})
    init = models.build(name, input_shape=(64, 64, 3), num_classes=5, **options).init
    return [place.name for place in pretrained._places(jax.eval_shape(init, jax.random.key(0)))[0]]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A good file of the CIFAR ResNet."""
    pretrained.save(tmp_path / "weights.safetensors", *state("resnet20_cifar"))
    return tmp_path / "weights.safetensors"


def load(path: Path, **changes: object) -> tuple[object, object]:
    return pretrained.load(path, "resnet20_cifar", **{**arguments("resnet20_cifar"), **changes})


@pytest.mark.parametrize("name", sorted(SMALL))
def test_what_is_saved_is_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    pretrained.save(tmp_path / "w.safetensors", *state(name))
    loaded = pretrained.load(tmp_path / "w.safetensors", name, **arguments(name))
    assert jax.tree.structure(loaded) == jax.tree.structure(state(name))
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(state(name)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    tensors = pretrained.read_tensors(tmp_path / "w.safetensors")
    assert len(tensors) == len(jax.tree.leaves(loaded))  # no two leaves under one name


def test_a_small_one_of_every_family_is_tried() -> None:
    assert {models.BACKBONES[name][0] for name in SMALL} == {reference for reference, _ in models.BACKBONES.values()}
    assert SMALL.keys() == HEADS.keys()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_file_of_other_classes_fills_all_but_the_head(name: str, tmp_path: Path) -> None:
    """The head is that of the backbone's own initialisation by the same key; all else is the file's, which is read once."""
    path = tmp_path / "w.safetensors"
    pretrained.save(path, *state(name))  # of 5 classes
    options = {**arguments(name), "num_classes": 7}
    start = pretrained.initializer(path, name, part="backbone", **options)
    path.unlink()
    model = models.build(name, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    places = [place.name for place in pretrained._places(shapes)[0]]
    of_head = [re.match(HEADS[name], place) is not None for place in places]
    assert 0 < sum(of_head) < len(places)

    def own_head(key: jax.Array) -> list[jax.Array]:
        return [leaf for leaf, head in zip(jax.tree.leaves(model.init(key)), of_head, strict=True) if head]

    keys = jax.random.split(jax.random.key(3), 2)
    found, heads = jax.jit(jax.vmap(lambda key: (start(key), own_head(key))))(keys)
    assert jax.tree.structure(found) == jax.tree.structure(shapes)
    for place, leaf, head, theirs in zip(
        places, jax.tree.leaves(found), of_head, jax.tree.leaves(state(name)), strict=True
    ):
        assert leaf.dtype == np.float32
        expected = heads.pop(0) if head else np.broadcast_to(theirs, leaf.shape)
        np.testing.assert_array_equal(leaf, expected, err_msg=place)
        if head and leaf.ndim > 2:  # a kernel: biases, and scales of norms, start alike
            assert not np.array_equal(leaf[0], leaf[1]), place


def test_an_initializer_of_all_is_the_file_whatever_the_key(weights: Path) -> None:
    options = arguments("resnet20_cifar")
    start = pretrained.initializer(weights, "resnet20_cifar", **options)
    keys = jax.random.split(jax.random.key(0), 2)
    for tree in (start(keys[0]), jax.tree.map(lambda leaf: leaf[1], jax.jit(jax.vmap(start, axis_size=2))(keys))):
        for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(load(weights)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match="head has 5 classes"):
        pretrained.initializer(weights, "resnet20_cifar", **{**options, "num_classes": 7})


def test_a_part_is_all_or_the_backbone(weights: Path) -> None:
    with pytest.raises(InputError, match=r"part: 'body'; take 'all' or 'backbone'"):
        pretrained.initializer(weights, "resnet20_cifar", part="body", **arguments("resnet20_cifar"))


def test_a_backbone_s_tensors_are_checked_and_its_head_is_not(weights: Path, tmp_path: Path) -> None:
    tensors = pretrained.read_tensors(weights)
    path = tmp_path / "w.safetensors"

    def start(changes: dict[str, np.ndarray], without: tuple[str, ...] = ()) -> tuple[object, object]:
        kept = {name: tensor for name, tensor in (tensors | changes).items() if name not in without}
        safetensors.numpy.save_file(kept, path)
        init = pretrained.initializer(path, "resnet20_cifar", part="backbone", **arguments("resnet20_cifar"))
        return jax.jit(init)(jax.random.key(0))

    whole = jax.tree.leaves(start({}))
    quantised = np.zeros((3, 2), np.int8)
    headless = start({}, without=("linear.weight", "linear.bias"))
    for tree in (headless, start({"linear.weight": quantised, "linear.extra": quantised})):
        for ours, theirs in zip(jax.tree.leaves(tree), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match=r"'resnet20_cifar': 1 missing \(conv1\.weight\): name the backbone"):
        start({}, without=("conv1.weight",))
    with pytest.raises(InputError, match=r"1 unexpected \(bn7\.bias\)"):
        start({"bn7.bias": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"1 of another shape \(bn1\.bias expected \[16\] found \[3\]\)"):
        start({"bn1.bias": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match=r"bn1\.bias is not finite"):
        start({"bn1.bias": np.full(16, np.nan, np.float32)})


def test_a_dilated_backbone_is_filled_from_a_classifier_s_file(tmp_path: Path) -> None:
    """DeepLabV3+ from a ResNet of the same blocks, whose `fc` is passed over; of other blocks the difference is named."""
    path, name = tmp_path / "resnet.safetensors", "deeplabv3plus_resnet101"
    pretrained.save(path, *state("resnet50"))
    start = pretrained.initializer(path, name, part="backbone", **arguments(name))
    params, model_state = jax.jit(start)(jax.random.key(0))
    theirs, their_state = state("resnet50")
    for tree, found in ((params["backbone"], theirs), (model_state["backbone"], their_state)):
        ours = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        expected = {jax.tree_util.keystr(key): leaf for key, leaf in jax.tree_util.tree_leaves_with_path(found)}
        assert ours.keys() == {key for key in expected if "'fc'" not in key}
        for key, leaf in ours.items():
            np.testing.assert_array_equal(leaf, expected[key])
    deeper = {**arguments(name), "blocks": (1, 1, 2, 1)}
    with pytest.raises(InputError, match=r"missing \(backbone\.layer3\.1\.bn1\.bias"):
        pretrained.initializer(path, name, part="backbone", **deeper)
    with pytest.raises(InputError, match=r"missing \(aspp\."):
        pretrained.initializer(path, name, **arguments(name))


def test_layouts_are_torchs(tmp_path: Path) -> None:
    """A linear layer is [out, in], a convolution [out, in / groups, h, w]."""
    pretrained.save(tmp_path / "w.safetensors", *state("efficientnet_b0"))
    tensors = pretrained.read_tensors(tmp_path / "w.safetensors")
    params, model_state = state("efficientnet_b0")
    stem, depthwise = params["conv_stem"]["kernel"][...], params["blocks"][0][0]["conv_dw"]["kernel"][...]
    assert tensors["conv_stem.weight"][3, 2, 1, 0] == stem[1, 0, 2, 3]
    assert tensors["blocks.0.0.conv_dw.weight"].shape == (depthwise.shape[3], 1, 3, 3)
    np.testing.assert_array_equal(tensors["classifier.weight"], params["classifier"]["kernel"][...].T)
    np.testing.assert_array_equal(tensors["bn1.running_var"], model_state["bn1"]["var"][...])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_any_width_of_floating_point_is_read_as_float32(dtype: type, weights: Path, tmp_path: Path) -> None:
    whole = pretrained.read_tensors(weights)
    narrow = {name: tensor.astype(dtype) for name, tensor in whole.items()}
    safetensors.numpy.save_file(narrow, tmp_path / "narrow.safetensors")
    read = pretrained.read_tensors(tmp_path / "narrow.safetensors")
    for name, tensor in narrow.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], tensor.astype(np.float32))


@pytest.mark.parametrize(
    "wrap", [dict, lambda t: {"state_dict": t, "epoch": 3}, lambda t: {"model": {"state_dict": t}}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files_are_unwrapped(wrap: object, prefix: str, weights: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {prefix + name: torch.from_numpy(tensor) for name, tensor in pretrained.read_tensors(weights).items()}
    tensors[prefix + "bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(wrap(tensors), tmp_path / "w.pth")
    for ours, theirs in zip(jax.tree.leaves(load(tmp_path / "w.pth")), jax.tree.leaves(load(weights)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Evil:
    """What unpickling must not run."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_no_code_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2), "b": Evil()}, "evil.pth")
    Path("plain.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("evil.pth", "plain.bin"):
        with pytest.raises(InputError, match=rf"{name}: not readable as torch tensors alone"):
            pretrained.read_tensors(name)
    assert not Path("pwned").exists()


def test_a_torch_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for value in ([torch.zeros(2)], {"a": 3}, torch.zeros(2)):
        torch.save(value, tmp_path / "w.pt")
        with pytest.raises(InputError, match=r"w\.pt: it holds no table of named tensors"):
            pretrained.read_tensors(tmp_path / "w.pt")


def test_sparse_torch_tensors_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.eye(2).to_sparse()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="quantised or sparse"):
        pretrained.read_tensors(tmp_path / "w.pt")


def test_without_torch_the_error_says_how_to_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.pth").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install torch; or convert .* safetensors\.torch\.save_file"):
        pretrained.read_tensors(tmp_path / "w.pth")


@pytest.mark.parametrize("version", ["1.13.1+cu117", "2.5.1", "2.5.0a0+git1234"])
def test_torch_that_may_run_code_is_refused(
    version: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVE-2025-32434: before 2.6 `weights_only=True` could be made to. "2.13" is later than "2.6"."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth")
    for safe in ("2.6.0", "2.13.0+cpu", "10.0"):
        monkeypatch.setattr(torch, "__version__", safe)
        assert pretrained.read_tensors(tmp_path / "w.pth").keys() == {"a"}
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(
        InputError, match=rf"w\.pth: torch {re.escape(version)} may run code .* pip install 'torch>=2\.6'"
    ):
        pretrained.read_tensors(tmp_path / "w.pth")
    pretrained.read_tensors(weights)  # which needs no torch


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_damaged_file_is_refused(suffix: str, keep: int, weights: Path, tmp_path: Path) -> None:
    data = weights.read_bytes()
    if suffix == ".pth":
        torch = pytest.importorskip("torch")
        torch.save({"a": torch.zeros(100)}, tmp_path / "w.pth")
        data = (tmp_path / "w.pth").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(data[:keep])
    with pytest.raises(InputError, match=rf"cut\{suffix}: not readable"):
        pretrained.read_tensors(tmp_path / f"cut{suffix}")


def test_a_missing_file_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        pretrained.read_tensors(tmp_path / "w.safetensors")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"w\.h5: weights are read from \.safetensors"):
        pretrained.read_tensors(tmp_path / "w.h5")


def test_missing_and_unexpected_tensors_are_named_and_counted(weights: Path, tmp_path: Path) -> None:
    tensors = pretrained.read_tensors(weights)
    changed = {f"x{i}": np.zeros(1, np.float32) for i in range(7)} | tensors
    del changed["bn1.bias"]
    changed["conv1.weight"] = changed["conv1.weight"][:, :1].copy()
    safetensors.numpy.save_file(changed, tmp_path / "wrong.safetensors")
    pattern = (
        r"wrong\.safetensors: these are not the weights of 'resnet20_cifar': 1 missing \(bn1\.bias\); "
        r"7 unexpected \(x0, x1, x2, x3, x4 and 2 more\); "
        r"1 of another shape \(conv1\.weight expected \[16, 3, 3, 3\] found \[16, 1, 3, 3\]\)"
    )
    with pytest.raises(InputError, match=pattern) as caught:
        load(tmp_path / "wrong.safetensors")
    assert "\n" not in str(caught.value)


def test_a_head_of_other_classes_says_how_many(weights: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"linear\.weight expected \[7, 64\] found \[5, 64\].*has 5 classes: set num_classes to that, or take the file's backbone alone",
    ):
        load(weights, num_classes=7)


def test_numbers_that_are_no_weights_are_refused(weights: Path, tmp_path: Path) -> None:
    tensors = pretrained.read_tensors(weights)
    for value, message in (
        (np.zeros(16, np.int8), "bn1.bias holds int8"),
        (np.full(16, np.nan, np.float32), "not finite"),
    ):
        safetensors.numpy.save_file(tensors | {"bn1.bias": value}, tmp_path / "w.safetensors")
        with pytest.raises(InputError, match=message):
            load(tmp_path / "w.safetensors")


def test_an_export_that_fails_leaves_what_stood_there(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        pretrained.save(weights, *state("cnn"))
    assert weights.read_bytes() == before
    assert list(weights.parent.iterdir()) == [weights]


def mobilenet() -> dict[str, str]:
    """torchvision's modules of MobileNetV2 → timm's, walked as torchvision/models/mobilenetv2.py builds them."""
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.18.0": "conv_head", "features.18.1": "bn2"}
    number = 0
    for stage, (expansion, depth) in enumerate([(1, 1), (6, 2), (6, 3), (6, 4), (6, 3), (6, 3), (6, 1)]):
        for block in range(depth):
            number += 1
            theirs, ours = f"features.{number}.conv", f"blocks.{stage}.{block}"
            layers = ["0.0", "0.1", "1", "2"] if expansion == 1 else ["0.0", "0.1", "1.0", "1.1", "2", "3"]
            parts = ["conv_dw", "bn1", "conv_pw", "bn2"]
            parts = parts if expansion == 1 else ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            names |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in zip(layers, parts, strict=True)}
    return names | {"classifier.1": "classifier"}


def efficientnet() -> dict[str, str]:
    """The same of EfficientNet-B0, as torchvision/models/efficientnet.py builds it."""
    names = {"features.0.0": "conv_stem", "features.0.1": "bn1", "features.8.0": "conv_head", "features.8.1": "bn2"}
    for stage, depth in enumerate([1, 2, 2, 3, 3, 4, 1]):
        for block in range(depth):
            theirs, ours = f"features.{stage + 1}.{block}.block", f"blocks.{stage}.{block}"
            parts = [("conv_dw", "bn1"), ("se",), ("conv_pw", "bn2")]
            if stage:
                parts = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("se",), ("conv_pwl", "bn3")]
            for i, part in enumerate(parts):
                if part == ("se",):
                    names |= {
                        f"{theirs}.{i}.fc1": f"{ours}.se.conv_reduce",
                        f"{theirs}.{i}.fc2": f"{ours}.se.conv_expand",
                    }
                else:
                    names |= {f"{theirs}.{i}.0": f"{ours}.{part[0]}", f"{theirs}.{i}.1": f"{ours}.{part[1]}"}
    return names | {"classifier.1": "classifier"}


def vit(fc1: str = "mlp.0", fc2: str = "mlp.3") -> dict[str, str]:
    """The same of two blocks of ViT-B/16, as torchvision/models/vision_transformer.py builds it."""
    names = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads.head": "head"}
    parts = {"ln_1": "norm1", "ln_2": "norm2", "self_attention.out_proj": "attn.proj", fc1: "mlp.fc1", fc2: "mlp.fc2"}
    for i in range(2):
        names |= {f"encoder.layers.encoder_layer_{i}.{a}": f"blocks.{i}.{b}" for a, b in parts.items()}
    return names


def densenet() -> dict[str, str]:
    """The same of two blocks of the old DenseNet files."""
    return {
        f"features.denseblock{b}.denselayer{i}.{part}.{n}": f"features.denseblock{b}.denselayer{i}.{part}{n}"
        for b, depth in enumerate((2, 12), 1)
        for i in range(1, depth + 1)
        for part in ("norm", "conv")
        for n in (1, 2)
    }


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("mobilenetv2_100", mobilenet()),
        ("efficientnet_b0", efficientnet()),
        ("vit_base_patch16", vit()),
        ("vit_base_patch16", vit("mlp.linear_1", "mlp.linear_2")),
        ("densenet121", densenet()),
    ],
)
def test_torchvisions_names_are_found_one_for_one(name: str, modules: dict[str, str]) -> None:
    """Every tensor of the backbone is reached, and no name of timm's is taken for one of torchvision's."""
    back = {ours: theirs for theirs, ours in modules.items()}
    single = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    theirs = {}
    for ours in names(name):
        module, _, leaf = ours.rpartition(".")
        if module.endswith("attn.qkv"):
            theirs[f"encoder.layers.encoder_layer_{module.split('.')[1]}.self_attention.in_proj_{leaf}"] = ours
        elif name == "densenet121":
            theirs[f"{back.get(module, module)}.{leaf}"] = ours
        else:
            theirs[single[ours] if ours in single else f"{back[module]}.{leaf}"] = ours
    assert len(theirs) == len(names(name))
    assert {found: pretrained._timm_name(found) for found in theirs} == theirs
    assert [pretrained._timm_name(ours) for ours in names(name)] == names(name)


def torchvision() -> ModuleType:
    """torchvision; the test is skipped where it is missing, or was built for another torch."""
    try:
        import torchvision.transforms
    except (ImportError, RuntimeError):
        pytest.skip("needs torchvision")
    return torchvision


@pytest.mark.parametrize(
    ("name", "theirs", "side"),
    [
        ("resnet18", "resnet18", 64),
        ("densenet121", "densenet121", 64),
        ("mobilenetv2_100", "mobilenet_v2", 64),
        ("efficientnet_b0", "efficientnet_b0", 64),
        ("vit_base_patch16", "vit_b_16", 32),
    ],
)
def test_logits_are_those_of_torchvision(name: str, theirs: str, side: int, tmp_path: Path) -> None:
    from timm_reference import randomise

    module = torchvision()
    import torch

    extra = {"image_size": side} if name.startswith("vit") else {}
    reference = module.models.get_model(theirs, num_classes=5, **extra).eval()
    randomise(reference)
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    options = {"input_shape": (side, side, 3), "num_classes": 5}
    params, model_state = pretrained.load(tmp_path / "w.pth", name, **options)
    images = np.random.default_rng(0).standard_normal((2, side, side, 3)).astype(np.float32)
    model = models.build(name, **options)
    ours = np.asarray(jax.jit(lambda x: model.apply(params, model_state, x)[0]["logits"])(images))
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "block", "options"),
    [
        ("resnet18", "BasicBlock", {}),
        ("wide_resnet50_2", "Bottleneck", {"base_width": 128}),
    ],
)
def test_resnet_logits_are_those_of_timm(name: str, block: str, options: dict[str, int], tmp_path: Path) -> None:
    resnet = import_timm().models.resnet
    blocks = (1, 1, 1, 1)
    reference = resnet.ResNet(getattr(resnet, block), blocks, num_classes=5, **options)
    assert_parity(name, reference, (61, 64, 3), 5, tmp_path, blocks=blocks)


@pytest.mark.parametrize("name", ["densenet121", "densenet_bc_100"])
def test_densenet_logits_are_those_of_timm(name: str, tmp_path: Path) -> None:
    densenet = import_timm().models.densenet
    import torch

    blocks = (2, 2)
    reference = densenet.DenseNet(growth_rate=6, block_config=blocks, num_classes=5)
    if name == "densenet_bc_100":  # timm has no stem for small images
        reference.features.conv0 = torch.nn.Conv2d(3, 12, 3, padding=1, bias=False)
        del reference.features.norm0, reference.features.pool0
    side = 64 if name == "densenet121" else 32
    assert_parity(name, reference, (side, side, 3), 5, tmp_path, blocks=blocks, growth=6)


def test_sources_are_those_that_have_weights() -> None:
    both = ("timm", "torchvision")
    expected = {f"resnet{depth}": both for depth in (18, 34, 50, 101, 152)}
    expected |= dict.fromkeys(("wide_resnet50_2", "densenet121", "vit_base_patch16", "mobilenetv2_100"), both)
    expected |= {f"efficientnet_b{i}": both for i in range(5)}
    expected |= dict.fromkeys(("vit_tiny_patch16", "vit_small_patch16", "mobilenetv2_140"), ("timm",))
    expected |= {f"resnet{depth}_cifar": ("akamaster",) for depth in (20, 32, 44, 56, 110)}
    assert {name: pretrained.sources(name) for name in models.BACKBONES if pretrained.sources(name)} == expected


def test_timm_has_weights_of_the_backbones_that_we_say() -> None:
    timm = import_timm()
    has = {name for name in models.BACKBONES if timm.is_model_pretrained(f"{name}_224" if "vit" in name else name)}
    assert has == {name for name in models.BACKBONES if "timm" in pretrained.sources(name)}


@pytest.mark.parametrize("name", sorted(pretrained._PREPROCESSING["timm"]))
def test_preprocessing_is_timms(name: str) -> None:
    numbers = pretrained.preprocessing(name)
    architecture = f"{name}_224" if name.startswith("vit") else name
    theirs = import_timm().models.get_pretrained_cfg(architecture)
    assert numbers.weights == f"timm {architecture}.{theirs.tag}"
    assert (numbers.size, numbers.size) == theirs.input_size[1:]
    assert (numbers.crop_pct, numbers.interpolation) == (theirs.crop_pct, theirs.interpolation)
    assert (numbers.mean, numbers.std) == (theirs.mean, theirs.std)


@pytest.mark.parametrize("name", sorted(pretrained._PREPROCESSING["torchvision"]))
def test_preprocessing_is_torchvisions(name: str) -> None:
    numbers = pretrained.preprocessing(name, "torchvision")
    theirs = torchvision().models.get_model_weights(numbers.weights.split()[1]).IMAGENET1K_V1.transforms()
    assert ([numbers.size], [numbers.resize]) == (theirs.crop_size, theirs.resize_size)
    assert numbers.interpolation == theirs.interpolation.value
    assert (list(numbers.mean), list(numbers.std)) == (theirs.mean, theirs.std)


KINDS = {
    dataclasses.replace(numbers, weights="")
    for table in pretrained._PREPROCESSING.values()
    for numbers in table.values()
}
"""Every preprocessing of any weights, once."""


@pytest.mark.parametrize(
    "numbers", sorted(KINDS, key=repr), ids=lambda n: f"{n.size}-{n.crop_pct:.3f}-{n.interpolation}"
)
def test_inputs_are_by_definition_what_the_preprocessing_says(numbers: pretrained.Preprocessing) -> None:
    """Shorter side to ⌊size / crop_pct⌋ by Pillow, the longer one in proportion, rounded down; the centre, whose corner is
    rounded to even; (pixels / 255 − mean) / std. So timm and torchvision have it.

    In float32 the last is three roundings of numbers up to 1 and 1/std < 5, and of a result below 3: less than 10⁻⁶.
    """
    rng = np.random.default_rng(0)
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[numbers.interpolation]
    for height, width in ((300, 401), (517, 333), (numbers.size, numbers.size), (30, 47)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        file = io.BytesIO()
        image.save(file, "PNG")
        shorter = int(numbers.size / numbers.crop_pct)
        assert numbers.resize == shorter
        across, down = (
            (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
        )
        left, top = round((across - numbers.size) / 2), round((down - numbers.size) / 2)
        centre = image.resize((across, down), method).crop((left, top, left + numbers.size, top + numbers.size))
        expected = (np.asarray(centre, np.float64) / 255 - numbers.mean) / numbers.std
        cropped = eval_record(
            {"image": file.getvalue()},
            size=numbers.size,
            crop_pct=numbers.crop_pct,
            interpolation=numbers.interpolation,
        )
        ours = evaluation_transform(numbers.mean, numbers.std)(jax.numpy.asarray(cropped["image"][None]))
        np.testing.assert_allclose(ours[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "shorter"),  # `resize_size` of IMAGENET1K_V1 in torchvision's source; 256 unless it stands here
    [("efficientnet_b2", 288), ("efficientnet_b3", 320), ("efficientnet_b4", 384)],
)
def test_torchvisions_images_are_resized_to_whole_pixels(name: str, shorter: int) -> None:
    assert pretrained.preprocessing(name, "torchvision").resize == shorter
    others = pretrained._PREPROCESSING["torchvision"].keys() - {"efficientnet_b2", "efficientnet_b3", "efficientnet_b4"}
    assert {pretrained.preprocessing(other, "torchvision").resize for other in others} == {256}


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "efficientnet_b4", "vit_tiny_patch16"])
@pytest.mark.parametrize("shape", [(300, 401), (517, 333), (224, 224)])
def test_evaluation_crops_are_timms_to_the_pixel(name: str, shape: tuple[int, int]) -> None:
    """Needs torchvision, on which timm's transforms stand; by definition it is tested above."""
    torchvision()
    from timm.data import create_transform

    numbers = pretrained.preprocessing(name)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    options = {
        "interpolation": numbers.interpolation,
        "crop_pct": numbers.crop_pct,
        "mean": numbers.mean,
        "std": numbers.std,
    }
    theirs = create_transform((3, numbers.size, numbers.size), is_training=False, **options)(image).numpy()
    ours = eval_crop(file.getvalue(), numbers.size, crop_pct=numbers.crop_pct, interpolation=numbers.interpolation)
    ours = (ours.astype(np.float32) / 255 - np.float32(numbers.mean)) / np.float32(numbers.std)
    np.testing.assert_allclose(ours.transpose(2, 0, 1), theirs, atol=1e-6)


def test_weights_without_known_preprocessing_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"no weights of 'msdnet' are known from any source; give its numbers yourself"
    ):
        pretrained.preprocessing("msdnet")
    with pytest.raises(InputError, match=r"'vit_tiny_patch16' are known from torchvision; there are those of timm"):
        pretrained.preprocessing("vit_tiny_patch16", "torchvision")


def real(name: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(our logits, PyTorch's, labels) of the first `count` CIFAR-10 test images, by published weights."""
    folder = os.environ.get("SC_JAX_EXTRA_DATA")
    if not folder:
        pytest.skip("SC_JAX_EXTRA_DATA is not set: no published weights to read")
    depth = re.search(r"\d+", name).group()
    options = {"input_shape": (32, 32, 3), "num_classes": 10}
    params, model_state = pretrained.load(Path(folder) / f"weights/cifar10_resnet{depth}.safetensors", name, **options)
    with np.load(Path(folder) / "images/cifar10_test_images.npz") as test:
        images, label = test["x"][:count], test["y"][:count]
    with np.load(Path(folder) / "cifar10_test_outputs.npz") as outputs:
        theirs = outputs[f"logits_jpg_resnet{depth}"][:count]
    numbers = pretrained.preprocessing(name)
    inputs = ((images / 255 - numbers.mean) / numbers.std).astype(np.float32)
    model, batch = models.build(name, **options), min(count, 500)
    forward = jax.jit(lambda x: model.apply(params, model_state, x)[0]["logits"])
    return np.concatenate([forward(inputs[i : i + batch]) for i in range(0, count, batch)]), theirs, label


@pytest.mark.parametrize("name", ["resnet32_cifar", "resnet44_cifar", "resnet56_cifar"])
def test_published_weights_give_pytorchs_logits(name: str) -> None:
    ours, theirs, _ = real(name, 256)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_published_resnet20_has_its_accuracy() -> None:
    """.8103 is what PyTorch's logits give; all four are in benchmarks/results/parity.json."""
    ours, theirs, label = real("resnet20_cifar", 10_000)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    assert round(float((ours.argmax(1) == label).mean()), 4) == 0.8103


def test_a_torch_file_that_holds_itself_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    found: dict[str, object] = {}
    found["model"] = found
    torch.save(found, tmp_path / "endless.pt")
    with pytest.raises(InputError, match="no table of named tensors"):
        pretrained.read_tensors(tmp_path / "endless.pt")


def test_weights_of_ours_are_refused_once_a_bit_has_changed(tmp_path):
    """The format has no checksum."""
    path = tmp_path / "w.safetensors"
    params = {"a": {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.zeros(4, np.float32)}}
    pretrained.save(path, params, {})
    found = pretrained.read_tensors(path)
    whole = path.read_bytes()
    for place in range(len(whole) - 64, len(whole)):  # all of the data
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"w\.safetensors: damaged"):
            pretrained.read_tensors(path)
    path.write_bytes(whole)
    assert pretrained.read_tensors(path).keys() == found.keys()


def test_torch_files_that_would_grow_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed parts and parts that overlap, before torch sees them; views larger than what is stored, before they are copied."""
    torch = pytest.importorskip("torch")
    path, tied = tmp_path / "w.pt", torch.zeros(10_000)
    torch.save({"a": torch.zeros(1, dtype=torch.float16).expand(100_000)}, path)
    with pytest.raises(InputError, match=r"w\.pt: its tensors take 200,000 bytes, the file has"):
        pretrained.read_tensors(path)
    torch.save({f"a{i}": tied for i in range(9)}, path)
    with pytest.raises(InputError, match="its tensors take"):
        pretrained.read_tensors(path)
    torch.save({"a": tied, "b": tied}, path)  # tied weights are no bomb
    assert pretrained.read_tensors(path)["b"].shape == tied.shape

    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as deflated:
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    whole = bytearray(path.read_bytes())
    at = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1)  # the second entry of the directory, whose sizes grow
    whole[at + 20 : at + 28] = struct.pack("<II", len(whole), len(whole))
    (tmp_path / "o.pt").write_bytes(whole)
    for name in ("c.pt", "o.pt"):
        with pytest.raises(InputError, match=rf"{name}: its parts are compressed or overlap"):
            pretrained.read_tensors(tmp_path / name)
