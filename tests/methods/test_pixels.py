"""Pixels are examples: losses and scores are those of the flattened labelled pixels, and the sample stands for all of them."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from sc_jax import ops, predictions
from sc_jax.files import InputError
from sc_jax.methods import pixels
from sc_jax.ops import resampling

IGNORE, K, SHAPE = 255, 5, (6, 9)


def made_up(images=3, members=2, seed=0, unlabelled=0.3):
    """Logits [m, b, h, w, k] and labels [b, h, w], about a third of them the ignore label; images differ in difficulty."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, K, (images, *SHAPE)).astype(np.uint8)
    signal = np.linspace(0, 3, images)[:, None, None, None]
    logits = rng.normal(size=(members, images, *SHAPE, K)) + signal * (np.arange(K) == label[..., None])
    label[rng.random(label.shape) < unlabelled] = IGNORE
    return logits.astype(np.float32), label


def collected(folder, logits, label, wanted=7, together=2):
    """Collectors of every member, from batches of `together` images; image i has the id 10·i."""
    collectors = [pixels.Collector(folder / str(member), IGNORE) for member in range(len(logits))]
    for start in range(0, len(label), together):
        part = slice(start, start + together)
        drawn = [pixels.sample(one, IGNORE, 10 * i, wanted) for i, one in enumerate(label[part], start)]
        places = np.stack([np.pad(place, (0, wanted - len(place))) for place in drawn])
        outputs = jax.device_get(jax.jit(pixels.measure)(logits[:, part], label[part], places))
        for i, place in enumerate(drawn):
            for member, collector in enumerate(collectors):
                one = jax.tree.map(lambda array, at=(member, i): array[at], outputs)
                collector.add(10 * (start + i), label[start + i], place, one)
    return collectors


def test_pixels_have_the_losses_and_scores_of_the_flattened_labelled_pixels(tmp_path):
    logits, label = made_up()
    for member, collector in enumerate(collected(tmp_path, logits, label)):
        labelled = label != IGNORE
        flat, truth = logits[member][labelled], label[labelled]
        scored = collector.pixels()
        predictions.validate(scored)
        np.testing.assert_array_equal(scored.loss, ops.predicted_class(flat) != truth)
        assert list(scored.score) == list(pixels.SCORES)
        for name, score in pixels.SCORES.items():
            np.testing.assert_allclose(scored.score[name], score(flat), rtol=2e-5, atol=2e-6, err_msg=name)
        np.testing.assert_array_equal(scored.cluster, 10 * np.nonzero(labelled)[0])


def test_batches_of_any_size_give_the_same_files(tmp_path):
    logits, label = made_up(images=5)
    alone, whole = (collected(tmp_path / str(size), logits, label, together=size) for size in (1, 5))
    for one, other in zip(alone, whole, strict=True):
        for form in ("sampled", "pixels", "images"):
            a, b = (getattr(collector, form)().arrays() for collector in (one, other))
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=f"{form} {name}")


def test_an_ignored_pixel_counts_nowhere(tmp_path):
    logits, label = made_up()
    label[1] = IGNORE  # a whole image
    changed = np.where((label == IGNORE)[..., None], np.float32(7) * np.arange(K, dtype=np.float32), logits)
    for one, other in zip(
        collected(tmp_path / "a", logits, label), collected(tmp_path / "b", changed, label), strict=True
    ):
        for form in ("sampled", "pixels", "images"):
            a, b = (getattr(collector, form)() for collector in (one, other))
            for name, array in a.arrays().items():
                np.testing.assert_array_equal(array, b.arrays()[name], err_msg=f"{form} {name}")
        assert one.images().example_id.tolist() == [0, 20]
        assert len(one.pixels()) == (label != IGNORE).sum()
        assert (one.sampled().label != IGNORE).all()
    nothing = collected(tmp_path / "c", logits[:1, :1], np.full_like(label[:1], IGNORE))[0]
    assert nothing.empty


