"""Builds the embedded subset of Fashion-MNIST from the official idx files.

    python -m sc_jax.data.build_fashion_mnist --from DIR [--to FILE]

`embedded/README.md` says where the idx files come from and what the result is.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from sc_jax import files
from sc_jax.data import fashion_mnist
from sc_jax.files import InputError


def build(folder: str | Path, path: str | Path) -> None:
    """Writes the subset of the official files in `folder` to `path`: the same input gives the same arrays everywhere.

    Raises:
      InputError: the official files are not in `folder`, or `path` cannot be written.
    """
    files.write_npz(path, fashion_mnist.subset_arrays(fashion_mnist.read_official(folder)), compress=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog=fashion_mnist.BUILD, description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="source", required=True, metavar="DIR", help="folder of the official idx files")
    parser.add_argument("--to", type=Path, default=fashion_mnist.SUBSET_FILE, metavar="FILE", help="npz to write")
    options = parser.parse_args(arguments)
    try:
        build(options.source, options.to)
        print(f"{options.to}: {options.to.stat().st_size} bytes")
        print(f"SHA-256 of the file:       {hashlib.sha256(options.to.read_bytes()).hexdigest()}")
        print(f"fingerprint of the arrays: {files.fingerprint(files.read_npz(options.to))}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
