"""Truncations and flipped bits, in every kind of file that is written; then whoever reads it says what it makes of it."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sc_jax import data, files, predictions
from sc_jax.data import sources
from sc_jax.files import InputError
from sc_jax.methods import cascade, pixels, selector
from sc_jax.models import pretrained
from tests.chaos import fuzz
from tests.chaos.runs import EVERY, STEPS, Place, latest

KINDS: dict[str, tuple[str, str]] = {
    "checkpoint: arrays": ("middle", "checkpoints/{step}/state/**/d/*"),
    "checkpoint: index of the arrays": ("middle", "checkpoints/{step}/state/**/*"),
    "checkpoint: hashes and config": ("middle", "checkpoints/{step}/meta/metadata"),
    "checkpoint: other files": ("middle", "checkpoints/{step}/*"),
    "checkpoint: arrays of the last": ("end", "checkpoints/{step}/state/**/d/*"),
    "checkpoint: hashes of the last": ("end", "checkpoints/{step}/meta/metadata"),
    "train.jsonl": ("middle", "train.jsonl"),
    "logit_statistics.jsonl": ("middle", "logit_statistics.jsonl"),
    "train.jsonl at the end": ("end", "train.jsonl"),
    "logit_statistics.jsonl at the end": ("end", "logit_statistics.jsonl"),
    "logs.json": ("end", "logs.json"),
    "config.json": ("end", "config.json"),
    "predictions": ("end", "predictions/*/*.npz"),
    "predictions before they are evaluated": ("evaluate", "predictions/*/*.npz"),
    "sidecar of predictions": ("end", "predictions/*/*.json"),
    "sidecar before it is evaluated": ("evaluate", "predictions/*/*.json"),
    "metrics.json": ("end", "metrics.json"),
    "metrics.json before the report": ("report", "metrics.json"),
    "report.html": ("end", "report.html"),
    "report.md": ("end", "report.md"),
    "metrics.csv": ("end", "metrics.csv"),
    "pictures of the report": ("end", "figures/*.png"),
    "report.json": ("end", "report.json"),
    "timings.json": ("end", "timings.json"),
}
"""Kind → the stage that the workdir has reached ("middle": of training), and which files of it are damaged. The door is `run`."""


def spoil(path: Path, rng: random.Random) -> str:
    """Cuts the file, or flips one bit of it; what was done, in words."""
    content = bytearray(path.read_bytes())
    if not content:
        path.unlink()
        return "removed, since it was empty"
    if rng.random() < 0.3:
        cut = rng.randrange(len(content))
        path.write_bytes(content[:cut])
        return f"cut to {cut} of {len(content)} bytes"
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {len(content)}"


def keep_the_middle(place: Place) -> None:
    """Keeps a workdir as "middle" whose training was stopped by SIGTERM, at a step that is no multiple of `checkpoint_every`."""
    while True:
        place.begin("train")
        door = place.start("train")
        while latest(place.workdir) < STEPS // 2 and door.running:
            time.sleep(0.001)
        door.send(signal.SIGTERM)
        if door.wait().status != 143:
            raise RuntimeError(f"not stopped: {door.said()}")
        if latest(place.workdir) % EVERY:
            place.keep("middle")
            return


def trial(place: Place, seed: int, kind: str) -> dict[str, Any]:
    """One damage to the workdir, then `run`.

    Returns:
      {"kind", "seed", "file", "damage", "outcome", "why"}; "outcome" is "recovered" (the file too is as it was),
      "no effect" (the rest is as it was: what was damaged is not read, or reads the same), "refused", "refused without the name", "crashed",
      "silently wrong".
    """
    rng = random.Random(f"{kind} {seed}")
    stage, pattern = KINDS[kind]
    place.begin(stage)
    pattern = pattern.format(step=latest(place.workdir))
    path = rng.choice(sorted(path for path in place.workdir.glob(pattern) if path.is_file()))
    name = str(path.relative_to(place.workdir))
    before, as_read = path.read_bytes(), _as_read(path)
    row = {"kind": kind, "seed": seed, "file": name, "damage": spoil(path, rng)}
    after = path.read_bytes() if path.exists() else b""
    ended = place.run("run")
    if ended.crashed:
        return {**row, "outcome": "crashed", "why": ended.said[-2000:]}
    if ended.status:
        named = str(path) in ended.said or str(path.with_suffix(".npz")) in ended.said
        named |= name.startswith("checkpoints/") and "/".join(name.split("/")[:2]) in ended.said
        return {**row, "outcome": "refused" if named else "refused without the name", "why": ended.said[-300:]}
    different = place.differences()
    left = path.exists() and path.read_bytes() == after != before
    if left and _as_read(path) != as_read:
        different.append(f"{name} is still damaged")
    if left and name in different and _as_read(path) == as_read:
        different.remove(name)  # as JSON or as arrays it is the same
    if different:
        return {**row, "outcome": "silently wrong", "why": ", ".join(different)}
    return {**row, "outcome": "no effect" if left else "recovered", "why": ""}


def _as_read(path: Path) -> Any:
    """What a reader sees in a file: JSON and arrays as values, anything else as bytes; of checkpoints nothing, they are restored."""
    if "checkpoints" in path.parts:
        return None
    try:
        if path.suffix == ".json":
            return files.read_json(path)
        if path.suffix == ".npz":
            return files.fingerprint(files.read_npz(path))
    except InputError as error:
        return str(error)
    return path.read_bytes() if path.exists() else None


def _read_decisions(folder: Path) -> Any:
    arrays, about = files.read_npz(folder / "decisions.npz"), files.read_json(folder / "decisions.json", sealed=True)
    if about["fingerprint"] != files.fingerprint(arrays):
        raise InputError(f"{folder / 'decisions.npz'}: not the decisions that decisions.json was written for")
    return about, {name: array.tolist() for name, array in arrays.items()}


READ: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    "predictions, by `load`": ("p.npz", lambda folder: _predictions(predictions.load(folder / "p.npz"))),
    "their sidecar, by `load`": ("p.json", lambda folder: _predictions(predictions.load(folder / "p.npz"))),
    "scores and losses": ("s.npz", lambda folder: _scored(predictions.load_scored(folder / "s.npz"))),
    "selector.json": ("selector.json", lambda folder: selector.load(folder / "selector.json")),
    "selector.npz": ("selector.npz", lambda folder: selector.load(folder / "selector.json")),
    "table of a sweep": ("sweep.json", lambda folder: files.read_json(folder / "sweep.json", sealed=True)),
    "states of a sweep": ("states.json", lambda folder: files.read_json(folder / "states.json", sealed=True)),
    "policy.json": (
        "policy.json",
        lambda folder: cascade.Policy.from_json(files.read_json(folder / "policy.json", sealed=True)),
    ),
    "decisions.npz": ("decisions.npz", _read_decisions),
    "decisions.json": ("decisions.json", _read_decisions),
    "weights (safetensors)": ("w.safetensors", lambda folder: _tensors(folder / "w.safetensors")),
    "pixels of a segmentation": (
        "x_pixels.npz",
        lambda folder: _scored(predictions.load_scored(folder / "x_pixels.npz")),
    ),
    "images of a segmentation": (
        "x_images.npz",
        lambda folder: _scored(predictions.load_scored(folder / "x_images.npz")),
    ),
    "pictures of a segmentation": (
        "x_pictures.npz",
        lambda folder: files.fingerprint(files.read_npz(folder / "x_pictures.npz")),
    ),
    "list of ImageNet": ("imagenet.npz", lambda folder: _listed("imagenet", folder)),
    "list of Cityscapes": ("cityscapes.npz", lambda folder: _listed("cityscapes", folder)),
    "a prepared data set": ("small.npz", lambda folder: sources.read_prepared("small", folder).fingerprint),
}
"""Kinds of files that no stage of a study reads again: which file is damaged, and who reads it."""


def _predictions(p: predictions.Predictions) -> Any:
    return p.provenance, files.fingerprint(p.arrays())


def _scored(p: predictions.Scored) -> Any:
    return p.provenance, files.fingerprint(p.arrays())


def _tensors(path: Path) -> Any:
    return files.fingerprint(pretrained.read_tensors(path))


def _listed(name: str, folder: Path) -> Any:
    dataset = data.load(name, folder)
    described = [source.describe(i) for source in dataset.splits.values() for i in range(len(source))]
    return dataset.fingerprint, described, [source.example_id.tolist() for source in dataset.splits.values()]


def read_trial(whole: Path, seed: int, kind: str) -> dict[str, Any]:
    """One damage to a file that `write_examples` wrote, then its reader; as `trial`."""
    rng = random.Random(f"{kind} {seed}")
    name, read = READ[kind]
    folder = whole.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    row = {"kind": kind, "seed": seed, "file": name, "damage": spoil(folder / name, rng)}
    try:
        same = repr(read(folder)) == repr(read(whole)).replace(str(whole), str(folder))
    except InputError as error:
        stem = name.partition(".")[0]
        return {**row, "outcome": "refused" if stem in str(error) else "refused without the name", "why": str(error)}
    except Exception as error:
        return {**row, "outcome": "crashed", "why": repr(error)}
    return {**row, "outcome": "no effect" if same else "silently wrong", "why": "" if same else "it reads otherwise"}


def write_examples(place: Place, folder: Path) -> None:
    """The files of `READ`, by the functions and doors that write them."""
    import jax

    from sc_jax import models, select, sweep
    from sc_jax.data import Dataset, Split

    place.begin("end")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    member = next(path for path in sorted((place.workdir / "predictions").iterdir()) if path.is_dir())
    for suffix in ("npz", "json"):
        shutil.copy(member / f"test.{suffix}", folder / f"p.{suffix}")
    p = predictions.load(folder / "p.npz")
    wrong = (p.logits.argmax(-1) != p.label).astype(np.float32)
    scored = predictions.Scored(wrong, {"msp": p.logits.max(-1)}, provenance={"split": "test"})
    predictions.save(folder / "s.npz", scored)
    calibration = f"--calibration={member / 'validation.npz'}"
    test, workdir = f"--predictions={member / 'test.npz'}", f"--workdir={folder}"
    with contextlib.redirect_stdout(io.StringIO()):
        select.main([calibration, test, "--method=crc", "--risk=0.1", workdir])
    policy = cascade.Policy(
        (cascade.WHOLE,), (0.5,), (0.1,), 0.5, cascade.Task("risk", 0.05), "msp", "mean", "validation"
    )
    files.write_json(folder / "policy.json", policy.as_json(), seal=True)
    model = models.build("mlp", input_shape=(28, 28, 1), num_classes=10, hidden=(8,))
    pretrained.save(folder / "w.safetensors", *model.init(jax.random.key(0)))
    image = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3)).astype(np.uint8)
    splits = {
        name: Split(image[i : i + 20], (np.arange(20) % 3).astype(np.int32), np.arange(i, i + 20))
        for name, i in (("train", 0), ("validation", 20), ("test", 40))
    }
    sources.write_prepared(Dataset("small", ("a", "b", "c"), splits), folder)
    runs = sweep.load("experiments/label_smoothing/sweep.py")
    states = {run.name: {"state": "waiting", "starts": 1, "kills": 0} for run in runs}
    sweep._keep(folder, states)
    sweep.collect(runs, states, folder)
    fuzz.write_imagenet(folder)
    fuzz.write_cityscapes(folder)
    _write_segmented(folder)


def _write_segmented(folder: Path) -> None:
    """What is kept of two made-up segmented images: all pixels, the images, and one to be looked at."""
    rng, shape = np.random.default_rng(0), (12, 16)
    collector = pixels.Collector(folder / "columns", 255)
    for i in (1, 2):
        label = rng.integers(0, 3, shape).astype(np.uint8)
        score = {name: rng.normal(size=shape).astype(np.float32) for name in pixels.SCORES}
        one = pixels.Measured(rng.random(shape) < 0.3, score, rng.normal(size=(5, 3)).astype(np.float32))
        collector.add(i, label, pixels.sample(label, 255, i, 5), one)
    predictions.save(folder / "x_pixels.npz", collector.pixels())
    predictions.save(folder / "x_images.npz", collector.images())
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    shots = {f"{name}_0": array for name, array in pixels.picture(image, label, 255, one).items()}
    files.write_npz(folder / "x_pictures.npz", shots)
    shutil.rmtree(folder / "columns")
