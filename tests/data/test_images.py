"""Crops of images against their definitions: whole resizes cut afterwards, boxes drawn as in the paper, damaged files."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from sc_jax.data import images
from sc_jax.files import InputError

SMOOTH = np.zeros((40, 60, 3), np.uint8) + np.arange(40, dtype=np.uint8)[:, None, None] * 3
SMOOTH[..., 1] = np.arange(60) * 4
NOISE = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)


def encoded(pixels, kind="PNG", **options):
    data = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(data, kind, **options)
    return data.getvalue()


class Drawn:
    """A generator whose draws are told: uniform, integers, random."""

    def __init__(self, uniform, integers, random=1.0):
        self.uniforms, self.integer, self.number = iter(uniform), iter(integers), random

    def uniform(self, low, high):
        return next(self.uniforms)

    def integers(self, high):
        value = next(self.integer)
        assert 0 <= value < high
        return value

    def random(self):
        return self.number


def test_decode_gives_the_pixels():
    np.testing.assert_array_equal(images.decode(encoded(NOISE)), NOISE)
    grey = Image.fromarray(NOISE[..., 0])
    np.testing.assert_array_equal(images.decode(encoded(grey)), np.repeat(NOISE[..., :1], 3, -1))
    cmyk = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(images.decode(cmyk).astype(int) - SMOOTH).max() < 24
    np.testing.assert_array_equal(images.decode_labels(encoded(grey)), NOISE[..., 0])
    with pytest.raises(InputError, match="a label map of mode RGB"):
        images.decode_labels(encoded(NOISE))


READERS = [
    images.decode,
    images.decode_labels,
    functools.partial(images.train_crop, rng=np.random.default_rng(0), size=8),
    functools.partial(images.eval_crop, size=8),
    functools.partial(images.train_pair, labels=NOISE[..., 0], rng=np.random.default_rng(0), size=8),
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: getattr(read, "func", read).__name__)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_files_are_refused(read, kind):
    grey = encoded(NOISE[..., 0], kind)
    for data, message in {
        b"": "no image",
        b"\xff\xd8 not a JPEG": "no image|damaged",
        grey[: len(grey) // 2]: "damaged",
    }.items():
        with pytest.raises(InputError, match=message):
            read(data)


def test_boxes_have_the_area_and_aspect_asked_for():
    rng = np.random.default_rng(0)
    height, width = 1000, 1400
    boxes = np.array([images.crop_box(height, width, rng, (0.08, 0.5), (3 / 4, 4 / 3)) for _ in range(4000)])
    top, left, rows, columns = boxes.T
    assert top.min() >= 0
    assert (top + rows).max() <= height
    assert left.min() >= 0
    assert (left + columns).max() <= width
    # Up to half a pixel of rounding, both are uniform: compared by quantiles, with 4 standard errors of 4000 draws.
    share, aspect = rows * columns / (height * width), np.log(columns / rows)
    at = np.linspace(0.1, 0.9, 9)
    off = 4 * 0.5 / np.sqrt(4000)
    np.testing.assert_allclose((np.quantile(share, at) - 0.08) / 0.42, at, atol=off)
    np.testing.assert_allclose((np.quantile(aspect, at) / np.log(4 / 3) + 1) / 2, at, atol=off)
    # Places are uniform among those where the box fits.
    np.testing.assert_allclose(np.quantile(top / (height - rows), at), at, atol=off)
    np.testing.assert_allclose(np.quantile(left / (width - columns), at), at, atol=off)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((1000, 10), (493, 0, 13, 10)),  # 10 / (3/4) rows
        ((10, 1000), (0, 493, 10, 13)),  # 10 · 4/3 columns
    ],
)
def test_long_images_fall_back_to_the_centre(shape, box):
    rng = np.random.default_rng(0)
    assert images.crop_box(*shape, rng, (0.9, 1.0), (3 / 4, 4 / 3)) == box


def test_square_in_range_falls_back_to_all_of_it():
    assert images.crop_box(20, 20, np.random.default_rng(0), (1.5, 2.0), (3 / 4, 4 / 3)) == (0, 0, 20, 20)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_train_crop_of_all_is_a_resize(interpolation):
    square = NOISE[:, :40]
    crop = functools.partial(
        images.train_crop, encoded(square), size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), interpolation=interpolation
    )
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[interpolation]
    whole = np.asarray(Image.fromarray(square).resize((16, 16), resample))
    np.testing.assert_array_equal(crop(rng=np.random.default_rng(0), flip=False), whole)
    seen = [crop(rng=np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [np.array_equal(image, whole[:, ::-1]) for image in seen]
    assert all(flipped or np.array_equal(image, whole) for flipped, image in zip(mirrored, seen, strict=True))
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(200)


def test_train_crop_at_its_own_size_is_a_cut():
    # A share of 1/6 with the aspect 1 is 20 × 20 pixels.
    image = images.train_crop(encoded(NOISE), Drawn([1 / 6, 0.0], [7, 31]), 20)
    np.testing.assert_array_equal(image, NOISE[7:27, 31:51])


def test_a_large_jpeg_is_decoded_smaller_with_almost_the_same_result():
    large = np.asarray(Image.fromarray(SMOOTH).resize((600, 400), Image.Resampling.BICUBIC))
    draws = [1 / 6, 0.0], [70, 310]
    exact = images.train_crop(encoded(large), Drawn(*draws), 20)
    quick = images.train_crop(encoded(large, "JPEG", quality=95), Drawn(*draws), 20)
    assert np.abs(exact.astype(int) - quick).max() <= 4


def test_train_crop_follows_the_generator():
    crop = functools.partial(images.train_crop, encoded(NOISE), size=8)
    np.testing.assert_array_equal(crop(rng=np.random.default_rng(5)), crop(rng=np.random.default_rng(5)))
    assert not np.array_equal(crop(rng=np.random.default_rng(5)), crop(rng=np.random.default_rng(6)))


@pytest.mark.parametrize(("shape", "resized"), [((40, 60), (36, 54)), ((60, 40), (54, 36)), ((40, 41), (36, 36))])
def test_eval_crop_is_the_centre_of_the_resized_image(shape, resized):
    # size 32, crop_pct 0.875: the shorter side becomes ⌊36.57⌋ = 36, the longer ⌊36·60/40⌋ = 54 or ⌊36·41/40⌋ = 36.
    pixels = np.random.default_rng(1).integers(256, size=(*shape, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(pixels).resize(resized[::-1], Image.Resampling.BICUBIC))
    top, left = ((side - 32) // 2 for side in resized)
    np.testing.assert_array_equal(images.eval_crop(encoded(pixels), 32), whole[top : top + 32, left : left + 32])


@pytest.mark.parametrize(("width", "left"), [(33, 0), (35, 2), (37, 2)])
def test_eval_crop_rounds_half_to_even(width, left):
    pixels = np.random.default_rng(1).integers(256, size=(32, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(images.eval_crop(encoded(pixels), 32, crop_pct=1.0), pixels[:, left : left + 32])


def test_options_out_of_range_are_refused():
    with pytest.raises(InputError, match="crop_pct = 0"):
        images.eval_crop(encoded(NOISE), 8, crop_pct=0)
    with pytest.raises(InputError, match="interpolation = 'nearest'"):
        images.eval_crop(encoded(NOISE), 8, interpolation="nearest")


@pytest.mark.parametrize("factor", [0.55, 0.8, 1.0, 1.5, 2.0])
def test_train_pair_is_a_cut_of_the_resized_pair(factor):
    """The brute force: resize all of the image and of the labels, then cut."""
    labels = NOISE[..., 0] % 19
    height, width = round(40 * factor), round(60 * factor)
    image, classes = images.train_pair(encoded(NOISE), labels, Drawn([factor], [4, 9]), 16)
    whole = np.asarray(Image.fromarray(NOISE).resize((width, height), Image.Resampling.BILINEAR))
    nearest = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
    # Pillow rounds after each of two passes, and takes the corners of the cut in single precision.
    assert np.abs(image.astype(int) - whole[4:20, 9:25]).max() <= 2
    # Where the centre of a pixel falls on an edge between two, either is nearest.
    clear = [
        np.flatnonzero((2 * np.arange(first, first + 16) + 1) * side % (2 * new))
        for first, side, new in ((4, 40, height), (9, 60, width))
    ]
    np.testing.assert_array_equal(classes[np.ix_(*clear)], nearest[4:20, 9:25][np.ix_(*clear)])


def test_train_pair_pads_what_is_not_scored():
    labels = NOISE[..., 0] % 19
    image, classes = images.train_pair(encoded(NOISE), labels, Drawn([1.0], [0, 3]), 48)
    np.testing.assert_array_equal(image[:40], NOISE[:, 3:51])
    np.testing.assert_array_equal(classes[:40], labels[:, 3:51])
    assert np.all(image[40:] == images.MEAN_COLOUR)
    assert np.all(classes[40:] == images.IGNORE)


def test_image_and_labels_stay_together():
    """Labels that are the image's first channel still are after cut and mirror, at scale 1."""
    mirrored = 0
    for seed in range(50):
        image, classes = images.train_pair(
            encoded(NOISE), NOISE[..., 0], np.random.default_rng(seed), 16, scale=(1.0, 1.0)
        )
        np.testing.assert_array_equal(image[..., 0], classes)
        unmirrored = images.train_pair(
            encoded(NOISE), NOISE[..., 0], np.random.default_rng(seed), 16, scale=(1.0, 1.0), flip=False
        )[0]
        mirrored += np.array_equal(image, unmirrored[:, ::-1])
    assert 10 < mirrored < 40