def test_an_image_is_wrong_by_the_share_of_its_wrong_pixels(tmp_path):
    logits, label = made_up()
    images = collected(tmp_path, logits, label)[1].images()
    predictions.validate(images)
    for i in range(3):
        labelled = label[i] != IGNORE
        flat = logits[1, i][labelled]
        assert images.loss[i] == pytest.approx((ops.predicted_class(flat) != label[i][labelled]).mean())
        assert images.score["mean_max_probability"][i] == pytest.approx(ops.max_probability(flat).mean(), rel=1e-5)
        for name, score in pixels.SCORES.items():
            assert images.score[name][i] == pytest.approx(score(flat).mean(), rel=1e-4), name


def test_the_sample_is_drawn_without_replacement_and_depends_on_the_image_alone(tmp_path):
    _, label = made_up()
    drawn = pixels.sample(label[0], IGNORE, 3, 20)
    np.testing.assert_array_equal(drawn, pixels.sample(label[0], IGNORE, 3, 20))
    assert not np.array_equal(drawn, pixels.sample(label[0], IGNORE, 4, 20))
    assert len(np.unique(drawn)) == 20
    assert (np.diff(drawn) > 0).all()
    labelled = np.flatnonzero(label[0] != IGNORE)
    assert np.isin(drawn, labelled).all()
    np.testing.assert_array_equal(pixels.sample(label[0], IGNORE, 3, 1000), labelled)
    assert len(pixels.sample(np.full(SHAPE, IGNORE), IGNORE, 3, 5)) == 0


