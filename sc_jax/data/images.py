"""Image files → uint8 arrays on the host, with Pillow: decoding, crops for training and for evaluation.

Every function is of bytes and a NumPy generator alone. Pillow lets go of the GIL while it decodes and resizes, so threads
work in parallel. Orientation tags are not looked at, as in torchvision and timm.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sc_jax.files import InputError

if TYPE_CHECKING:
    from PIL import Image

IGNORE = 255
"""The label of pixels that are not scored."""

MEAN_COLOUR = (124, 116, 104)
"""The mean colour of ImageNet's training images, 0..255: what lies beyond the edge of an image."""

MOST_PIXELS = 89_478_485
"""Of an image, as it is stored and as it is resized; Pillow warns from here on."""


def decode(data: bytes, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """The image in a JPEG, PNG … file as uint8 [h, w, 3]; grey, CMYK and palettes become RGB.

    Raises:
      InputError: the bytes are no image, end too early, or are of more than `most_pixels`, which are then not decoded.
    """
    return np.asarray(_rgb(_open(data, most_pixels)))


def decode_labels(data: bytes) -> np.ndarray:
    """A label map, a PNG of one channel, as uint8 [h, w].

    Raises:
      InputError: the bytes are no image, end too early, are of more than `MOST_PIXELS`, or have several channels.
    """
    image = _open(data)
    if image.mode not in ("L", "P"):
        raise InputError(f"a label map of mode {image.mode}; it should be one channel of 8 bits")
    return np.asarray(_loaded(image))


def train_crop(
    data: bytes,
    rng: np.random.Generator,
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bicubic",
    flip: bool = True,
) -> np.ndarray:
    """A random part of an image, resized to a square and mirrored half of the time.

    A JPEG that is at least twice as large as needed, along the crop too, is decoded at 1/2, 1/4 or 1/8 of its size.
    Pixels beside the crop count where the filter reaches them.

    Args:
      data: the image file.
      rng: the generator the crop is drawn from.
      size: pixels of each side of the result.
      scale, ratio: of the crop, see `crop_box`.
      interpolation: "bicubic" or "bilinear", both antialiased.
      flip: whether to mirror at all.

    Returns:
      uint8 [size, size, 3].

    Raises:
      InputError: the bytes are no image, end too early, or are of more than `MOST_PIXELS`.

    Source: Szegedy et al. (2015), arXiv:1409.4842, section 6.
    """
    image = _open(data)
    width, height = image.size
    top, left, rows, columns = crop_box(height, width, rng, scale, ratio)
    mirrored = flip and rng.random() < 0.5
    reduction = max(1, min(rows, columns) // size)
    image.draft("RGB", (width // reduction, height // reduction))  # does nothing for other formats than JPEG
    image = _rgb(image)
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    image = _resized(image, (size, size), _filter(interpolation), box)
    return _mirrored(np.asarray(image), mirrored)


def crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random box in an image: its share of the area uniform in `scale`, the log of width / height uniform in log `ratio`.

    Up to ten draws are made until a box fits; then it is the largest central one whose aspect is within `ratio`, as
    torchvision documents of its RandomResizedCrop.

    Args:
      height, width: of the image, in pixels.
      rng: the generator.
      scale: least and greatest share of the area.
      ratio: least and greatest width / height.

    Returns:
      (top, left, rows, columns), in pixels.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < rows <= height and 0 < columns <= width:
            return int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1)), rows, columns
    rows = max(1, min(height, round(width / ratio[0])))
    columns = max(1, min(width, round(height * ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def eval_crop(data: bytes, size: int, *, crop_pct: float = 0.875, interpolation: str = "bicubic") -> np.ndarray:
    """The centre of an image: its shorter side resized to ⌊size / crop_pct⌋, then `size` × `size` pixels cut out.

    The longer side is rounded down and the corner of the crop to the nearest even, as in torchvision.

    Args:
      data: the image file.
      size: pixels of each side of the result.
      crop_pct: the share of the resized shorter side that is kept, in (0, 1]; timm's name for it.
      interpolation: "bicubic" or "bilinear", both antialiased.

    Returns:
      uint8 [size, size, 3].

    Raises:
      InputError: the bytes are no image, or end too early; it has more than `MOST_PIXELS`, or would when resized, as the
        whole of a very long one is; `crop_pct` is out of range.
    """
    if not 0 < crop_pct <= 1:
        raise InputError(f"crop_pct = {crop_pct}; it should be in (0, 1]")
    image = _open(data)
    short, shorter = math.floor(size / crop_pct), min(image.size)
    resized = tuple(short if side == shorter else short * side // shorter for side in image.size)
    # Not of the crop alone, by `box`: that rounds its corners to single precision, and pixels would differ.
    _require_few(resized, MOST_PIXELS)
    image = _rgb(image)
    if resized != image.size:
        image = _resized(image, resized, _filter(interpolation))
    left, top = (round((side - size) / 2) for side in resized)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def train_pair(
    data: bytes,
    labels: np.ndarray,
    rng: np.random.Generator,
    size: int,
    *,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A random square of an image and its label map, both resized by one random factor and mirrored half of the time.

    The image is resized bilinearly with antialiasing, labels to the nearest pixel. Only the square is resized. Where it
    reaches beyond the image it shows `MEAN_COLOUR` and `IGNORE`.

    Args:
      data: the image file, [h, w].
      labels: uint8 [h, w].
      rng: the generator.
      size: pixels of each side of the result.
      scale: least and greatest factor; it is drawn uniformly.
      flip: whether to mirror at all.

    Returns:
      uint8 [size, size, 3] and uint8 [size, size].

    Raises:
      InputError: the bytes are no image, or the label map has another size.

    Source: Chen et al. (2018), arXiv:1802.02611, section 4 (random scale 0.5 to 2, crop, flip; from memory).
    """
    from PIL import Image

    image = _rgb(_sized_as(labels, _open(data)))
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in labels.shape)
    rows, columns = min(size, height), min(size, width)
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    mirrored = flip and rng.random() < 0.5

    down, across = labels.shape[0] / height, labels.shape[1] / width
    box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    pixels = np.full((size, size, 3), MEAN_COLOUR, np.uint8)
    pixels[:rows, :columns] = _resized(image, (columns, rows), Image.Resampling.BILINEAR, box)
    # The source pixel that holds the centre of each pixel of the result, in integers.
    y = (2 * np.arange(top, top + rows) + 1) * labels.shape[0] // (2 * height)
    x = (2 * np.arange(left, left + columns) + 1) * labels.shape[1] // (2 * width)
    classes = np.full((size, size), IGNORE, np.uint8)
    classes[:rows, :columns] = labels[y[:, None], x]
    return _mirrored(pixels, mirrored), _mirrored(classes, mirrored)


def train_record(record: Mapping[str, Any], rng: np.random.Generator, **options: Any) -> dict[str, Any]:
    """`record` with its image, a file, replaced by `train_crop` of it; `options` are those of `train_crop`."""
    return {**record, "image": train_crop(record["image"], rng, **options)}


def eval_record(record: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """`record` with its image, a file, replaced by `eval_crop` of it; `options` are those of `eval_crop`."""
    return {**record, "image": eval_crop(record["image"], **options)}


def train_pair_record(record: Mapping[str, Any], rng: np.random.Generator, **options: Any) -> dict[str, Any]:
    """`record` with its image and its label map replaced by `train_pair` of them, whose `options` these are."""
    image, label = train_pair(record["image"], record["label"], rng, **options)
    return {**record, "image": image, "label": label}


def eval_pair_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with its image decoded, uint8 [h, w, 3], whole as its label map is."""
    return {**record, "image": np.asarray(_rgb(_sized_as(record["label"], _open(record["image"]))))}


def _open(data: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The image, of which only the header is read; of other formats than ours none is tried (PostScript runs a program)."""
    from PIL import Image

    image = _refusing(lambda: Image.open(io.BytesIO(data), formats=("JPEG", "PNG")))
    _require_few(image.size, most_pixels)
    return image


def _require_few(size: tuple[int, ...], most_pixels: int) -> None:
    width, height = size
    if width * height > most_pixels:
        raise InputError(f"an image of {height} x {width} pixels, more than the {most_pixels:,} that are decoded")


def _loaded(image: Image.Image) -> Image.Image:
    _refusing(image.load)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    return _refusing(lambda: image.convert("RGB"))


def _resized(image: Image.Image, size: tuple[int, int], by: Image.Resampling, box: Any = None) -> Image.Image:
    return _refusing(lambda: image.resize(size, by, box=box))


def _refusing(read: Any) -> Any:
    from PIL import Image

    try:
        return read()
    except MemoryError as error:
        raise InputError("an image too large for the memory that is free") from error
    # What Pillow's readers raise on damaged files; UnidentifiedImageError is an OSError.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = "no image" if isinstance(error, Image.UnidentifiedImageError) else f"a damaged image ({error})"
        raise InputError(f"{reason}; get the file again") from error


def _sized_as(labels: np.ndarray, image: Image.Image) -> Image.Image:
    if labels.shape != (image.height, image.width):
        raise InputError(
            f"the image is {image.height} x {image.width}, its label map {' x '.join(map(str, labels.shape))}"
        )
    return image


def _filter(interpolation: str) -> Image.Resampling:
    from PIL import Image

    try:
        return {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    except KeyError:
        raise InputError(f"interpolation = {interpolation!r}; it should be 'bicubic' or 'bilinear'") from None


def _mirrored(array: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(array[:, ::-1]) if mirrored else array
