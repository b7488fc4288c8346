"""ImageNet, the classification set of ILSVRC 2012: 1,281,167 + 50,000 photographs of 1,000 classes (Russakovsky et al., 2015, arXiv:1409.0575).

The images stay where they are, as a folder in torchvision's layout or as TFDS's array_record; `prepare` lists them once,
into `imagenet.npz`. Classes are the wnids in sorted order. The official training image with the i-th file name in
sorted order has the id i, the official validation image likewise 2,000,000 + i, from either source. TFDS has encoded 23
training images anew, which are CMYK or PNG in the official archive.

Splits: "train" and "validation" are the official training images, of which 50,000 are held out; "train_full" is both;
"test" is the official validation set; "test_tune" and "test_report" are 10,000 and 40,000 of it.

"test_tune" is the label-smoothing paper's: its notebook imagenet_r50_aurc.ipynb draws by PyTorch's generator of seed 0, in
torchvision's order. Which 50,000 the cascade paper held out is in a pickled file of its authors (window-early-exit,
misc/imagenet_idx/index.pth). "validation" is theirs where their numbers are given as `HELD_OUT`; else ours, the first in
order of SHA-256 of the file name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import files
from sc_jax.data import sources, streams
from sc_jax.files import InputError

PARTS = {"train": ("train", 0), "val": ("validation", 2_000_000)}
"""Part, by its folder's name: what TFDS calls it, and its first example id."""

CLASSES = 1_000
OFFICIAL = {"train": 1_281_167, "val": 50_000}
"""How many images each part has."""

DRAWN = {"train": 50_000, "val": 10_000}
"""How many of each make "validation" and "test_tune"; of a small set, a quarter."""

HELD_OUT = "validation_ids.txt"
"""In the folder given with --from: the example ids of "validation", if they are not to be ours, one a line."""

