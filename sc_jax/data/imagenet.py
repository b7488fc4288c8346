"""ImageNet, the classification set of ILSVRC 2012: 1,281,167 + 50,000 photographs of 1,000 classes (Russakovsky et al., 2015, arXiv:1409.0575).

The images stay where they are, as a folder in torchvision's layout or as TFDS's array_record; `prepare` lists them once,
into `imagenet.npz`. Classes are the wnids in sorted order. The official training image with the i-th file name in
sorted order has the id i, the official validation image likewise 2,000,000 + i, from either source. TFDS has encoded 23
training images anew, which are CMYK or PNG in the official archive.

Splits: "train" and "validation" are the official training images, of which 50,000 are held out; "train_full" is both;
"test" is the official validation set; "test_tune" and "test_report" are 10,000 and 40,000 of it. Those are the sizes in the
papers that we repeat, but which images they drew is not known: ours are the first in order of SHA-256 of the file name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
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

ORIGIN = sources.Origin(
    "imagenet",
    "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, unpacked to DIR/train/<wnid>/*.JPEG and DIR/val/<wnid>/*.JPEG "
    "as torchvision's ImageFolder wants them,",
    "https://image-net.org/download-images (registration)",
    "imagenet2012",
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
    fields = ("file_name", "label", "drawn", "position")
    listed, location = streams.read_list(
        directory, ORIGIN, ["wnid", *(f"{p}_{field}" for p in PARTS for field in fields)]
    )
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
            records=streams.TfdsSplit(location, split, ("image",)) if (location / "features.json").exists() else None,
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


def prepare(source: Path | None, directory: Path, *, small: bool = False) -> Path:
    """Lists the images into `directory`/imagenet.npz and returns its path; the images stay where they are.

    They are looked for in `source`, without it in `directory`/imagenet, then in TFDS's folder. What TFDS wrote is read once
    from end to end, for the names.

    Args:
      source: a folder with train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or TFDS's with imagenet2012 in it, or None.
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
        arrays[f"{part}_drawn"] = drawn(names.tolist(), count)
        arrays[f"{part}_position"] = np.array([position for _, _, position in images], np.int64)
    return streams.write_list(arrays, location, directory, ORIGIN)


_Listing = tuple[Path, list[str], dict[str, list[tuple[str, str, int]]]]
"""Where the images are; the classes; part → (file name, wnid, position in TFDS's records) of each image."""


def _list_folder(folder: Path) -> _Listing:
    listed = {}
    for part in PARTS:
        try:
            wnids = sorted(entry.name for entry in os.scandir(folder / part) if entry.is_dir())
        except OSError as error:
            raise InputError(
                f"{folder / part}: cannot be read ({error.strerror}); it should hold {part}/n01440764/*.JPEG …, "
                f"from {ORIGIN.page}"
            ) from error
        names = ((name, wnid) for wnid in wnids for name in os.listdir(folder / part / wnid))
        listed[part] = [(name, wnid, 0) for name, wnid in names if name.lower().endswith((".jpeg", ".jpg"))]
    return folder, sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir()), listed


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
            (directory / "imagenet" / part / wnid / name).write_bytes(data)
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
