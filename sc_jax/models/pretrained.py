"""Published weights: local safetensors or torch files, in the names of timm or torchvision, into a backbone and back.

    params, model_state = load("resnet50.safetensors", "resnet50", input_shape=(224, 224, 3), num_classes=1000)
    outputs, _ = build("resnet50", input_shape=(224, 224, 3), num_classes=1000).apply(params, model_state, images)

Backbones name their attributes as timm names its tensors, so that one rule serves: `kernel`, `scale` and `embedding` are called
`weight`, `mean` and `var` are `running_mean` and `running_var`, and kernels have their axes in another order. Where torchvision
calls things otherwise, `_TORCHVISION` says how. Every tensor has its place, and every place its tensor; `initializer` can take all but
the classifier from a file.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from sc_jax import files, models
from sc_jax.files import InputError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".th", ".tar")
"""Names of files that `torch.save` writes end so."""

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # a checkpoint's entry that holds the tensors
_PREFIXES = ("module.", "model.", "_orig_mod.")  # DataParallel, Lightning, torch.compile
_LAST = {"kernel": "weight", "scale": "weight", "embedding": "weight", "mean": "running_mean", "var": "running_var"}
_SEAL = "sc_jax.sha256"  # in the metadata of what `save` writes: a hash of its tensors
_SHOWN = 5  # names in an error
_SAFE_TORCH = (2, 6)  # before it `weights_only=True` did not keep a file from running code: CVE-2025-32434

_NAMES_OF_ONE = 4  # tensors that may share what is stored, as tied weights do

# torchvision's names (torchvision/models/{densenet,mobilenetv2,efficientnet,vision_transformer}.py of pytorch/vision) in timm's.
# No two families share a pattern, and none meets a name of timm. ResNets and DenseNets are called alike there and here, but for
# the "norm.1" of DenseNet weights older than torch 0.4. MobileNetV2 numbers its blocks through: `_mobilenet` finds their stages.
_TORCHVISION = [
    (r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)", r"\1\2"),
    (r"features\.0\.0\.(.*)", r"conv_stem.\1"),
    (r"features\.0\.1\.(.*)", r"bn1.\1"),
    (r"features\.(?:8|18)\.0\.(.*)", r"conv_head.\1"),
    (r"features\.(?:8|18)\.1\.(.*)", r"bn2.\1"),
    (r"classifier\.1\.(.*)", r"classifier.\1"),
    # MobileNetV2: the first block does not expand
    (r"features\.1\.conv\.0\.0\.(.*)", r"blocks.0.0.conv_dw.\1"),
    (r"features\.1\.conv\.0\.1\.(.*)", r"blocks.0.0.bn1.\1"),
    (r"features\.1\.conv\.1\.(.*)", r"blocks.0.0.conv_pw.\1"),
    (r"features\.1\.conv\.2\.(.*)", r"blocks.0.0.bn2.\1"),
    (r"features\.(\d+)\.conv\.0\.0\.(.*)", r"mobilenet.\1.conv_pw.\2"),
    (r"features\.(\d+)\.conv\.0\.1\.(.*)", r"mobilenet.\1.bn1.\2"),
    (r"features\.(\d+)\.conv\.1\.0\.(.*)", r"mobilenet.\1.conv_dw.\2"),
    (r"features\.(\d+)\.conv\.1\.1\.(.*)", r"mobilenet.\1.bn2.\2"),
    (r"features\.(\d+)\.conv\.2\.(.*)", r"mobilenet.\1.conv_pwl.\2"),
    (r"features\.(\d+)\.conv\.3\.(.*)", r"mobilenet.\1.bn3.\2"),
    # EfficientNet: the blocks of the first stage do not expand
    (r"features\.1\.(\d+)\.block\.0\.0\.(.*)", r"blocks.0.\1.conv_dw.\2"),
    (r"features\.1\.(\d+)\.block\.0\.1\.(.*)", r"blocks.0.\1.bn1.\2"),
    (r"features\.1\.(\d+)\.block\.2\.0\.(.*)", r"blocks.0.\1.conv_pw.\2"),
    (r"features\.1\.(\d+)\.block\.2\.1\.(.*)", r"blocks.0.\1.bn2.\2"),
    (r"features\.(\d+)\.(\d+)\.block\.0\.0\.(.*)", r"efficientnet.\1.\2.conv_pw.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.0\.1\.(.*)", r"efficientnet.\1.\2.bn1.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.1\.0\.(.*)", r"efficientnet.\1.\2.conv_dw.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.1\.1\.(.*)", r"efficientnet.\1.\2.bn2.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.3\.0\.(.*)", r"efficientnet.\1.\2.conv_pwl.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.3\.1\.(.*)", r"efficientnet.\1.\2.bn3.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.[12]\.fc1\.(.*)", r"efficientnet.\1.\2.se.conv_reduce.\3"),
    (r"features\.(\d+)\.(\d+)\.block\.[12]\.fc2\.(.*)", r"efficientnet.\1.\2.se.conv_expand.\3"),
    # ViT
    (r"conv_proj\.(.*)", r"patch_embed.proj.\1"),
    (r"class_token", r"cls_token"),
    (r"encoder\.pos_embedding", r"pos_embed"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(.*)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(.*)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(.*)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(.*)", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(.*)", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.ln\.(.*)", r"norm.\1"),
    (r"heads\.head\.(.*)", r"head.\1"),
]
_MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)  # blocks of each stage: Sandler et al. 2018, table 2


Init = Callable[[jax.Array], tuple[Any, Any]]
"""key → (params, model_state), as `Model.init`."""


def load(
    path: str | Path, name: str, *, input_shape: tuple[int, ...], num_classes: int, **options: Any
) -> tuple[Any, Any]:
    """Reads the weights of a backbone from a file, head and all.

    TensorFlow's EfficientNets (timm's `tf_…`) have these names too, but other padding and ε: they are not of our backbones.

    Args:
      path: of a safetensors or torch file, in the names of timm or torchvision (or of `save`).
      name: of the backbone, a key of `BACKBONES`.
      input_shape: as in `build`; a ViT has one position embedding per patch of it.
      num_classes: as in `build`; of the file's own head.
      options: as in `build`.

    Returns:
      (params, model_state) for the `Model` of `build` with the same arguments, float32.

    Raises:
      InputError: the file is missing, damaged, or holds Python objects; or its tensors are not those of the backbone: what is
        missing, unexpected or of another shape is named.
    """
    return initializer(path, name, input_shape=input_shape, num_classes=num_classes, **options)(jax.random.key(0))


def initializer(
    path: str | Path,
    name: str,
    *,
    part: str = "all",
    input_shape: tuple[int, ...],
    num_classes: int,
    **options: Any,
) -> Init:
    """An `init` that starts from the weights in a file; the file is read here, once.

    Args:
      path: as in `load`.
      name: as in `load`.
      part: what the file fills. "all": everything, and the key does nothing. "backbone": everything but the classifier
        (`Model.head_parts`), which starts as the backbone's own `init` has it; the file's own head, of whatever classes, is passed
        over. Of "deeplabv3plus_resnet101" that is `backbone`, from the file of a ResNet of the same blocks (or of its own).
      input_shape: as in `load`.
      num_classes: as in `build`; with "backbone" the file may be of others.
      options: as in `build`.

    Returns:
      key → (params, model_state), float32; a pure function, under `jit` and `vmap` too.

    Raises:
      InputError: as for `load`; or there is no such part.
    """
    if part not in ("all", "backbone"):
        raise InputError(f"part: {part!r}; take 'all' or 'backbone'")
    model = models.build(name, input_shape=input_shape, num_classes=num_classes, **options)
    places, treedef = _places(jax.eval_shape(model.init, jax.random.key(0)))
    found = _our_names(read_tensors(path), {place.name for place in places}, path)
    if part == "backbone":
        found = {key: tensor for key, tensor in found.items() if not _of_head(key, model)}
    wanted = [place for place in places if part == "all" or not _of_head(place.name, model)]
    _check(found, wanted, f"{path}: these are not the weights of {name!r}", model)
    ours = {place.name: np.ascontiguousarray(found[place.name].transpose(np.argsort(place.axes))) for place in wanted}

    def init(key: jax.Array) -> tuple[Any, Any]:
        own = jax.tree.leaves(model.init(key)) if part == "backbone" else [None] * len(places)
        leaves = [
            jax.numpy.array(ours[place.name]) if place.name in ours else leaf
            for place, leaf in zip(places, own, strict=True)
        ]
        return jax.tree.unflatten(treedef, leaves)

    return init


def _of_head(name: str, model: models.Model) -> bool:
    return any(fnmatch.fnmatchcase(name, f"{part}.*") for part in model.head_parts)


def save(path: str | Path, params: Any, model_state: Any) -> None:
    """Writes the weights of a backbone as safetensors in torch's names and layouts, whole or not at all; `load` reads them.

    Args:
      path: of the file, which should end in .safetensors.
      params: parameters of one member.
      model_state: its batch statistics.

    Raises:
      InputError: the folder cannot be written, or the disk is full; what stood at `path` is untouched.
    """
    import safetensors.numpy

    places, _ = _places((params, model_state))
    leaves = jax.device_get(jax.tree.leaves((params, model_state)))
    tensors = {
        place.name: np.ascontiguousarray(np.asarray(leaf).transpose(place.axes))
        for place, leaf in zip(places, leaves, strict=True)
    }
    about = {"format": "pt", _SEAL: files.fingerprint(tensors)}  # the format itself has no checksum
    files.write_bytes(path, safetensors.numpy.save(tensors, metadata=about))


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the named tensors of a safetensors or torch file; no other object in it is ever made.

    A checkpoint that wraps its tensors ("state_dict", "model"; names that all begin with "module.") is unwrapped. The counters
    `num_batches_tracked` are left out.

    Args:
      path: ends in .safetensors, or in one of `TORCH_SUFFIXES`: the latter need torch 2.6 or later, which reads them with
        `weights_only=True`.

    Returns:
      Name → array; floating-point numbers of any width as float32.

    Raises:
      InputError: the file is missing or damaged, holds other things than tensors, or torch is not installed or too old.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    else:
        known = ", ".join(TORCH_SUFFIXES)
        raise InputError(
            f"{path}: weights are read from .safetensors, or from torch's {known}; rename or convert the file"
        )
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    for prefix in _PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # bfloat16 is known to NumPy since JAX has been imported
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            stated = (file.metadata() or {}).get(_SEAL)
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a number format that NumPy does not know
        raise InputError(f"{path}: not readable as safetensors ({error}); fetch it again") from error
    if stated is not None and stated != files.fingerprint(tensors):
        raise InputError(f"{path}: damaged: its tensors are not those that were written; fetch it again")
    return {name: _float32(tensor) for name, tensor in tensors.items()}


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if jax.numpy.issubdtype(array.dtype, np.floating) else array


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: this kind of file needs torch: pip install torch; or convert it where torch is, "
            "by safetensors.torch.save_file(tensors, 'weights.safetensors')"
        ) from None
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _SAFE_TORCH:
        raise InputError(
            f"{path}: torch {torch.__version__} may run code that such a file holds (CVE-2025-32434): "
            "pip install 'torch>=2.6', or convert it by safetensors.torch.save_file(tensors, 'weights.safetensors')"
        )
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\3\4"  # as torch tells them from older files, which are not compressed
            parts = zipfile.ZipFile(file).infolist() if zipped else []
        # In memory such parts are up to a thousand times as large as on disk.
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
            raise InputError(f"{path}: its parts are compressed or overlap, as torch.save writes none; fetch it again")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # torch.load raises what it meets: zip, pickle and storage errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path}: not readable as torch tensors alone, without running its code ({reason[:120]}); "
            "fetch it again, or save its state_dict as safetensors"
        ) from error
    for _ in range(2):  # a table may be wrapped twice, and one that holds itself for ever
        inner = (
            [found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping)]
            if isinstance(found, Mapping)
            else []
        )
        found = inner[0] if inner else found
    if not isinstance(found, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise InputError(f"{path}: it holds no table of named tensors; save the model's state_dict")
    taken = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if taken > _NAMES_OF_ONE * size:
        raise InputError(
            f"{path}: its tensors take {taken:,} bytes, the file has {size:,}: they are views; save tensor.contiguous() of each"
        )
    try:
        return {
            str(name): (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)
            for name, tensor in found.items()
        }
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{path}: it holds quantised or sparse tensors; take the weights in floating point") from error


class _Place(NamedTuple):
    """Where a leaf stands in a torch file: its name and shape there; `axes` takes our layout to torch's."""

    name: str
    axes: tuple[int, ...]
    torch_shape: tuple[int, ...]


