"""Segmentation as selective classification of pixels: losses, scores and a sample, image by image.

The logits of a batch stay on their device. What leaves it: of each pixel whether its class is wrong, and its scores; of the
sampled pixels the logits too. Pixels with the ignore label count nowhere. An image id lies in 0..2³¹ − 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sc_jax import ops
from sc_jax.files import InputError
from sc_jax.predictions import Predictions, Scored

SCORES: dict[str, Callable[[Any], Any]] = {
    "msp": ops.msp,
    "negative_entropy": ops.negative_entropy,
    "max_logit": ops.max_logit,
}
"""The scores that are kept of every pixel. A pixel takes 5 bytes and 4 for each."""

PICTURES = 4
"""How many images are kept to be looked at."""

PICTURE_SIDE = 512
"""The most pixels of a side of such a picture."""

SAMPLE_SEED = 20_240_131
"""Of the samples: fixed, so that all members of a study have the same pixels."""


class Measured(NamedTuple):
    """What leaves the device of a batch of segmented images.

    Attributes:
      wrong: bool [m, b, h, w], the predicted class is not the label; meaningless where there is no label.
      score: float32 [m, b, h, w] by the names of `SCORES`.
      logits: float32 [m, b, s, k] of the sampled pixels.
    """

    wrong: Any
    score: dict[str, Any]
    logits: Any


def measure(logits: jax.Array, label: jax.Array, places: jax.Array) -> Measured:
    """Losses and scores of all pixels, and the logits of some; for `jax.jit`.

    Args:
      logits: float32 [m, b, h, w, k]; label: int [b, h, w]; places: int [b, s], flat indices of pixels (row·w + column).

    Returns:
      `Measured`; the predicted class is the argmax, the lowest of tied ones.
    """
    m, b, h, w, k = logits.shape
    flat = logits.reshape(m, b, h * w, k)
    return Measured(
        ops.predicted_class(logits) != label[None],
        {name: score(logits) for name, score in SCORES.items()},
        jax.vmap(lambda image, place: jnp.take(image, place, axis=1), in_axes=(1, 0), out_axes=1)(flat, places),
    )


def sample(label: np.ndarray, ignore_label: int, example_id: int, pixels: int) -> np.ndarray:
    """Labelled pixels of an image, drawn uniformly without replacement; the same ones whenever the image is asked for.

    Args:
      label: int [h, w]; ignore_label: of pixels that are not drawn.
      example_id: of the image: what is drawn depends on it and nothing else; pixels: how many are drawn.

    Returns:
      int64 [min(pixels, labelled)], flat indices, increasing.
    """
    labelled = np.flatnonzero(label != ignore_label)
    rng = np.random.default_rng([SAMPLE_SEED, example_id])
    return np.sort(labelled[rng.choice(len(labelled), min(pixels, len(labelled)), replace=False, shuffle=False)])


def pixel_id(example_id: int, place: np.ndarray) -> np.ndarray:
    """Ids of pixels: image id · 2³² + flat index, int64 [s] of int [s]."""
    return (np.int64(example_id) << 32) + np.asarray(place, np.int64)


class Collector:
    """What one member says about a split, image by image, in memory that does not grow with the pixels.

    Losses and scores of all labelled pixels go to files in `folder`, one per column; the samples stay in memory.

    Raises:
      InputError: they cannot be written, or read back.
    """

    def __init__(self, folder: Path | None, ignore_label: int) -> None:
        """Args: `folder`, where the columns are put, made here, or None if the samples suffice; `ignore_label`, of pixels
        that count nowhere."""
        self._folder, self._ignore_label = folder, ignore_label
        self._types = {
            "loss": np.dtype(bool),
            **dict.fromkeys(SCORES, np.dtype(np.float32)),
            "cluster": np.dtype(np.int32),
        }
        self._columns: dict[str, IO[bytes]] = {}
        if folder is not None:
            with self._on_disk():
                folder.mkdir(parents=True)
                self._columns = {name: open(folder / name, "wb") for name in self._types}  # noqa: SIM115
        self._samples: list[tuple[np.ndarray, ...]] = []
        self._images: list[tuple[float, ...]] = []

    def add(self, example_id: int, label: np.ndarray, places: np.ndarray, measured: Measured) -> None:
        """One image more.

        Args:
          example_id: of the image; label: int [h, w]; places: int [s], the sampled pixels, all of them labelled.
          measured: on the host, of this image and member: [h, w], and logits [s or more, k], of which the first s count.
        """
        labelled = label != self._ignore_label
        count = int(labelled.sum())
        if not count:
            return
        rows = {"loss": measured.wrong[labelled], **{name: score[labelled] for name, score in measured.score.items()}}
        means = [float(np.mean(rows[name], dtype=np.float64)) for name in ("loss", *SCORES)]
        probability = 1 / (1 + np.exp(-rows["msp"].astype(np.float64)))
        self._images.append((example_id, *means, float(np.mean(probability))))
        rows["cluster"] = np.full(count, example_id)
        with self._on_disk():
            for name, column in self._columns.items():
                column.write(rows[name].astype(self._types[name], copy=False))
        s = len(places)
        chosen = np.full(s, example_id), places, label.reshape(-1)[places], measured.logits[:s], np.full(s, count / s)
        self._samples.append(chosen)

    def sampled(self) -> Predictions:
        """The sampled pixels as `Predictions`: a pixel's weight is how many labelled pixels of its image it stands for.

        Weighted means over the sample estimate means over all labelled pixels without bias. The image is the cluster.
        """
        image, place, label, logits, weight = (np.concatenate(column) for column in zip(*self._samples, strict=True))
        return Predictions(label.astype(np.int32), logits, pixel_id(image, place), weight=weight, cluster=image)

    def pixels(self) -> Scored:
        """All labelled pixels, 0/1 loss and every score: images as they were added, row by row of each; mapped from `folder`,
        which must have been given."""
        with self._on_disk():
            for column in self._columns.values():
                column.close()
            mapped = {name: np.memmap(self._folder / name, dtype, "r") for name, dtype in self._types.items()}
        return Scored(mapped["loss"], {name: mapped[name] for name in SCORES}, cluster=mapped["cluster"])

    def images(self) -> Scored:
        """Images with a labelled pixel: the loss is the share of labelled pixels that are wrong, a score the mean over them.

        Scores: the mean of each of `SCORES`, and that of the maximum softmax probability: of a calibrated model, 1 − expected loss.
        """
        example_id, loss, *score = (np.array(column) for column in zip(*self._images, strict=True))
        return Scored(
            loss, dict(zip((*SCORES, "mean_max_probability"), score, strict=True)), example_id.astype(np.int64)
        )

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._folder}: cannot keep the pixels there ({error.strerror}); make room and predict again"
            ) from error

    @property
    def empty(self) -> bool:
        """No labelled pixel has been added."""
        return not self._images


def picture(image: np.ndarray, label: np.ndarray, ignore_label: int, measured: Measured) -> dict[str, np.ndarray]:
    """An image as it is looked at: every d-th pixel of every d-th row, so that no side is longer than `PICTURE_SIDE`.

    Args:
      image: uint8 [h, w, 3]; label: int [h, w]; ignore_label: of pixels without a label; measured: [h, w], on the host.

    Returns:
      {"image": uint8 [h/d, w/d, 3], "outcome": uint8 [h/d, w/d], 0 right, 1 wrong, 255 without a label, "msp": float32}.
    """
    d = max(1, -(-max(label.shape) // PICTURE_SIDE))
    every = (slice(d // 2, None, d), slice(d // 2, None, d))
    outcome = np.where(label == ignore_label, 255, measured.wrong).astype(np.uint8)
    shown = {"image": image, "outcome": outcome, "msp": measured.score["msp"]}
    return {name: array[every].copy() for name, array in shown.items()}