def test_any_size_and_scale_works():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 50, size=2)
        data = encoded(NOISE[:height, :width], rng.choice(["PNG", "JPEG"]))
        assert images.train_crop(data, rng, 12).shape == (12, 12, 3)
        assert images.eval_crop(data, 12).shape == (12, 12, 3)
        labels = np.zeros(images.decode(data).shape[:2], np.uint8)
        image, classes = images.train_pair(data, labels, rng, 12, scale=(0.01, 3.0))
        assert (image.shape, classes.shape) == ((12, 12, 3), (12, 12))


def test_records_keep_what_is_not_an_image():
    record = {"image": encoded(NOISE), "label": NOISE[..., 0], "example_id": 7}
    rng = np.random.default_rng
    expected = {
        "train_record": images.train_crop(record["image"], rng(0), size=8),
        "eval_record": images.eval_crop(record["image"], size=8),
        "eval_pair_record": NOISE,
    }
    results = {
        "train_record": images.train_record(record, rng(0), size=8),
        "eval_record": images.eval_record(record, size=8),
        "eval_pair_record": images.eval_pair_record(record),
    }
    for name, result in results.items():
        np.testing.assert_array_equal(result["image"], expected[name])
        assert result["label"] is record["label"]
        assert result["example_id"] == 7
    pair = images.train_pair_record(record, rng(0), size=8)
    for array, expected_array in zip(
        (pair["image"], pair["label"]), images.train_pair(record["image"], record["label"], rng(0), 8), strict=True
    ):
        np.testing.assert_array_equal(array, expected_array)
    with pytest.raises(InputError, match="the image is 40 x 60, its label map 40 x 59"):
        images.eval_pair_record({**record, "label": NOISE[:, 1:, 0]})