def _places(tree: Any) -> tuple[list[_Place], Any]:
    """The place of each leaf of (params, model_state), and the structure to put them back."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    places = []
    for path, leaf in leaves:
        keys = [str(key.key) for key in path[1:] if isinstance(key, jax.tree_util.DictKey)]  # path[0]: params or state
        n = len(leaf.shape)
        # kernels: [d, k] → [k, d]; [h, w, in / groups, out] → [out, in / groups, h, w]
        axes = (n - 1, n - 2, *range(n - 2)) if keys[-1] == "kernel" else tuple(range(n))
        name = ".".join([*keys[:-1], _LAST.get(keys[-1], keys[-1])])
        places.append(_Place(name, axes, tuple(leaf.shape[axis] for axis in axes)))
    return places, treedef


def _our_names(tensors: Mapping[str, np.ndarray], wanted: set[str], path: str | Path) -> dict[str, np.ndarray]:
    """Tensors under the wanted names, whether they came under those, under torchvision's, or as a `backbone` of its own."""
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        new = next((known for known in (name, f"backbone.{name}") if known in wanted), None) or _timm_name(name)
        if new in renamed:
            raise InputError(f"{path}: two tensors for {new} (one of them {name}); remove one")
        renamed[new] = tensor
    return renamed


def _timm_name(name: str) -> str:
    for pattern, replacement in _TORCHVISION:
        match = re.fullmatch(pattern, name)
        if match:
            family, _, rest = match.expand(replacement).partition(".")
            if family == "efficientnet":  # features.1 is stage 0
                stage, _, rest = rest.partition(".")
                return f"blocks.{int(stage) - 1}.{rest}"
            if family == "mobilenet":
                return _mobilenet(rest)
            return f"{family}.{rest}" if rest else family
    return name


