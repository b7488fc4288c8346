"""Prepares data sets that are too large for the package, from their original files or from TFDS.

    python -m sc_jax.data.prepare NAME [--from DIR] [--to DIR]

Every source of a data set gives the same file. Fashion-MNIST, whose licence allows it, is fetched too, and verified against
pinned checksums. `docs/data.md` says for each data set which files to get where.
"""

from __future__ import annotations

import argparse
import pkgutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import NoReturn

import numpy as np

from sc_jax import data, files
from sc_jax.data import fashion_mnist, idx, sources
from sc_jax.files import InputError

ORIGIN = sources.Origin(
    "fashion_mnist",
    ", ".join(f"{name}.gz" for name in idx.NAMES),
    "https://github.com/zalandoresearch/fashion-mnist",
    "fashion_mnist",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def prepare_fashion_mnist(source: Path | None, directory: Path) -> Path:
    """Writes all of Fashion-MNIST to `directory`, from the folder `source` or else from the first source that works.

    Raises:
      InputError: `source` does not hold the official files, no source worked, or `directory` cannot be written.
    """
    path = directory / fashion_mnist.FULL_NAME
    if path.exists():
        try:
            fashion_mnist.load_full(directory)
        except InputError as error:
            print(f"making it again: {error}")
        else:
            print("already prepared; its content is as it should be")
            return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be made ({error.strerror}); name another folder with --to") from error
    if source:
        from_tfds = lambda builder: fashion_mnist.verified(idx.read_tfds(builder), str(source))  # noqa: E731
        official = sources.read(ORIGIN, source, fashion_mnist.read_official, from_tfds)
    else:
        official = _first_that_works()
    files.write_npz(path, fashion_mnist.full_arrays(official))
    return path


def _first_that_works() -> dict[str, np.ndarray]:
    for name, read in SOURCES.items():
        print(f"trying {name}", flush=True)
        try:
            return fashion_mnist.verified(read(), name)
        except InputError as error:
            print(f"  no: {error}")
        except Exception as error:  # TFDS, and what it calls, raise anything
            print(f"  no: {type(error).__name__}: {error}")
    raise InputError(
        f"no source of Fashion-MNIST works here; get {ORIGIN.files} from {ORIGIN.page} "
        f"and run: {fashion_mnist.PREPARE} --from DIR"
    )


def _debian_installed() -> dict[str, np.ndarray]:
    return fashion_mnist.read_official(DEBIAN_FOLDER)


def _debian_downloaded() -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        _call("apt-get", "download", DEBIAN_PACKAGE, folder=folder)
        packages = list(Path(folder).glob("*.deb"))
        if len(packages) != 1:
            raise InputError(f"apt-get left {len(packages)} packages, not one")
        _call("dpkg-deb", "--extract", packages[0].name, "root", folder=folder)
        return fashion_mnist.read_official(Path(folder, "root", *DEBIAN_FOLDER.parts[1:]))


def _call(*command: str, folder: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise InputError(f"there is no {command[0]} on this machine") from None
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
        raise InputError(f"{' '.join(command)}: {reason[-1]}") from error


def _tfds_prepared() -> dict[str, np.ndarray]:
    return idx.read_tfds(sources.tfds_builder("fashion_mnist"))


def _tfds_downloaded() -> dict[str, np.ndarray]:
    # The download alone: to unpack and to encode these files, TFDS needs TensorFlow.
    import tensorflow_datasets as tfds

    url = {name: f"{tfds.image_classification.FashionMNIST.URL}{name}.gz" for name in fashion_mnist.OFFICIAL}
    # TFDS retries for minutes before it says that there is no network.
    urllib.request.urlopen(url["t10k-labels-idx1-ubyte"], timeout=20).close()
    with tempfile.TemporaryDirectory() as folder:
        paths = tfds.download.DownloadManager(download_dir=folder).download(url)
        return {name: idx.read_idx(path) for name, path in paths.items()}


SOURCES = {
    "Debian's package, installed": _debian_installed,
    "Debian's package, downloaded with apt-get": _debian_downloaded,
    "TFDS, already prepared": _tfds_prepared,
    "TFDS, downloaded": _tfds_downloaded,
}
"""Tried in this order; each gives the official arrays by file name, or raises."""

PREPARERS = {
    "fashion_mnist": "sc_jax.data.prepare:prepare_fashion_mnist",
    "mnist": "sc_jax.data.mnist:prepare",
    "cifar10": "sc_jax.data.cifar:prepare_cifar10",
    "cifar10_jpeg": "sc_jax.data.cifar:prepare_cifar10_jpeg",
    "cifar100": "sc_jax.data.cifar:prepare_cifar100",
    "imdb": "sc_jax.data.text:prepare_imdb",
    "sst2": "sc_jax.data.text:prepare_sst2",
    "trec": "sc_jax.data.text:prepare_trec",
    "clinc150": "sc_jax.data.clinc150:prepare",
    "adult": "sc_jax.data.tabular:prepare_adult",
    "bank_marketing": "sc_jax.data.tabular:prepare_bank_marketing",
    "online_shoppers": "sc_jax.data.tabular:prepare_online_shoppers",
    "imagenet": "sc_jax.data.imagenet:prepare",
    "cityscapes": "sc_jax.data.cityscapes:prepare",
}
"""Data set -> "module:function" of (folder given with --from or None, folder to write to) that returns the path."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; run {self.prog} --help")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _Parser(prog="python -m sc_jax.data.prepare", description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help=f"one of: {', '.join(PREPARERS)}")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="folder of the original files, or TFDS's"
    )
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="folder to write to (default: $SC_JAX_DATA, else ~/.cache/sc_jax)"
    )
    try:
        options = parser.parse_args(arguments)
        if options.dataset not in PREPARERS:
            raise data.unknown_name(options.dataset, PREPARERS)
        prepare = pkgutil.resolve_name(PREPARERS[options.dataset])
        print(f"{options.dataset}: {prepare(options.source, options.to or data.data_directory())}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        refused = files.refused_by_disk(error)
        if refused is None:
            raise
        print(f"error: {refused}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