def test_postscript_is_no_image() -> None:
    with pytest.raises(InputError, match=r"^no image;"):  # not: an image that could not be drawn
        images.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    black = encoded(Image.new("1", (10_000, 10_000)))
    assert len(black) < 20_000
    monkeypatch.setattr(Image.Image, "convert", decoded)
    for read in READERS:
        with pytest.raises(InputError, match=r"an image of 10000 x 10000 pixels, more than the 89,478,485"):
            read(black)
    with pytest.raises(InputError, match=r"40 x 60 pixels, more than the 2,399 "):
        images.decode(encoded(NOISE), most_pixels=40 * 60 - 1)
    long = encoded(Image.new("RGB", (1, 20_000)))  # 256 x 5,120,000 before the crop
    with pytest.raises(InputError, match=r"an image of 5120000 x 256 pixels"):
        images.eval_crop(long, 224)


def test_the_limit_is_within_what_is_read() -> None:
    assert images.decode(encoded(NOISE), most_pixels=40 * 60).shape == (40, 60, 3)
    assert images.eval_crop(encoded(Image.new("RGB", (1, 1000))), 224).shape == (224, 224, 3)


@pytest.mark.parametrize("needed_by", ["convert", "resize"])
def test_an_image_that_does_not_fit_is_not_called_damaged(needed_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, needed_by, full)
    with pytest.raises(InputError, match=r"^an image too large for the memory that is free$"):
        images.eval_crop(encoded(NOISE), 8)