def _mobilenet(numbered: str) -> str:
    """ "4.bn1.weight" → "blocks.2.0.bn1.weight": torchvision counts the blocks of MobileNetV2 from 1, through all stages."""
    number, _, rest = numbered.partition(".")
    block = int(number) - 1
    for stage, depth in enumerate(_MOBILENET_DEPTHS):
        if block < depth:
            return f"blocks.{stage}.{block}.{rest}"
        block -= depth
    return f"features.{numbered}"


def _check(found: Mapping[str, np.ndarray], places: Iterable[_Place], what: str, model: models.Model) -> None:
    """Refuses tensors other than those of the places."""
    wanted = {place.name: place.torch_shape for place in places}
    missing, unexpected = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    shapes = {
        name: (wanted[name], found[name].shape)
        for name in wanted
        if name in found and found[name].shape != wanted[name]
    }
    if missing or unexpected or shapes:
        parts = [_listed(missing, "missing"), _listed(unexpected, "unexpected")]
        differing = [f"{name} expected {list(ours)} found {list(theirs)}" for name, (ours, theirs) in shapes.items()]
        parts.append(_listed(differing, "of another shape"))
        remedy = "name the backbone and the options that the file was made with"
        classes = {
            theirs[0] if _of_head(name, model) and theirs[1:] == ours[1:] else None
            for name, (ours, theirs) in shapes.items()
        }
        if not missing and not unexpected and len(classes) == 1 and None not in classes:
            remedy = f"the file's head has {classes.pop()} classes: set num_classes to that, or take the file's backbone alone"
        raise InputError(f"{what}: {'; '.join(part for part in parts if part)}: {remedy}")
    for name, tensor in found.items():
        if tensor.dtype != np.float32:
            raise InputError(
                f"{what}: {name} holds {tensor.dtype}; quantised weights are not read, take those in floating point"
            )
        if not np.isfinite(tensor).all():
            raise InputError(f"{what}: {name} is not finite; fetch the file again")


