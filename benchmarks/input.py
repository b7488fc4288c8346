"""Images of ImageNet's shape: how many a core reads from array_record, decodes, crops and flips in a second, and what a GPU would need.

    make bench        # or: python -m benchmarks.input

Made-up photographs of 500×375 pixels, JPEG of about 90 KB (ImageNet's are about 110 on average, from memory), in an array_record file, read at random by Grain's threads
(`sc_jax.data.streams`), random-resized-cropped to 224×224 and flipped (`sc_jax.data.images`). Measured with 1 and 2 threads. The number of cores a GPU needs is
arithmetic: a rate of training that is given, over images/s of a core. On-device augmentation is what the host does not do: the rate of a batch through
flips and RandAugment inside a compiled program is measured beside it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import machine, networks
from sc_jax.data import images, streams
from sc_jax.data.pipelines import train_transform

WIDTH, HEIGHT, RECORDS = 500, 375, 256
GPU_RATES = {"ResNet-50": 3000.0, "ViT-S/16": 2500.0}
"""Images/s of training that a GPU is supposed to reach, for the arithmetic; round numbers, not measurements."""


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG with edges and grain, of about the size of ImageNet's."""
    from PIL import Image

    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(scale=13, size=(HEIGHT, WIDTH, 1)).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(np.clip(picture + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


class Records:
    """An array_record file of JPEGs as a source of `sc_jax.data.streams`; the same photographs come again beyond its end."""

    def __init__(self, path: str, count: int) -> None:
        """Args: `path`; `count`, examples that it stands for."""
        self.path, self.example_id = path, np.arange(count)
        self._source: Any = None

    def __len__(self) -> int:
        return len(self.example_id)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._source is None:
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            self._source = ArrayRecordDataSource([self.path])
        (data,) = self._source.__getitems__([int(index) % RECORDS])
        return {"image": bytes(data), "label": int(index) % 1000, "example_id": int(self.example_id[index])}

    def describe(self, index: int) -> str:
        """Which record."""
        return f"{self.path}, record {index}"


def write(path: str) -> int:
    """Writes `RECORDS` photographs; bytes of one on average."""
    from array_record.python.array_record_module import ArrayRecordWriter

    rng, size = np.random.default_rng(0), 0
    writer = ArrayRecordWriter(path, "group_size:1")
    for _ in range(RECORDS):
        data = photograph(rng)
        size += len(data)
        writer.write(data)
    writer.close()
    return size // RECORDS


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="sc_jax-input-")
    write(f"{folder.name}/train.array_record")
    return folder


def stream(batch_size: int, steps: int, threads: int | None = None) -> Any:
    """Batches {"image" uint8 [b, 224, 224, 3], "label", "example_id"}, decoded ahead by threads."""
    source = Records(f"{_folder().name}/train.array_record", 100_000)
    crop = functools.partial(images.train_record, size=224)
    return streams.batches(source, crop, batch_size=batch_size, seed=0, total_steps=steps, threads=threads)


def main() -> None:
    """Measures and writes `results/input.json`."""
    size = sum(len(photograph(np.random.default_rng(i))) for i in range(16)) // 16
    cores = len(os.sched_getaffinity(0))
    rates, processor = {}, {}
    batch, steps = 32, 20
    for threads in range(1, cores + 1):
        with contextlib.closing(stream(batch, steps + 2, threads)) as batches:
            next(batches), next(batches)
            start, used = time.perf_counter(), time.process_time()
            for _ in range(steps):
                next(batches)
            rates[str(threads)] = batch * steps / (time.perf_counter() - start)
            processor[str(threads)] = batch * steps / (time.process_time() - used)
    per_core = processor["1"]
    device = jax.jit(train_transform((0.5,), (0.5,), flip=True, rand_augment=(2, 9)))
    raw = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    label = np.zeros(batch, np.int32)
    key = jax.random.key(0)
    taken = networks.rounds({"device": lambda: jax.block_until_ready(device(key, raw, label))})
    figures = {
        "jpeg_bytes": size,
        "pixels": [WIDTH, HEIGHT],
        "images_per_second_by_threads": rates,
        "images_per_processor_second_by_threads": processor,
        "on_device_augmentation_images_per_second": networks.median_rates(taken, batch)["device"],
        "cores_a_gpu_needs": {
            name: {"images_per_second": value, "cores": value / per_core} for name, value in GPU_RATES.items()
        },
        "load": os.getloadavg()[0],
        "gpu": "not measured",
    }
    for name, value in figures.items():
        print(f"{name}: {value}")
    machine.write("input", figures, ("grain", "array_record", "pillow"))


if __name__ == "__main__":
    main()
