"""A seeded fuzzer of every reader: valid files, mutated; what comes back is valid or an `InputError`, in bounded memory and time.

Each reader is fuzzed in a process of its own, whose address space may grow by no more than `MEMORY`, and whose inputs take no longer than
`SECONDS` each. Beside bytes, the things within are mutated: arrays in a zip whose checksums are right, values in JSON that parses, tensors
in a header that is well-formed.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import importlib.util
import io
import json
import random
import resource
import signal
import struct
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sc_jax import files, predictions
from sc_jax.files import InputError

MEMORY = 1 << 30  # bytes by which the address space may grow
SECONDS = 20

Files = dict[str, bytes]
"""Name → content: what a reader finds in its folder. The first one is mutated, or, at times, another."""


class Reader(NamedTuple):
    """A reader, and what it is given.

    Attributes:
      seeds: makes valid inputs.
      read: reads a folder, and raises AssertionError where what it got is not valid.
      share: the number of inputs goes by it, but for those in `SLOW`.
    """

    seeds: Callable[[], list[Files]]
    read: Callable[[Path], None]
    share: int = 10


class Hang(BaseException):
    """An input took too long."""


# --- mutations --------------------------------------------------------------------------------------------------------

_NUMBERS = (
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_DIGITS = (b"0", b"-1", b"1", b"3", b"99999999999", b"1" * 400, b"1e999", b"9223372036854775808")
_NAMES = ("", ".", "..", "x", "../../x", ".._x", "/etc/hostname", "a/b", "a\0b")
_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "x",
    "nan",
    "../../x",
    [],
    {},
    [[]],
    [0],
    {"a": 1},
)


def mutated_bytes(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """One to four changes of bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        n = len(data)
        i, j = sorted((rng.randint(0, n), rng.randint(0, n)))
        kind = rng.randrange(10)
        if kind <= 1 and n:
            data[rng.randrange(n)] ^= 1 << rng.randrange(8)
        elif kind == 2 and n:
            data[rng.randrange(n)] = rng.choice((0, 0xFF, 0x7F, 0x80, 0x0A, 0x7B, 0x22))
        elif kind == 3:
            width, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
            data[i : i + width] = (rng.choice(_NUMBERS) % (1 << 8 * width)).to_bytes(width, order)
        elif kind == 4:
            del data[i:]
        elif kind == 5:
            del data[i : min(j, i + rng.randint(1, 64))]
        elif kind == 6:
            data[i:i] = rng.randbytes(rng.randint(1, 32))
        elif kind == 7:
            data[i:i] = data[i : min(j, i + 200)] * rng.choice((1, 1, 3))
        elif kind == 8:
            k = rng.randint(0, len(other))
            data[i:] = other[k:]
        else:
            places = [p for p in range(n) if 48 <= data[p] <= 57]
            if places:
                p = rng.choice(places)
                data[p : p + rng.randint(1, 3)] = rng.choice(_DIGITS)
    return bytes(data)


