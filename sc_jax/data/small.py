"""Small made-up data sets, one for each real one, in its real format on disk: what smoke runs and tests train on.

    python -m sc_jax.data.small cifar10         # prints the folder: load("cifar10", folder)

A few dozen examples per split, whose inputs depend on their classes. They come through the very code that prepares and reads
the real data. Fashion-MNIST has none: a part of the real one is in the package.
"""

from __future__ import annotations

import argparse
import errno
import pkgutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from sc_jax import data, files
from sc_jax.files import InputError

SMALL = {
    "mnist": "sc_jax.data.mnist:write_small",
    "cifar10": "sc_jax.data.cifar:write_small_cifar10",
    "cifar10_jpeg": "sc_jax.data.cifar:write_small_cifar10_jpeg",
    "cifar10_jpeg_halves": "sc_jax.data.cifar:write_small_cifar10_jpeg",
    "cifar100": "sc_jax.data.cifar:write_small_cifar100",
    "imdb": "sc_jax.data.text:write_small_imdb",
    "sst2": "sc_jax.data.text:write_small_sst2",
    "trec": "sc_jax.data.text:write_small_trec",
    "clinc150": "sc_jax.data.clinc150:write_small",
    "adult": "sc_jax.data.tabular:write_small_adult",
    "bank_marketing": "sc_jax.data.tabular:write_small_bank_marketing",
    "online_shoppers": "sc_jax.data.tabular:write_small_online_shoppers",
    "imagenet": "sc_jax.data.imagenet:write_small",
    "cityscapes": "sc_jax.data.cityscapes:write_small",
}
"""Data set -> "module:function" of an empty folder, which it fills with what `load(name, folder)` reads."""


def folder_of(name: str) -> Path:
    """Where `small(name)` is or would be: in `data_directory()`/small, under its name and a fingerprint of our code.

    Raises:
      InputError: no small set has this name.
    """
    if name not in SMALL:
        raise data.unknown_name(name, SMALL)
    return data.data_directory() / "small" / f"{name}-{files.fingerprint_sources('data')[:12]}"


def small(name: str) -> Path:
    """The folder with the small set of `name`, for `load(name, folder)`; it is made if there is none by this code.

    It is made elsewhere and renamed when it is whole, and never changed or removed afterwards: other processes may make the
    same one at the same time (the first one stays) or read it, and those of another code have another folder.

    Raises:
      InputError: no small set has this name, or the folder cannot be written.
    """
    folder = folder_of(name)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as temporary:
            made = Path(temporary, folder.name)
            made.mkdir()
            pkgutil.resolve_name(SMALL[name])(made)
            _rename(made, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror}); set SC_JAX_DATA to another folder"
        ) from error
    return folder


def _rename(made: Path, folder: Path) -> None:
    """Puts `made` into its place, unless another process was faster."""
    try:
        made.rename(folder)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def made_up_images(label: np.ndarray, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """uint8 [n, *shape]: a pattern of coarse blocks for each class, under noise.

    Args:
      label: [n], classes.
      shape: of an image, (h, w) or (h, w, c), h and w at least 4.
      seed: of the noise; the patterns are the same for every seed.
    """
    coarse = np.random.default_rng(0).integers(40, 216, (int(label.max()) + 1, 4, 4, *shape[2:]))
    row, column = (np.arange(size) * 4 // size for size in shape[:2])
    noise = np.random.default_rng(seed).normal(0, 24, (len(label), *shape))
    return np.clip(coarse[:, row][:, :, column][label] + noise, 0, 255).astype(np.uint8)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sc_jax.data.small", description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help=f"one of: {', '.join(SMALL)}")
    try:
        print(small(parser.parse_args(arguments).dataset))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