def _listed(names: Iterable[str], word: str) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {word} ({', '.join(names[:_SHOWN])}{more})"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input that weights were made for: (resized, centre-cropped pixels / 255 − mean) / std.

    Attributes:
      size: of the square centre crop, in pixels.
      crop_pct: size over what the shorter side is resized to.
      interpolation: of resizing, antialiased.
      mean: per channel (red, green, blue), of pixels in [0, 1].
      std: as `mean`.
      weights: the published weights that these numbers belong to.
    """

    size: int
    crop_pct: float
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: str

    @property
    def resize(self) -> int:
        """What the shorter side is resized to before the crop: ⌊size / crop_pct⌋ pixels."""
        return math.floor(self.size / self.crop_pct)


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Source → backbone → the numbers: of timm 1.0.31 each model's `default_cfg` (the size of training, not that of testing), of
# torchvision 0.28 `IMAGENET1K_V1`, of akamaster/pytorch_resnet_cifar10 its `trainer.py`.
_PREPROCESSING = {
    "timm": {
        "resnet18": Preprocessing(224, 0.95, "bicubic", *_IMAGENET, "timm resnet18.a1_in1k"),
        "resnet34": Preprocessing(224, 0.95, "bicubic", *_IMAGENET, "timm resnet34.a1_in1k"),
        "resnet50": Preprocessing(224, 0.95, "bicubic", *_IMAGENET, "timm resnet50.a1_in1k"),
        "resnet101": Preprocessing(224, 0.95, "bicubic", *_IMAGENET, "timm resnet101.a1h_in1k"),
        "resnet152": Preprocessing(224, 0.95, "bicubic", *_IMAGENET, "timm resnet152.a1h_in1k"),
        "wide_resnet50_2": Preprocessing(224, 0.875, "bicubic", *_IMAGENET, "timm wide_resnet50_2.racm_in1k"),
        "densenet121": Preprocessing(224, 0.875, "bicubic", *_IMAGENET, "timm densenet121.ra_in1k"),
        "vit_tiny_patch16": Preprocessing(
            224, 0.9, "bicubic", *_HALF, "timm vit_tiny_patch16_224.augreg_in21k_ft_in1k"
        ),
        "vit_small_patch16": Preprocessing(
            224, 0.9, "bicubic", *_HALF, "timm vit_small_patch16_224.augreg_in21k_ft_in1k"
        ),
        "vit_base_patch16": Preprocessing(
            224, 0.9, "bicubic", *_HALF, "timm vit_base_patch16_224.augreg2_in21k_ft_in1k"
        ),
        "efficientnet_b0": Preprocessing(224, 0.875, "bicubic", *_IMAGENET, "timm efficientnet_b0.ra_in1k"),
        "efficientnet_b1": Preprocessing(240, 0.9, "bicubic", *_HALF, "timm efficientnet_b1.ra4_e3600_r240_in1k"),
        "efficientnet_b2": Preprocessing(256, 0.875, "bicubic", *_IMAGENET, "timm efficientnet_b2.ra_in1k"),
        "efficientnet_b3": Preprocessing(288, 0.875, "bicubic", *_IMAGENET, "timm efficientnet_b3.ra2_in1k"),
        "efficientnet_b4": Preprocessing(320, 0.875, "bicubic", *_IMAGENET, "timm efficientnet_b4.ra2_in1k"),
        "mobilenetv2_100": Preprocessing(224, 0.875, "bicubic", *_IMAGENET, "timm mobilenetv2_100.ra_in1k"),
        "mobilenetv2_140": Preprocessing(224, 0.875, "bicubic", *_IMAGENET, "timm mobilenetv2_140.ra_in1k"),
    },
    "torchvision": {
        "resnet18": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision resnet18"),
        "resnet34": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision resnet34"),
        "resnet50": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision resnet50"),
        "resnet101": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision resnet101"),
        "resnet152": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision resnet152"),
        "wide_resnet50_2": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision wide_resnet50_2"),
        "densenet121": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision densenet121"),
        "vit_base_patch16": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision vit_b_16"),
        "efficientnet_b0": Preprocessing(224, 224 / 256, "bicubic", *_IMAGENET, "torchvision efficientnet_b0"),
        "efficientnet_b1": Preprocessing(240, 240 / 256, "bicubic", *_IMAGENET, "torchvision efficientnet_b1"),
        "efficientnet_b2": Preprocessing(288, 288 / 288, "bicubic", *_IMAGENET, "torchvision efficientnet_b2"),
        "efficientnet_b3": Preprocessing(300, 300 / 320, "bicubic", *_IMAGENET, "torchvision efficientnet_b3"),
        "efficientnet_b4": Preprocessing(380, 380 / 384, "bicubic", *_IMAGENET, "torchvision efficientnet_b4"),
        "mobilenetv2_100": Preprocessing(224, 0.875, "bilinear", *_IMAGENET, "torchvision mobilenet_v2"),
    },
    "akamaster": {
        "resnet20_cifar": Preprocessing(32, 1.0, "bilinear", *_IMAGENET, "akamaster resnet20"),
        "resnet32_cifar": Preprocessing(32, 1.0, "bilinear", *_IMAGENET, "akamaster resnet32"),
        "resnet44_cifar": Preprocessing(32, 1.0, "bilinear", *_IMAGENET, "akamaster resnet44"),
        "resnet56_cifar": Preprocessing(32, 1.0, "bilinear", *_IMAGENET, "akamaster resnet56"),
        "resnet110_cifar": Preprocessing(32, 1.0, "bilinear", *_IMAGENET, "akamaster resnet110"),
    },
}


def sources(name: str) -> tuple[str, ...]:
    """Who has published weights of a backbone that `load` reads: "timm", "torchvision", "akamaster", or nobody.

    Args:
      name: of the backbone.

    Returns:
      The sources that `preprocessing` takes for it.
    """
    return tuple(source for source, table in _PREPROCESSING.items() if name in table)


def preprocessing(name: str, source: str | None = None) -> Preprocessing:
    """The preprocessing of a backbone's published weights.

    Args:
      name: of the backbone.
      source: "timm" (its default weights), "torchvision" (IMAGENET1K_V1) or "akamaster" (CIFAR-10); by default the first of
        these that has the backbone. Other weights, named in timm by another tag, may want other numbers.

    Returns:
      A `Preprocessing`, whose `weights` says which weights are meant.

    Raises:
      InputError: the source has no weights of the backbone.
    """
    for table in _PREPROCESSING.values() if source is None else [_PREPROCESSING.get(source, {})]:
        if name in table:
            return table[name]
    held = sources(name)
    remedy = f"there are those of {', '.join(held)}" if held else "give its numbers yourself: Preprocessing(…)"
    raise InputError(f"preprocessing: no weights of {name!r} are known from {source or 'any source'}; {remedy}")