ORIGIN = sources.Origin(
    "imagenet",
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, unpacked to DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG "
    "as torchvision's ImageFolder wants them,",
    "https://image-net.org/download-images (registration)",
    "imagenet2012",
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Photographs:
    """A split: a `streams.Source` of images as the bytes of their files.

    Attributes:
      location: the folder that holds train and val, or a version of TFDS's imagenet2012.
      part: "train" or "val".
      file_name: bytes [n], the file's name without its folder.
      label: int32 [n].
      example_id: int64 [n].
      wnid: the class names.
      position: int64 [n], where in `records`.
      records: TFDS's records, or None if the images are files.
    """

    location: str
    part: str
    file_name: np.ndarray
    label: np.ndarray
    example_id: np.ndarray
    wnid: tuple[str, ...]
    position: np.ndarray
    records: streams.TfdsSplit | None

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> streams.Record:
        if self.records is not None:
            image = self.records[self.position[index]]["image"]
        else:
            image = streams.read_file(Path(self.describe(index)))
        return {"image": image, "label": int(self.label[index]), "example_id": int(self.example_id[index])}

    def describe(self, index: int) -> str:
        """The file, or the data set of TFDS and the file's name there."""
        name = self.file_name[index].decode()
        if self.records is not None:
            return f"{self.location}: {self.part} {name}"
        return os.path.join(self.location, self.part, self.wnid[self.label[index]], name)

    def select(self, rows: np.ndarray) -> Photographs:
        """The examples at `rows`, int or bool."""
        arrays = {name: getattr(self, name)[rows] for name in ("file_name", "label", "example_id", "position")}
        return dataclasses.replace(self, **arrays)


def load(directory: Path) -> streams.StreamedDataset:
    """ImageNet as listed in `directory`/imagenet.npz.

    Raises:
      InputError: it is not prepared, the list is damaged, or the images have gone.
    """
    kinds = {"file_name": "S", "label": "i", "drawn": "b", "position": "i"}
    parts_of = [{f"{part}_{field}": kind for field, kind in kinds.items()} for part in PARTS]

    def wrong(arrays: Mapping[str, np.ndarray]) -> str | None:
        most = max(arrays[f"{part}_label"].max(initial=0) for part in PARTS)
        return f"the label {most} of {len(arrays['wnid'])} classes" if most >= len(arrays["wnid"]) else None

    listed, location = streams.read_list(directory, ORIGIN, [{"wnid": "U"}, *parts_of], wrong)
    wnid = tuple(listed["wnid"].tolist())
    parts = {}
    for part, (split, first_id) in PARTS.items():
        label = listed[f"{part}_label"]
        parts[part] = Photographs(
            location=str(location),
            part=part,
            file_name=listed[f"{part}_file_name"],
            label=label,
            example_id=first_id + np.arange(len(label), dtype=np.int64),
            wnid=wnid,
            position=listed[f"{part}_position"],
            records=streams.TfdsSplit(location, split, ("image",)) if sources.is_of_tfds(location) else None,
        )
    (train, held_out), (test, tune) = ((parts[part], listed[f"{part}_drawn"]) for part in PARTS)
    return streams.StreamedDataset(
        name="imagenet",
        class_names=wnid,
        splits={
            "train": train.select(~held_out),
            "validation": train.select(held_out),
            "train_full": train,
            "test": test,
            "test_tune": test.select(tune),
            "test_report": test.select(~tune),
        },
        fingerprint=files.fingerprint({name: listed[name] for name in listed if not name.endswith("position")}),
    )


def drawn(file_names: list[bytes], count: int) -> np.ndarray:
    """bool [n], whether an image is one of the `count` first in order of SHA-256 of "imagenet/<file name>"."""
    digests = [hashlib.sha256(b"imagenet/" + name).digest() for name in file_names]
    chosen = np.zeros(len(digests), bool)
    chosen[sorted(range(len(digests)), key=digests.__getitem__)[:count]] = True
    return chosen


def torch_permutation(size: int, seed: int) -> np.ndarray:
    """int64 [size], what PyTorch gives on a CPU for `torch.manual_seed(seed); torch.randperm(size)`.

    Fisher and Yates by the 32-bit numbers of the Mersenne Twister, as PyTorch does below 2^32 / 20 elements.

    >>> torch_permutation(10, 0).tolist()
    [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]
    """
    draws = np.random.RandomState(seed).randint(2**32, size=max(size - 1, 0), dtype=np.uint32)
    order = list(range(size))
    for i, draw in enumerate(draws.tolist()):
        j = i + draw % (size - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order, np.int64)


def prepare(source: Path | None, directory: Path, *, small: bool = False) -> Path:
    """Lists the images into `directory`/imagenet.npz and returns its path; the images stay where they are.

    They are looked for in `source`, without it in `directory`/imagenet, then in TFDS's folder. What TFDS wrote is read once
    from end to end, for the names.

    Args:
      source: a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or TFDS's with imagenet2012 in it, or None; it may
        hold `HELD_OUT`.
      directory: where to write.
      small: whether fewer images than the official ones will do.

    Raises:
      InputError: no ImageNet is there, it is not all of it, or `directory` cannot be written.
    """
    if source is None and (directory / "imagenet").is_dir():
        source = directory / "imagenet"
    location, wnids, listed = sources.read(ORIGIN, source, _list_folder, _list_tfds)
    if not small and len(wnids) != CLASSES:
        raise InputError(f"{location}: {len(wnids)} classes, not {CLASSES}; get the files again")
    number = {wnid: index for index, wnid in enumerate(wnids)}
    arrays = {"wnid": np.array(wnids)}
    for part, images in listed.items():
        if not small and len(images) != OFFICIAL[part]:
            raise InputError(f"{location}: {len(images)} images of {part}, not {OFFICIAL[part]}; get the files again")
        images.sort()
        strangers = [name for name, wnid, _ in images if wnid not in number]
        if strangers:
            raise InputError(f"{location}: {part} {strangers[0]} is of no class of train; get the files again")
        names = np.array([name.encode() for name, _, _ in images], "S")
        if len(np.unique(names)) != len(names):
            raise InputError(f"{location}: two images of {part} have the same file name; get the files again")
        arrays[f"{part}_file_name"] = names
        arrays[f"{part}_label"] = np.array([number[wnid] for _, wnid, _ in images], np.int32)
        count = DRAWN[part] if len(names) == OFFICIAL[part] else len(names) // 4
        if part == "val":
            arrays[f"{part}_drawn"] = _drawn_by_torch([(wnid, name) for name, wnid, _ in images], count)
        elif source is not None and (source / HELD_OUT).is_file():
            arrays[f"{part}_drawn"] = _held_out(source / HELD_OUT, count, len(names))
        else:
            arrays[f"{part}_drawn"] = drawn(names.tolist(), count)
        arrays[f"{part}_position"] = np.array([position for _, _, position in images], np.int64)
    return streams.write_list(arrays, location, directory, ORIGIN)


_Listing = tuple[Path, list[str], dict[str, list[tuple[str, str, int]]]]
"""Where the images are; the classes; part → (file name, wnid, position in TFDS's records) of each image."""


def _drawn_by_torch(images: list[tuple[str, str]], count: int) -> np.ndarray:
    """bool [n], whether an image (wnid, file name) is one of the first `count` that PyTorch draws in torchvision's order."""
    place = sorted(range(len(images)), key=images.__getitem__)
    chosen = np.zeros(len(images), bool)
    chosen[np.array(place, np.int64)[torch_permutation(len(images), 0)[:count]]] = True
    return chosen


def _held_out(path: Path, count: int, size: int) -> np.ndarray:
    """bool [size], whether an example is among the `count` ids in a file."""
    try:
        ids = np.array([int(line) for line in path.read_text(encoding="utf-8").split()], np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: should be integers, one a line ({error}); correct it or remove it") from error
    if len(np.unique(ids)) != len(ids) or len(ids) != count or not 0 <= ids.min(initial=0) <= ids.max(initial=0) < size:
        raise InputError(
            f"{path}: should be {count} different ids from 0 to {size - 1}, one a line; correct it or remove it"
        )
    chosen = np.zeros(size, bool)
    chosen[ids] = True
    return chosen


def _list_folder(folder: Path) -> _Listing:
    classes, listed = {}, {}
    for part in PARTS:
        try:
            with os.scandir(folder / part) as entries:
                loose = None
                classes[part] = []
                for entry in entries:
                    if entry.is_dir():
                        classes[part].append(entry.name)
                    elif entry.name.lower().endswith((".jpeg", ".jpg", ".tar")):
                        loose = entry.name
            if loose and not classes[part]:
                raise _without_classes(folder, part, loose)
            names = [(name, wnid) for wnid in classes[part] for name in os.listdir(folder / part / wnid)]
        except OSError as error:
            raise InputError(
                f"{error.filename}: cannot be read ({error.strerror}); {folder / part} should hold n01440764/*.JPEG …, "
                f"from {ORIGIN.page}"
            ) from error
        listed[part] = [(name, wnid, 0) for name, wnid in names if name.lower().endswith((".jpeg", ".jpg"))]
    return folder, sorted(classes["train"]), listed


def _without_classes(folder: Path, part: str, loose: str) -> InputError:
    run = f"import torchvision; torchvision.datasets.ImageNet({str(folder)!r}, {part!r})"
    return InputError(
        f"{folder / part}: {loose} is in no class folder, which would tell its class; wanted is {part}/n01440764/*.JPEG …: "
        f"move this folder away, put ILSVRC2012_devkit_t12.tar.gz and ILSVRC2012_img_{part}.tar into {folder} and run, where "
        f"torchvision and SciPy are installed: python -c {shlex.quote(run)}"
    )


def _list_tfds(builder: Any) -> _Listing:
    folder, wnids, listed = Path(builder.data_path), list(builder.info.features["label"].names), {}
    for part, (split, _) in PARTS.items():
        records = streams.TfdsSplit(folder, split, ("image",))
        listed[part] = []
        for position in range(len(records)):
            record = records[position]
            listed[part].append((record["file_name"].decode(), wnids[record["label"]], position))
            if position % 100_000 == 99_999:
                print(f"  {position + 1} of {len(records)} names of {part} read", flush=True)
    return folder, wnids, listed


def write_small(directory: Path, layout: str = "folder") -> Path:
    """Writes 96 + 32 made-up images of 24 to 96 pixels, real JPEG files, and prepares them into `directory`.

    They are of 8 of the 1,000 classes, each a pattern under noise. One is grey, one CMYK, as some real ones are.

    Args:
      directory: where to write.
      layout: "folder", as torchvision's, in `directory`/imagenet; "tfds", by TFDS's builder of imagenet2012, in
        `directory`/tfds.

    Returns:
      The path of the list, as of `prepare`.
    """
    import tensorflow_datasets as tfds

    wnids = tfds.builder(ORIGIN.tfds).info.features["label"].names
    made = {part: _made_up(part, count, wnids) for part, count in (("train", 96), ("val", 32))}
    if layout == "tfds":
        splits = {
            split: [(name, {"image": data, "label": wnid, "file_name": name}) for name, wnid, data in made[part]]
            for part, (split, _) in PARTS.items()
        }
        sources.write_tfds(ORIGIN.tfds, directory / "tfds", splits)
        return prepare(directory / "tfds", directory, small=True)
    for part, images in made.items():
        for wnid in wnids:
            (directory / "imagenet" / part / wnid).mkdir(parents=True)
        for name, wnid, data in images:
            files.write_bytes(directory / "imagenet" / part / wnid / name, data)
    return prepare(None, directory, small=True)


def _made_up(part: str, count: int, wnids: list[str]) -> list[tuple[str, str, bytes]]:
    """(file name, wnid, JPEG) of each image."""
    from PIL import Image

    from sc_jax.data.small import made_up_images

    label = np.arange(count) % 8
    rng = np.random.default_rng(0)
    made = []
    for index, pixels in enumerate(made_up_images(label, (96, 96, 3), seed=len(part))):
        height, width = rng.integers(24, 97, size=2)
        image = Image.fromarray(pixels).resize((width, height)).convert({7: "CMYK", 8: "L"}.get(index, "RGB"))
        data = io.BytesIO()
        image.save(data, "JPEG", quality=90)
        wnid = wnids[125 * label[index]]
        name = f"{wnid}_{index}.JPEG" if part == "train" else f"ILSVRC2012_val_{index + 1:08d}.JPEG"
        made.append((name, wnid, data.getvalue()))
    return made