def mutated_json(value: Any, rng: random.Random) -> Any:
    """One to three values of a JSON tree replaced, removed, renamed, or wrapped."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(rng.choice(_VALUES))
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(_VALUES))  # which the next change may reach into
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "schema", "0", key.upper()))] = holder.pop(key)
        else:
            depth = rng.choice((1, 1, 500, 5000))
            for _ in range(depth):
                holder[key] = [holder[key]]
            if depth > 1:
                break  # too deep to look into again
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from _places(item)


def _json_bytes(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000


def mutated_npz(content: bytes, rng: random.Random) -> bytes:
    """The arrays changed, or the bytes of one member, in a zip that is right."""
    if rng.random() < 0.5:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        chosen = rng.choice(sorted(members))
        members[chosen] = mutated_bytes(members[chosen], rng, members[rng.choice(sorted(members))])
        if rng.random() < 0.1:
            members[rng.choice(("../escape", "/tmp/escape", "label.npy\0x", ""))] = members[chosen]
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name or "x"), data)
        return buffer.getvalue()
    with np.load(io.BytesIO(content)) as loaded:
        arrays = {name: loaded[name] for name in loaded}
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    kind = rng.randrange(7)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[rng.choice(("label", "logits", "probs", "loss", "score", "score_", "group", "weight", "is_ood"))] = array
    elif kind == 2:
        with np.errstate(all="ignore"):
            types = ("i1", "u8", "f2", "f8", "c8", "?", "S3", "U2", "M8[s]", "V4", ">f4", "g")
            arrays[name] = (
                np.resize(np.frombuffer(array.tobytes() or b"\0", np.uint8), max(1, array.size))
                .astype("u1")
                .astype("S1" if (made := rng.choice(types)) in ("V4",) else made)
            )
    elif kind == 3:
        arrays[name] = array.reshape(-1)[: rng.randint(0, max(0, array.size))]
    elif kind == 4:
        arrays[name] = array[..., None] if rng.random() < 0.5 else array.reshape(array.shape[::-1])
    elif kind == 5 and array.dtype.kind == "f" and array.size:
        arrays[name] = array.copy()
        arrays[name].reshape(-1)[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 6e4, -0.0))
    elif array.dtype.kind in "iu" and array.size:
        arrays[name], ends = array.copy(), np.iinfo(array.dtype)
        arrays[name].reshape(-1)[rng.randrange(array.size)] = rng.choice((0, 1, 100, ends.min, ends.max))
    elif array.dtype.kind in "SU" and array.size:
        texts, kind = array.astype(object), array.dtype.type
        texts.reshape(-1)[rng.randrange(array.size)] = kind(
            rng.choice(_NAMES).encode() if kind is np.bytes_ else rng.choice(_NAMES)
        )
        arrays[name] = texts.astype(kind)
    buffer = io.BytesIO()
    rng.choice((np.savez, np.savez_compressed))(buffer, **arrays)
    return buffer.getvalue()


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """The header changed, with its length right."""
    (length,) = struct.unpack_from("<Q", content)
    header = _json_bytes(mutated_json(json.loads(content[8 : 8 + length]), rng))
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def mutate(name: str, content: bytes, rng: random.Random, other: bytes) -> bytes:
    """A change of the bytes, or of what the kind of file holds."""
    suffix = Path(name).suffix
    if suffix in _STRUCTURED and rng.random() < 0.5:
        return _STRUCTURED[suffix](content, rng)
    if suffix == ".gz" and rng.random() < 0.5:
        return gzip.compress(mutated_bytes(gzip.decompress(content), rng, b""), 1)
    return mutated_bytes(content, rng, other)


_STRUCTURED = {
    ".npz": mutated_npz,
    ".json": lambda content, rng: _json_bytes(mutated_json(json.loads(content), rng)),
    ".safetensors": mutated_safetensors,
}

# --- readers ----------------------------------------------------------------------------------------------------------


def _npz(compressed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _ours(folder: Path, write: Callable[[Path], None], *names: str) -> Files:
    write(folder)
    return {name: (folder / name).read_bytes() for name in names}


def _in_folder(make: Callable[[Path], list[Files]]) -> Callable[[], list[Files]]:
    def seeds() -> list[Files]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return make(Path(folder))

    return seeds


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "label": rng.integers(0, 3, 12),
        "logits": rng.normal(size=(12, 3)).astype(np.float32),
        "example_id": np.arange(12),
        "group": np.array(["a", "b"] * 6),
        "is_ood": np.arange(12) > 10,
        "weight": np.ones(12),
    }


def _seeds_of_predictions(folder: Path) -> list[Files]:
    arrays = _arrays()
    members = {**arrays, "logits": np.stack([arrays["logits"]] * 2)}
    probs = {**arrays, "probs": np.full((12, 3), 1 / 3)}
    del probs["logits"]
    p = predictions.Predictions(
        arrays["label"], arrays["logits"], arrays["example_id"], provenance={"split": "test", "tags": {}}
    )
    return [
        {"p.npz": _npz(**arrays)},
        {"p.npz": _npz(True, **members)},
        {"p.npz": _npz(**probs)},
        {"p.npz": _npz(label=arrays["label"], logits=np.asfortranarray(arrays["logits"]))},
        _ours(folder, lambda f: predictions.save(f / "p.npz", p), "p.npz", "p.json"),
    ]


def _seeds_of_scores(folder: Path) -> list[Files]:
    arrays = {"loss": np.arange(12) % 2, "score_a": np.linspace(0, 1, 12), "score_b": np.ones(12, np.float32)}
    s = predictions.Scored(arrays["loss"], {"a": arrays["score_a"]}, np.arange(12))
    return [
        {"p.npz": _npz(**arrays)},
        {"p.npz": _npz(True, **arrays)},
        _ours(folder, lambda f: predictions.save(f / "p.npz", s), "p.npz", "p.json"),
    ]


def _read_npz(folder: Path) -> None:
    for array in files.read_npz(folder / "p.npz").values():
        assert not array.dtype.hasobject


def _read_members(folder: Path) -> None:
    with files.open_npz(folder / "p.npz") as npz:
        files.fingerprint(npz)
        for member in npz.values():
            assert member.array().shape == member.shape
            if member.ndim:
                assert sum(len(part) for part in member.chunks(5)) == len(member)


def _load(folder: Path) -> None:
    p = predictions.validate(predictions.load(folder / "p.npz"))
    assert len(p) == len(p.label) == p.logits.shape[-2]


def _stream(folder: Path) -> None:
    stream = predictions.open_stream(folder / "p.npz")
    assert sum(len(predictions.validate(part)) for part in stream.chunks(5)) == len(stream)


def _load_scored(folder: Path) -> None:
    s = predictions.load_scored(folder / "p.npz")
    assert all(len(predictions.validate(part)) <= 5 for part in s.chunks(5))


def _seeds_of_selectors(folder: Path) -> list[Files]:
    from sc_jax.methods import guarantees, selector

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 3))
    p = predictions.Predictions(logits.argmax(-1), logits, np.arange(200))
    made = [
        guarantees.fit(p, "crc", "msp", risk=0.1, delta=None, tuning=None, within="all", starts=(0.5,)),
        guarantees.fit(p, "crc", "msp", risk=0.1, delta=None, tuning=None, within="predicted_class", starts=(0.5,)),
    ]
    names = ("selector.json", "selector.npz")
    sealed = [_ours(folder, lambda f, one=one: selector.save(f / names[0], one), *names) for one in made]
    unsealed = zip(sealed, _unsealed(sealed), strict=True)
    return sealed + [{**whole, names[0]: json.dumps(one).encode()} for whole, one in unsealed] * 3


def _unsealed(each: Sequence[Files]) -> list[Any]:
    """The JSON without its seal, which would refuse most of what changes."""
    found = [json.loads(one["selector.json"]) for one in each]
    for one in found:
        del one["content_sha256"]
    return found


def _load_selector(folder: Path) -> None:
    from sc_jax.methods import selector

    logits = np.random.default_rng(1).normal(size=(20, 3))
    test = predictions.Predictions(logits.argmax(-1), logits, np.arange(1000, 1020))
    decision = selector.load(folder / "selector.json")(test)
    assert decision.accept.dtype == bool
    assert decision.accept.shape == (20,)


def _seeds_of_policies() -> list[Files]:
    from sc_jax.methods import cascade

    task = cascade.Task("risk", 0.05)
    one = cascade.Policy((cascade.WHOLE, (0.1, 0.9)), (0.5, 0.5), (0.1, 0.1), 0.5, task, "msp", "mean", "x")
    return [{"policy.json": json.dumps(one.as_json()).encode()}]


def _load_policy(folder: Path) -> None:
    from sc_jax.methods import cascade

    policy = cascade.Policy.from_json(files.read_json(folder / "policy.json"))
    assert all(isinstance(end, float) for window in policy.windows for end in window)
    assert isinstance(policy.threshold, float)


def _seeds_of_logs() -> list[Files]:
    lines = [{"members": ["a", "b"]}, *({"step": s, "epoch": s / 3, "loss": [0.5, 0.25]} for s in (1, 2, 3))]
    return [{"train.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}]


def _read_log(folder: Path) -> None:
    from sc_jax.training import logs

    assert all(isinstance(line["step"], int) for line in logs.read_log(folder / "train.jsonl"))
    assert isinstance(logs.read_header(folder / "train.jsonl"), dict)


def _seeds_of_weights(folder: Path) -> list[Files]:
    import ml_dtypes
    import safetensors.numpy

    from sc_jax.models import pretrained

    params = {"a": {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}}
    tensors = {"a.weight": np.ones((2, 2), ml_dtypes.bfloat16), "b": np.arange(3)}
    return [
        _ours(folder, lambda f: pretrained.save(f / "w.safetensors", params, {}), "w.safetensors"),
        {"w.safetensors": safetensors.numpy.save(tensors)},
    ]


def _read_weights(folder: Path) -> None:
    from sc_jax.models import pretrained

    for tensor in pretrained.read_tensors(folder / "w.safetensors").values():
        assert tensor.dtype == np.float32 or tensor.dtype.kind in "iub"


def _seeds_of_idx() -> list[Files]:
    from sc_jax.data import idx

    content = idx.idx_bytes(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
    return [{"x.idx": content}]


def _read_idx(folder: Path) -> None:
    from sc_jax.data import idx

    (path,) = folder.glob("x.*")
    assert idx.read_idx(path).dtype == np.uint8


def _seeds_of_prepared(folder: Path) -> list[Files]:
    from sc_jax.data import Dataset, Split, sources

    image = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3)).astype(np.uint8)
    splits = {
        name: Split(image[i : i + 4], (np.arange(4) % 3).astype(np.int32), np.arange(i, i + 4))
        for name, i in (("train", 0), ("validation", 4), ("test", 8))
    }
    texts = {
        name: Split(image[:4, :, 0, 0].astype(np.int32) % 5, split.label, split.example_id, split.label % 2)
        for name, split in splits.items()
    }
    names = {"group_names": ("g", "h"), "vocabulary": tuple("abcde")}
    made = Dataset("small", ("a", "b", "c"), splits), Dataset("small", ("a", "b", "c"), texts, **names)
    return [_ours(folder, lambda f, one=one: sources.write_prepared(one, f), "small.npz") for one in made]


def _read_prepared(folder: Path) -> None:
    from sc_jax.data import sources

    dataset = sources.read_prepared("small", folder)
    for split in dataset.splits.values():
        assert set(split.label) <= set(range(dataset.num_classes))
        assert set(() if split.group is None else split.group) <= set(range(len(dataset.group_names)))
        if split.inputs.dtype == np.int32:
            assert set(split.inputs.flat) <= set(range(len(dataset.vocabulary)))


def write_imagenet(folder: Path) -> None:
    """A list of made-up images of two classes, and the image of each, in `folder`."""
    from sc_jax.data import imagenet, streams

    arrays: dict[str, np.ndarray] = {"wnid": np.array(["n01", "n02"])}
    for part, n in (("train", 8), ("val", 4)):
        names = [f"{part}_{i}.JPEG" for i in range(n)]
        arrays[f"{part}_file_name"] = np.array([name.encode() for name in names])
        arrays[f"{part}_label"] = np.arange(n, dtype=np.int32) % 2
        arrays[f"{part}_drawn"], arrays[f"{part}_position"] = np.arange(n) < n // 4, np.zeros(n, np.int64)
        for i, name in enumerate(names):
            files.write_bytes(folder / "imagenet" / part / f"n0{1 + i % 2}" / name, b"an image")
    streams.write_list(arrays, folder / "imagenet", folder, imagenet.ORIGIN)


def write_cityscapes(folder: Path) -> None:
    """A list of made-up scenes of two cities, and the image of each without its labels, in `folder`."""
    from sc_jax.data import cityscapes, streams

    arrays: dict[str, np.ndarray] = {}
    for part, cities in (("train", ("aachen", "ulm")), ("val", ("lindau",))):
        scenes = [(city, f"{city}_000000_{i:06d}") for city in cities for i in range(3)]
        arrays[f"{part}_scene"] = np.array([scene for _, scene in scenes])
        arrays[f"{part}_ending"] = np.full(len(scenes), "_leftImg8bit.png")
        arrays[f"{part}_position"] = np.zeros(len(scenes), np.int64)
        for city, scene in scenes:
            files.write_bytes(folder / "cityscapes/leftImg8bit" / part / city / f"{scene}_leftImg8bit.png", b"an image")
    streams.write_list(arrays, folder / "cityscapes", folder, cityscapes.ORIGIN)


def _seeds_of_list(name: str, write: Callable[[Path], None]) -> Callable[[], list[Files]]:
    def make(folder: Path) -> list[Files]:
        write(folder)
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        listed = {str(path.relative_to(folder)): path.read_bytes() for path in found}
        return [{f"{name}.npz": listed.pop(f"{name}.npz"), **listed}]

    return _in_folder(make)


def _read_list(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from sc_jax import data

        dataset = data.load(name, folder)
        for source in dataset.splits.values():
            for i in range(len(source)):
                if source.records is None:
                    assert Path(source.describe(i)).resolve().is_relative_to(Path(source.location).resolve())
                with contextlib.suppress(InputError):  # the image has gone, or is none
                    label = source[i]["label"]
                    assert np.max(label) < dataset.num_classes

    return read


def _seeds_of_tables(folder: Path) -> list[Files]:
    from sc_jax.data import tabular

    tabular._write_small(tabular.BANK_MARKETING, {tabular.BANK_MARKETING.train: 250}, folder)
    whole = (folder / "originals" / tabular.BANK_MARKETING.train).read_bytes().split(b"\n")
    return [{"table.csv": b"\n".join(whole[:8]) + b"\n"}]


def _read_table(folder: Path) -> None:
    from sc_jax.data import tabular

    rows, label = tabular.read_table(folder / "table.csv", tabular.BANK_MARKETING)
    assert len(rows) == len(label) > 0


def _seeds_of_texts() -> list[Files]:
    return [{"texts": "0 what is this ?\n3 who was it ?\n5 how many – and when ?\n".encode()}]


def _read_texts(folder: Path) -> None:
    from sc_jax.data import text

    assert all(label in range(6) and words for words, label in text.read_lines(folder / "texts", text.TREC, "utf-8"))


def _seeds_of_images() -> list[Files]:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8))
    seeds = []
    for kind, mode in (("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "P"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA")):
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, kind)
        seeds.append({"image": buffer.getvalue()})
    # Of some hundred bytes: long ones, which are large when resized (the last refused), and black ones.
    for size, mode in (((1, 3_000), "RGB"), ((3_000, 1), "L"), ((3_000, 3_000), "1"), ((1, 300_000), "RGB")):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "PNG")
        seeds.append({"image": buffer.getvalue()})
    return seeds


def _read_image(folder: Path) -> None:
    from sc_jax.data import images

    image = images.eval_record({"image": (folder / "image").read_bytes()}, size=16)["image"]
    assert image.shape == (16, 16, 3)
    assert image.dtype == np.uint8


def _seeds_of_cifar() -> list[Files]:
    from sc_jax.data import cifar

    rng, width = np.random.default_rng(0), cifar.CIFAR10.width
    names = [name for part in cifar.CIFAR10.parts.values() for name in part]
    return [{name: rng.integers(0, 10, 2 * width).astype(np.uint8).tobytes() for name in names}]


def _read_cifar(folder: Path) -> None:
    from sc_jax.data import cifar

    for image, label in cifar.unpacked(cifar.CIFAR10, cifar.read_binary(cifar.CIFAR10, folder)).values():
        assert image.shape == (len(label), 32, 32, 3)


def _seeds_of_requests(folder: Path) -> list[Files]:
    from sc_jax.data import clinc150

    parts = {name: [["play a song", "music"], ["set an alarm", "alarm"]] for name in ("train", "val", "test")}
    parts |= {f"oos_{name}": [["how old is the sun", "oos"]] for name in ("train", "val", "test")}
    return [{clinc150.NAMES[0]: json.dumps(parts).encode()}]


def _read_requests(folder: Path) -> None:
    from sc_jax.data import clinc150

    names, content = clinc150.read(folder)
    assert all(-1 <= label < len(names) for texts in content.values() for _, label in texts)


def _seeds_of_torch(folder: Path) -> list[Files]:
    import torch

    tensors = {"a.weight": torch.ones(2, 2, dtype=torch.bfloat16), "b": torch.arange(3)}
    seeds = []
    for content, as_zip in ((tensors, True), ({"state_dict": tensors}, True), (tensors, False)):
        torch.save(content, folder / "w.pth", _use_new_zipfile_serialization=as_zip)
        seeds.append({"w.pth": (folder / "w.pth").read_bytes()})
    return seeds


def _read_torch(folder: Path) -> None:
    from sc_jax.models import pretrained

    for tensor in pretrained.read_tensors(folder / "w.pth").values():
        assert tensor.dtype.kind in "fiubc"


def _seeds_of_records(folder: Path) -> list[Files]:
    from PIL import Image

    from sc_jax.data import sources

    pictures = [Image.fromarray(np.full((32, 32, 3), 9 * i, np.uint8)) for i in range(4)]
    examples = [(i, {"id": f"test_{i}", "image": image, "label": i}) for i, image in enumerate(pictures)]
    sources.write_tfds("cifar10", folder, {"test": examples}, [str(i) for i in range(10)])
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return [{name: found[name] for name in [first, *found]} for first in found]


def _read_records(folder: Path) -> None:
    from sc_jax.data import streams

    version = next(path.parent for path in folder.rglob("*") if path.is_file())
    split = streams.TfdsSplit(version, "test", ("image",))
    assert all(isinstance(split[i]["image"], bytes) for i in range(len(split)))


def _seeds_of_metrics(folder: Path) -> list[Files]:
    from sc_jax import evaluate
    from sc_jax.methods import evaluation

    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 3))
    p = predictions.Predictions(rng.integers(0, 3, 60), logits, np.arange(60), source="a.npz")
    settings = evaluation.Settings(("msp", "max_logit"), (1, 2), 5, 20, 0.95, 0, None)
    document = evaluate.evaluate_files([p], None, settings)
    return [_ours(folder, lambda f: files.write_json(f / "metrics.json", document), "metrics.json")]


def _draw(folder: Path) -> None:
    from sc_jax import report

    report.report(folder)
    assert (folder / "report.html").exists()


def _seeds_of_checkpoints(folder: Path) -> list[Files]:
    from sc_jax.training.checkpoints import Checkpoints

    with Checkpoints(folder / "c", {"a": 1}) as saved:
        saved.save(1, _state(1))
        saved.save(2, _state(2))
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    newest = sorted((name for name in found if name.startswith("c/2/")), key=lambda name: -len(found[name]))
    return [{name: found[name] for name in [first, *found]} for first in newest]


def _state(step: int) -> dict[str, Any]:
    return {
        "kernel": np.random.default_rng(step).normal(size=(30, 40)).astype(np.float32),
        "step": np.array(step, np.int32),
    }


def _restore(folder: Path) -> None:
    from sc_jax.training.checkpoints import Checkpoints, leaf_hashes

    with Checkpoints(folder / "c", {"a": 1}) as saved:
        step, state, _ = saved.restore_newest(_state(0))
    assert leaf_hashes(state) == leaf_hashes(_state(step))


READERS: dict[str, Reader] = {
    "files.read_npz": Reader(_in_folder(_seeds_of_predictions), _read_npz, 5),
    "files.open_npz": Reader(_in_folder(_seeds_of_predictions), _read_members, 4),
    "predictions.load": Reader(_in_folder(_seeds_of_predictions), _load, 5),
    "predictions.open_stream": Reader(_in_folder(_seeds_of_predictions), _stream, 3),
    "predictions.load_scored": Reader(_in_folder(_seeds_of_scores), _load_scored, 4),
    "selector.load": Reader(_in_folder(_seeds_of_selectors), _load_selector, 6),
    "cascade.Policy.from_json": Reader(_seeds_of_policies, _load_policy, 12),
    "logs.read_log": Reader(_seeds_of_logs, _read_log, 12),
    "pretrained.read_tensors": Reader(_in_folder(_seeds_of_weights), _read_weights, 10),
    "idx.read_idx": Reader(_seeds_of_idx, _read_idx, 10),
    "idx.read_idx, gzipped": Reader(
        lambda: [{"x.gz": gzip.compress(s["x.idx"])} for s in _seeds_of_idx()], _read_idx, 4
    ),
    "sources.read_prepared": Reader(_in_folder(_seeds_of_prepared), _read_prepared, 3),
    "imagenet.load": Reader(_seeds_of_list("imagenet", write_imagenet), _read_list("imagenet"), 2),
    "cityscapes.load": Reader(_seeds_of_list("cityscapes", write_cityscapes), _read_list("cityscapes"), 2),
    "tabular.read_table": Reader(_in_folder(_seeds_of_tables), _read_table, 8),
    "text.read_lines": Reader(_seeds_of_texts, _read_texts, 10),
    "cifar.read_binary": Reader(_seeds_of_cifar, _read_cifar, 2),
    "clinc150.read": Reader(_in_folder(_seeds_of_requests), _read_requests, 8),
    "images.eval_record": Reader(_seeds_of_images, _read_image, 8),
    "streams.TfdsSplit": Reader(_in_folder(_seeds_of_records), _read_records),
    "report.report": Reader(_in_folder(_seeds_of_metrics), _draw),
    "Checkpoints.restore_newest": Reader(_in_folder(_seeds_of_checkpoints), _restore),
}
if importlib.util.find_spec("torch"):
    READERS["pretrained.read_tensors, of torch"] = Reader(_in_folder(_seeds_of_torch), _read_torch)
SLOW = {"report.report": 100, "Checkpoints.restore_newest": 1000, "streams.TfdsSplit": 1000}
"""How many inputs those get that draw pictures, or start Orbax or TFDS, for each."""


def inputs(name: str, numbers: Sequence[int]) -> Iterator[tuple[int, Files]]:
    """The mutated inputs of these numbers, each a function of reader and number."""
    seeds = READERS[name].seeds()
    for number in numbers:
        rng = random.Random(f"{name} {number}")
        chosen, other = rng.choice(seeds), rng.choice(seeds)
        victim = next(iter(chosen))
        if len(chosen) > 1 and rng.random() < 0.3 and "/" not in victim:
            victim = rng.choice(sorted(chosen))
        yield number, {**chosen, victim: mutate(victim, chosen[victim], rng, next(iter(other.values())))}


def fuzz(name: str, numbers: Sequence[int], folder: Path, memory: int | None = MEMORY) -> dict[str, Any]:
    """Gives a reader the inputs of these numbers.

    Args:
      name: of the reader; numbers: of the inputs; folder: to work in, of the reader alone; memory: bytes by which the address space of
        this process may grow, for good; None for no bound.

    Returns:
      {"reader", "inputs", "loaded", "refused", "failed": [{"number", "error"}], "seconds", "peak_growth_bytes"}.
    """
    import shutil

    read = READERS[name].read
    given = list(inputs(name, numbers))
    for _ in range(2):  # what a reader imports, and its caches, are no growth
        _put(folder, READERS[name].seeds()[0])
        try:
            read(folder)
        except InputError as error:
            raise AssertionError(f"{name}: a valid input is refused: {error}") from error
    if memory is not None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def ring(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, ring)
    counts: Counter[str] = Counter()
    failed: list[dict[str, Any]] = []
    start = time.monotonic()
    for number, content in given:
        shutil.rmtree(folder, ignore_errors=True)
        _put(folder, content)
        signal.alarm(SECONDS)
        try:
            read(folder)
            counts["loaded"] += 1
        except InputError:
            counts["refused"] += 1
        except (Exception, Hang) as error:
            traceback.print_exc()
            failed.append({"number": number, "error": f"{type(error).__name__}: {error}"[:500]})
        finally:
            signal.alarm(0)
    shutil.rmtree(folder, ignore_errors=True)
    growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {
        "reader": name,
        "inputs": len(given),
        "loaded": counts["loaded"],
        "refused": counts["refused"],
        "failed": failed,
        "seconds": time.monotonic() - start,
        "peak_growth_bytes": growth,
    }


def in_a_process(name: str, numbers: Sequence[int], folder: Path) -> dict[str, Any]:
    """`fuzz` in a process of its own; a process that dies is a failure too."""
    from tests.chaos.runs import context

    folder.parent.mkdir(parents=True, exist_ok=True)
    result = folder.with_name("result.json")
    result.unlink(missing_ok=True)
    process = context.Process(target=_fuzz_into, args=(result, name, numbers, folder))
    process.start()
    process.join()
    if result.exists():
        return files.read_json(result)
    failed = [{"number": None, "error": f"the process ended with {process.exitcode}"}]
    return {
        "reader": name,
        "inputs": len(numbers),
        "loaded": 0,
        "refused": 0,
        "failed": failed,
        "seconds": 0,
        "peak_growth_bytes": 0,
    }


def _fuzz_into(result: Path, name: str, numbers: Sequence[int], folder: Path) -> None:
    import logging
    import warnings

    warnings.simplefilter("ignore")  # of names twice in a zip, and images that are large
    logging.disable()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        files.write_json(result, fuzz(name, numbers, folder))


def _put(folder: Path, content: Files) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