def test_every_labelled_pixel_is_drawn_equally_often():
    """Of 4000 draws of 10 among 40, each pixel is in 1000 on average, with SD √(4000·¼·¾) = 27; 5 SD are allowed."""
    label = np.full(60, IGNORE)
    label[::3], label[1::3] = 0, 1
    times = np.bincount(np.concatenate([pixels.sample(label, IGNORE, i, 10) for i in range(4000)]), minlength=60)
    assert (times[2::3] == 0).all()
    assert np.abs(times[label != IGNORE] - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_sampled_pixels_are_named_weighed_and_true(tmp_path):
    logits, label = made_up()
    sampled = collected(tmp_path, logits, label)[0].sampled()
    predictions.validate(sampled)
    assert sampled.weight.sum() == pytest.approx((label != IGNORE).sum())
    image, place = sampled.example_id >> 32, sampled.example_id & 0xFFFFFFFF
    np.testing.assert_array_equal(image, sampled.cluster)
    np.testing.assert_array_equal(image // 10, np.repeat([0, 1, 2], 7))
    y, x = np.divmod(place, SHAPE[1])
    np.testing.assert_array_equal(sampled.label, label[image // 10, y, x])
    np.testing.assert_array_equal(sampled.logits, logits[0, image // 10, y, x])
    for i in range(3):
        assert sampled.weight[image == 10 * i] == pytest.approx((label[i] != IGNORE).sum() / 7)


def test_a_sample_of_all_pixels_names_each_labelled_pixel_once(tmp_path):
    logits, label = made_up()
    sampled = collected(tmp_path, logits, label, wanted=SHAPE[0] * SHAPE[1])[0].sampled()
    image, place = np.nonzero((label != IGNORE).reshape(3, -1))
    np.testing.assert_array_equal(sampled.example_id, 10 * image * 2**32 + place)
    assert (sampled.weight == 1).all()


def test_the_weighted_error_of_samples_estimates_the_error_of_all_pixels():
    """Images of different sizes and error rates: 2000 samples of 8 + 8 pixels.

    The estimate Σ_i N_i·ê_i/N has variance Σ_i (N_i/N)²·e_i(1 − e_i)/8·(N_i − 8)/(N_i − 1); the mean of 2000 is within 4 SD
    of the exact error, which the unweighted mean misses by far more.
    """
    rng = np.random.default_rng(0)
    sizes, rates, s, repeats = np.array([400, 40]), np.array([0.1, 0.6]), 8, 2000
    wrong = [rng.permutation(np.arange(n) < round(n * rate)) for n, rate in zip(sizes, rates, strict=True)]
    exact = sum(w.sum() for w in wrong) / sizes.sum()
    drawn = np.array(
        [
            [wrong[i][pixels.sample(np.zeros(n, int), IGNORE, 2 * r + i, s)].mean() for i, n in enumerate(sizes)]
            for r in range(repeats)
        ]
    )
    share = sizes / sizes.sum()
    variance = np.sum(share**2 * rates * (1 - rates) / s * (sizes - s) / (sizes - 1))
    sd = np.sqrt(variance / repeats)
    assert abs((drawn @ share).mean() - exact) < 4 * sd
    assert abs(drawn.mean() - exact) > 20 * sd


def test_resamples_draw_images_whole(tmp_path):
    logits, label = made_up(images=6)
    sampled = collected(tmp_path, logits, label)[0].sampled()
    counts = resampling.resample_counts(0, len(sampled), 30, sampled.cluster)
    for image in np.unique(sampled.cluster):
        mine = counts[:, sampled.cluster == image]
        assert (mine == mine[:, :1]).all()
    assert (counts.sum(axis=1) == 6 * 7).all()  # as many images are drawn as there are, each of 7 pixels


def test_a_picture_is_every_dth_pixel():
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (700, 1025, 3), np.uint8), rng.integers(0, 3, (700, 1025)).astype(np.uint8)
    label[:100] = IGNORE
    wrong, msp = rng.random(label.shape) < 0.5, rng.normal(size=label.shape).astype(np.float32)
    shown = pixels.picture(image, label, IGNORE, pixels.Measured(wrong, {"msp": msp}, None))
    np.testing.assert_array_equal(shown["image"], image[1::3, 1::3])
    np.testing.assert_array_equal(shown["msp"], msp[1::3, 1::3])
    np.testing.assert_array_equal(shown["outcome"], np.where(label == IGNORE, 255, wrong)[1::3, 1::3])
    assert max(shown["outcome"].shape) <= pixels.PICTURE_SIDE


def _made(folder, collector):
    pixels.Collector(folder / "0", IGNORE)  # where one is


def _added(folder, collector):
    collector._columns["loss"] = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    one = pixels.Measured(
        np.ones(SHAPE, bool), dict.fromkeys(pixels.SCORES, np.ones(SHAPE, np.float32)), np.ones((1, K))
    )
    collector.add(1, np.zeros(SHAPE, np.uint8), np.array([0]), one)


def _closed(folder, collector):
    collector._columns["loss"] = open("/dev/full", "wb")  # noqa: SIM115
    collector._columns["loss"].write(b"x")
    collector.pixels()


def _mapped(folder, collector):
    (folder / "0" / "loss").unlink()
    collector.pixels()


@pytest.mark.parametrize("use", [_made, _added, _closed, _mapped])
def test_a_disk_that_refuses_the_columns_is_said(tmp_path, use):
    (collector,) = collected(tmp_path, *made_up(members=1))
    with pytest.raises(InputError, match=rf"{tmp_path}/0: cannot keep the pixels there \(.*\); make room"):
        use(tmp_path, collector)


BOUNDED = """
import resource, sys
from pathlib import Path
import numpy as np
from sc_jax import predictions
from sc_jax.methods import pixels

folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
shape, images = (1000, 1000), 20
label = np.zeros(shape, np.uint8)
score = {name: rng.normal(size=shape).astype(np.float32) for name in pixels.SCORES}
one = pixels.Measured(rng.random(shape) < 0.1, score, np.zeros((5, 3), np.float32))
collector = pixels.Collector(folder / "columns", 255)
places = pixels.sample(label, 255, 0, 5)
collector.add(0, label, places, one)
private = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack
resource.setrlimit(resource.RLIMIT_DATA, (private + (100 << 20),) * 2)
for i in range(1, images):
    collector.add(i, label, places, one)
predictions.save(folder / "test_pixels.npz", collector.pixels())
print(len(predictions.load_scored(folder / "test_pixels.npz")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on private memory is Linux's")
def test_twenty_million_pixels_are_written_in_bounded_memory(tmp_path):
    """Their columns take 340 MB; beyond what one image has needed, 100 MiB are allowed, whatever is mapped from files."""
    done = subprocess.run([sys.executable, "-c", BOUNDED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "20000000"
