"""Cityscapes: 2,975 + 500 street scenes of 1024 × 2048 pixels, 19 classes of pixels (Cordts et al., 2016, arXiv:1604.01685).

The images stay where they are, as the official folders or as TFDS's array_record; `prepare` lists them once, into
`cityscapes.npz`. The i-th official training image by name has the id i, the official validation image likewise 10,000 + i,
from either source. Pixels of the other 15 kinds, and those of none, have the label 255 and are not scored.

Splits: "test" is the official validation set (the official test labels are not public); "validation" is three whole
training cities, so that no street is in both, and "train" the other fifteen; which three is our choice. "train_full" is both.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import files
from sc_jax.data import images, sources, streams
from sc_jax.files import InputError

PARTS = {"train": ("train", 0), "val": ("validation", 10_000)}
"""Part, by its folder's name: what TFDS calls it, and its first example id."""

OFFICIAL = {"train": 2_975, "val": 500}
"""How many images each part has."""

VALIDATION_CITIES = ("ulm", "weimar", "zurich")
"""The training cities held out: the last three, 359 images."""

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The classes that are evaluated, in order, and their numbers in the files *_labelIds.png (cityscapesScripts, labels.py)."""

_CLASS_OF = np.full(256, images.IGNORE, np.uint8)
_CLASS_OF[list(CLASSES.values())] = np.arange(len(CLASSES))

ORIGIN = sources.Origin(
    "cityscapes",
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, unpacked to DIR/leftImg8bit/train/<city>/*_leftImg8bit.png, "
    "DIR/gtFine/train/<city>/*_gtFine_labelIds.png and the same of val,",
    "https://www.cityscapes-dataset.com/downloads (registration)",
    "cityscapes/semantic_segmentation",
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
)

_IMAGE_ENDS = ("_leftImg8bit.png", "_leftImg8bit.jpg", "_leftImg8bit.jpeg")
_FEATURES = ("image_left", "segmentation_label")


@dataclasses.dataclass(frozen=True, eq=False)
class Scenes:
    """A split: a `streams.Source` of images as the bytes of their files, with label maps uint8 [1024, 2048], 0..18 or 255.

    Attributes:
      location: the folder that holds leftImg8bit and gtFine, or a version of TFDS's cityscapes/semantic_segmentation.
      part: "train" or "val".
      scene: str [n], such as "aachen_000000_000019".
      ending: str [n], what follows it in the name of the image's file.
      example_id: int64 [n].
      position: int64 [n], where in `records`.
      records: TFDS's records, or None if the images are files.
    """

    location: str
    part: str
    scene: np.ndarray
    ending: np.ndarray
    example_id: np.ndarray
    position: np.ndarray
    records: streams.TfdsSplit | None

    def __len__(self) -> int:
        return len(self.scene)

    def __getitem__(self, index: int) -> streams.Record:
        if self.records is not None:
            record = self.records[self.position[index]]
            image, label = (record[feature] for feature in _FEATURES)
        else:
            path = Path(self.location, "gtFine", self.part, _city(str(self.scene[index])))
            image = streams.read_file(Path(self.describe(index)))
            label = streams.read_file(path / f"{self.scene[index]}_gtFine_labelIds.png")
        try:
            label = _CLASS_OF[images.decode_labels(label)]
        except InputError as error:
            raise InputError(f"its label map is {error}") from error
        return {"image": image, "label": label, "example_id": int(self.example_id[index])}

    def describe(self, index: int) -> str:
        """The file, or the data set of TFDS and the name of the image there."""
        if self.records is not None:
            return f"{self.location}: {self.part} {self.scene[index]}"
        folder = Path(self.location, "leftImg8bit", self.part, _city(str(self.scene[index])))
        return str(folder / f"{self.scene[index]}{self.ending[index]}")

    def select(self, rows: np.ndarray) -> Scenes:
        """The examples at `rows`, int or bool."""
        arrays = {name: getattr(self, name)[rows] for name in ("scene", "ending", "example_id", "position")}
        return dataclasses.replace(self, **arrays)


def load(directory: Path) -> streams.StreamedDataset:
    """Cityscapes as listed in `directory`/cityscapes.npz.

    Raises:
      InputError: it is not prepared, the list is damaged, or the images have gone.
    """
    kinds = {"scene": "U", "ending": "U", "position": "i"}
    tables = [{f"{part}_{field}": kind for field, kind in kinds.items()} for part in PARTS]
    listed, location = streams.read_list(directory, ORIGIN, tables, _wrong)
    parts = {}
    for part, (split, first_id) in PARTS.items():
        scene = listed[f"{part}_scene"]
        parts[part] = Scenes(
            location=str(location),
            part=part,
            scene=scene,
            ending=listed[f"{part}_ending"],
            example_id=first_id + np.arange(len(scene), dtype=np.int64),
            position=listed[f"{part}_position"],
            records=streams.TfdsSplit(location, split, _FEATURES) if sources.is_of_tfds(location) else None,
        )
    train = parts["train"]
    held_out = np.isin([_city(scene) for scene in train.scene.tolist()], VALIDATION_CITIES)
    return streams.StreamedDataset(
        name="cityscapes",
        class_names=tuple(CLASSES),
        splits={
            "train": train.select(~held_out),
            "validation": train.select(held_out),
            "train_full": train,
            "test": parts["val"],
        },
        fingerprint=files.fingerprint({name: listed[name] for name in listed if name.endswith("scene")}),
        ignore_label=images.IGNORE,
    )


def _wrong(arrays: Mapping[str, np.ndarray]) -> str | None:
    """What is wrong with a list: an ending of no image, or a city that is no folder of its own."""
    for part in PARTS:
        if not np.isin(arrays[f"{part}_ending"], (*_IMAGE_ENDS, "")).all():
            return f"{part}_ending is not one of {', '.join(_IMAGE_ENDS)}"
        if not {_city(scene) for scene in arrays[f"{part}_scene"].tolist()}.isdisjoint(("", ".", "..")):
            return f"{part}_scene holds a scene of no city"
    return None


def _city(scene: str) -> str:
    return scene.partition("_")[0]


def prepare(source: Path | None, directory: Path, *, small: bool = False) -> Path:
    """Lists the images into `directory`/cityscapes.npz and returns its path; the images stay where they are.

    They are looked for in `source`, without it in `directory`/cityscapes, then in TFDS's folder. What TFDS wrote is read
    once from end to end, for the names.

    Args:
      source: the folder that holds leftImg8bit and gtFine (images may also be JPEG, as *_leftImg8bit.jpg), or TFDS's with
        cityscapes/semantic_segmentation in it, or None.
      directory: where to write.
      small: whether fewer images than the official ones will do.

    Raises:
      InputError: no Cityscapes is there, it is not all of it, or `directory` cannot be written.
    """
    if source is None and (directory / "cityscapes").is_dir():
        source = directory if sources.is_in_tfds(ORIGIN.tfds, directory) else directory / "cityscapes"
    location, listed = sources.read(ORIGIN, source, _list_folder, _list_tfds)
    arrays = {}
    for part, scenes in listed.items():
        if not small and len(scenes) != OFFICIAL[part]:
            raise InputError(f"{location}: {len(scenes)} images of {part}, not {OFFICIAL[part]}; get the files again")
        scenes.sort()
        for place, name in enumerate(("scene", "ending", "position")):
            arrays[f"{part}_{name}"] = np.array([scene[place] for scene in scenes])
        twice = [scene for (scene, *_), (after, *_) in itertools.pairwise(scenes) if scene == after]
        if twice:
            raise InputError(f"{location}: two images of {part} are called {twice[0]}; remove one")
    return streams.write_list(arrays, location, directory, ORIGIN)


_Listing = tuple[Path, dict[str, list[tuple[str, str, int]]]]
"""Where the images are; part → (scene, ending of the image's file, position in TFDS's records) of each image."""


def _list_folder(folder: Path) -> _Listing:
    listed = {}
    for part in PARTS:
        listed[part] = []
        for path in sorted((folder / "leftImg8bit" / part).glob("*/*_leftImg8bit.*")):
            ending = next((ending for ending in _IMAGE_ENDS if path.name.endswith(ending)), None)
            if ending is None:
                continue
            scene = path.name.removesuffix(ending)
            label = folder / "gtFine" / part / path.parent.name / f"{scene}_gtFine_labelIds.png"
            if not label.is_file():
                raise InputError(
                    f"{label}: not there, though {path} is; get gtFine_trainvaltest.zip from {ORIGIN.page}"
                )
            listed[part].append((scene, ending, 0))
        if not listed[part]:
            raise InputError(
                f"{folder / 'leftImg8bit' / part}: holds no <city>/*_leftImg8bit.png; get {ORIGIN.files} from {ORIGIN.page}"
            )
    return folder, listed


def _list_tfds(builder: Any) -> _Listing:
    folder, listed = Path(builder.data_path), {}
    for part, (split, _) in PARTS.items():
        records = streams.TfdsSplit(folder, split, _FEATURES)
        listed[part] = [(records[index]["image_id"].decode(), "", index) for index in range(len(records))]
    return folder, listed


def write_small(directory: Path, layout: str = "folder") -> Path:
    """Writes 8 + 4 made-up scenes of six cities (by TFDS 4 + 2), and prepares them into `directory`.

    Each is 256 × 512 pixels: bands of the classes, each of its own colour, under noise, with a rim that is not labelled.
    The colours do not depend on the scene.

    Args:
      directory: where to write.
      layout: "folder", as the official zips unpack, in `directory`/cityscapes, one image in three as JPEG; "tfds", by TFDS's
        builder, of the full 1024 × 2048 pixels that it demands, in `directory`/tfds.

    Returns:
      The path of the list, as of `prepare`.
    """
    shape, shots = ((1024, 2048), 1) if layout == "tfds" else ((256, 512), 2)
    cities = {"train": ("aachen", "bochum", "ulm", "zurich"), "val": ("frankfurt", "munster")}
    scenes = {
        part: [
            (f"{city}_{shot:06d}_000019", *_made_up(shape, seed))
            for seed, (city, shot) in enumerate(itertools.product(names, range(shots)))
        ]
        for part, names in cities.items()
    }
    if layout == "tfds":
        splits = {
            split: [
                (
                    scene,
                    {
                        "image_id": scene,
                        "image_left": _encoded(image, "PNG"),
                        "segmentation_label": _encoded(ids, "PNG"),
                    },
                )
                for scene, image, ids in scenes[part]
            ]
            for part, (split, _) in PARTS.items()
        }
        sources.write_tfds(ORIGIN.tfds, directory / "tfds", splits)
        return prepare(directory / "tfds", directory, small=True)
    for part, made in scenes.items():
        for index, (scene, image, ids) in enumerate(made):
            kind, ending = ("JPEG", ".jpg") if index % 3 == 2 else ("PNG", ".png")
            city = scene.partition("_")[0]
            written = {
                f"leftImg8bit/{part}/{city}/{scene}_leftImg8bit{ending}": _encoded(image, kind),
                f"gtFine/{part}/{city}/{scene}_gtFine_labelIds.png": _encoded(ids, "PNG"),
            }
            for name, data in written.items():
                files.write_bytes(directory / "cityscapes" / name, data)
    return prepare(None, directory, small=True)


def _made_up(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 [h, w, 3] and the numbers of labelIds uint8 [h, w]."""
    rng = np.random.default_rng(seed)
    number = np.array(list(CLASSES.values()), np.uint8)
    rows, columns = (np.arange(size) * 8 // size for size in shape)
    band = rng.integers(len(number), size=(8, 8))[rows][:, columns]
    colour = np.random.default_rng(0).integers(40, 216, (len(number), 3), np.uint8)
    image = colour[band] + rng.integers(-24, 25, (*shape, 1), np.int16)
    ids = number[band]
    ids[:4], ids[-4:] = 3, 1  # out of the region of interest; the bonnet of the car
    return image.astype(np.uint8), ids


def _encoded(pixels: np.ndarray, kind: str) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **({"quality": 90} if kind == "JPEG" else {"compress_level": 1}))
    return data.getvalue()
