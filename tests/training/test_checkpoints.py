"""A checkpoint comes back as it was saved, or not at all."""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax.files import InputError
from sc_jax.training import processes
from sc_jax.training.checkpoints import CannotReadError, Checkpoints, leaf_hashes


def tree(seed: int = 0) -> dict[str, Any]:
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "kernel": jax.random.normal(a, (40, 30)),
        "nested": {"bias": jax.random.normal(b, (30,)), "half": jnp.ones(5, jnp.bfloat16)},
        "step": jnp.asarray(7, jnp.int32),
    }


def save(folder: Path, *steps: int, keep: int = 2, config: dict | None = None) -> None:
    with Checkpoints(folder, config or {"a": 1}, keep) as saved:
        for step in steps:
            saved.save(step, tree(step))


def test_restores_the_same_bits(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        assert saved.latest_step() == 3
        state = saved.restore(3, tree())
    assert leaf_hashes(state) == leaf_hashes(tree(3))
    assert leaf_hashes(state) != leaf_hashes(tree(4))


def test_keeps_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["2", "3"]


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        assert saved.latest_step() is None


def test_another_config_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with Checkpoints(tmp_path, {"a": 2}) as saved, pytest.raises(InputError, match="another config"):
        saved.restore(1, tree())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "kernel": jnp.zeros((40, 31))},
        lambda t: {**t, "extra": jnp.zeros(1)},
        lambda t: {name: leaf for name, leaf in t.items() if name != "step"},
        lambda t: {**t, "kernel": t["kernel"].astype(jnp.float16)},
    ],
    ids=["shape", "more", "fewer", "dtype"],
)
def test_another_structure_is_refused(tmp_path: Path, change: Any) -> None:
    save(tmp_path, 1)
    with Checkpoints(tmp_path, {"a": 1}) as saved, pytest.raises(InputError, match="damaged"):
        saved.restore(1, change(tree()))


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_a_flipped_bit_is_refused_or_harmless(tmp_path: Path) -> None:
    """One bit of one file of the array data, at seeded random places: refused by name, or the very bits that were saved."""
    save(tmp_path / "good", 5, 6)
    wanted = leaf_hashes(tree(6))
    candidates = [
        path for path in sorted((tmp_path / "good/6/state").rglob("*")) if path.is_file() and path.stat().st_size
    ]
    big = max(candidates, key=lambda path: path.stat().st_size)
    assert big.stat().st_size > 40 * 30 * 4 * 0.8, "the largest file should be the array data"
    rng = random.Random(0)
    messages = []
    for trial in range(40):
        victim = big if trial % 2 == 0 else rng.choice(candidates)
        folder = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", folder)
        flip(folder / victim.relative_to(tmp_path / "good"), rng.randrange(victim.stat().st_size), rng.randrange(8))
        with Checkpoints(folder, {"a": 1}) as saved:
            try:
                assert leaf_hashes(saved.restore(6, tree())) == wanted
            except InputError as error:
                messages.append(str(error))
        shutil.rmtree(folder)
    assert len(messages) >= 15
    assert all("from step 5" in message for message in messages), "the way back is named"
    by_hash = sum("not what was saved" in message for message in messages)
    print(f"{len(messages)} of 40 refused, {by_hash} of them by our hash alone")


def test_our_hash_catches_what_orbax_restores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever storage returns is compared with what was saved: a single flipped mantissa bit in one leaf is named."""
    save(tmp_path, 1)
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        original = saved._manager.restore

        def restore(step: int, args: Any) -> Any:
            result = original(step, args=args)
            if "state" in result.keys():  # noqa: SIM118 (a Composite, not a dict)
                kernel = np.array(result.state["kernel"])
                kernel.view(np.uint32)[3, 4] ^= 1
                result.state["kernel"] = jnp.asarray(kernel)
            return result

        monkeypatch.setattr(saved._manager, "restore", restore)
        with pytest.raises(InputError, match=r"1 of 4 leaves are not what was saved.*kernel"):
            saved.restore(1, tree())


def test_leaf_hashes_see_dtype_shape_and_content() -> None:
    base = leaf_hashes({"a": np.zeros(4, np.float32)})
    assert base != leaf_hashes({"a": np.zeros(4, np.int32)})
    assert base != leaf_hashes({"a": np.zeros((2, 2), np.float32)})
    assert base != leaf_hashes({"a": -np.zeros(4, np.float32)})
    assert base == leaf_hashes({"a": jnp.zeros(4)})


def damage(folder: Path, step: int) -> None:
    """Flips a bit of the largest file of a checkpoint."""
    largest = max((folder / str(step) / "state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    flip(largest, largest.stat().st_size // 2, 0)


def test_a_damaged_newest_one_gives_way_to_the_one_before_and_is_kept(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 6)
    damage(tmp_path / "c", 6)
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        step, state, said = saved.restore_newest(tree())
        assert step == 5
        assert leaf_hashes(state) == leaf_hashes(tree(5))
        assert len(said) == 1
        assert str(tmp_path / "c/6") in said[0]
        assert saved.latest_step() == 5
        saved.save(6, tree(6))
        assert saved.restore_newest(tree())[::2] == (6, [])
    assert sorted(path.name for path in (tmp_path / "c-damaged").iterdir()) == ["6"]
    damage(tmp_path / "c", 6)
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        assert saved.restore_newest(tree())[0] == 5
    assert sorted(path.name for path in (tmp_path / "c-damaged").iterdir()) == ["6", "6.1"]


def test_damage_is_not_taken_for_the_loss_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorStore says of a cut file begins as what XLA says of a collective that failed."""
    save(tmp_path / "c", 5, 6)
    for path in (tmp_path / "c/6/state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:20])
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "all_say", lambda holds: holds)
    monkeypatch.setattr(processes, "from_first", lambda function: function())
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        assert saved.restore_newest(tree())[0] == 5


def test_where_none_is_whole_all_are_left_and_the_newest_is_named(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 6)
    for step in (5, 6):
        damage(tmp_path / "c", step)
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved, pytest.raises(InputError, match="c/6: checkpoint damaged"):
        saved.restore_newest(tree())
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.name.isdigit()) == ["5", "6"]
    assert not (tmp_path / "c-damaged").exists()


def test_checkpoints_of_another_config_are_not_set_aside(tmp_path: Path) -> None:
    save(tmp_path / "c", 5, 6)
    with Checkpoints(tmp_path / "c", {"a": 2}) as saved, pytest.raises(InputError, match="another config"):
        saved.restore_newest(tree())
    assert not (tmp_path / "c-damaged").exists()


def test_nothing_to_restore(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        assert saved.restore_newest(tree()) is None


def test_what_goes_with_a_checkpoint_comes_back(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        saved.save(1, tree(), {"train.jsonl": {"bytes": 3, "sha256": "0"}})
        assert saved.meta(1)["logs"] == {"train.jsonl": {"bytes": 3, "sha256": "0"}}


def test_a_full_disk_is_one_line_and_leaves_the_earlier_ones(tmp_path: Path) -> None:
    """Files of at most 3,000 bytes, in a process of its own; Orbax logs nothing beside."""
    save(tmp_path, 5)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_checkpoints import Checkpoints, InputError, tree\n"
        "with Checkpoints(sys.argv[1], {'a': 1}) as saved:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "    try:\n"
        "        saved.save(6, tree(6))\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "cannot write checkpoint 6" in done.stdout
    assert "Traceback" not in done.stderr
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        assert saved.restore_newest(tree())[0] == 5


@pytest.mark.parametrize(
    ("qualities", "kept", "best"),
    [
        ([0.1, 0.9, 0.3, 0.2, 0.4], [2, 4, 5], 2),
        ([0.5, 0.5, 0.5, 0.5, 0.5], [1, 4, 5], 1),
        ([None, 0.1, None, None, 0.0], [2, 4, 5], 2),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [4, 5], 5),
        ([None] * 5, [4, 5], None),
    ],
)
def test_the_best_stay_beside_the_newest(tmp_path: Path, qualities: list, kept: list[int], best: int | None) -> None:
    """Also where every one is saved by another process."""
    for step, quality in enumerate(qualities, 1):
        with Checkpoints(tmp_path, {"a": 1}, keep=2, best=1) as saved:
            saved.save(step, tree(step), quality=quality)
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == kept
    with Checkpoints(tmp_path, {"a": 1}, keep=2, best=1) as saved:
        assert saved.best_step() == best
        assert saved.latest_step() == 5


def test_metadata_are_sealed(tmp_path: Path) -> None:
    """A quality of another digit is damage, and the checkpoint no longer among the best."""
    save(tmp_path, 1)
    with Checkpoints(tmp_path, {"a": 1}) as saved:
        saved.save(2, tree(2), quality=0.25)
        path = tmp_path / "2/meta/metadata"
        text = path.read_text()
        assert text.count("0.25") == 1
        path.write_text(text.replace("0.25", "0.75"))
        with pytest.raises(InputError, match="2: checkpoint damaged: its metadata"):
            saved.meta(2)
        assert saved.best_step() is None


def test_damage_that_orbax_cannot_open_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "1/_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    metadata["custom_metadata"] = {"a": 1}
    metadata["comp_nsecs"] = metadata.pop("commit_timestamp_nsecs")
    path.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="cannot be used for checkpoints"):
        save(tmp_path, 2)


def test_what_orbax_leaves_of_a_failed_read_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that fails leaves the others of the same restore unfinished, each of which prints a traceback when it is collected."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    save(tmp_path, 1)
    for path in (tmp_path / "1/state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:9])
    with Checkpoints(tmp_path, {"a": 1}) as saved, pytest.raises(InputError, match="damaged"):
        saved.restore(1, tree())
    left = []
    for name in ("/venv/orbax/read.py", "/elsewhere/read.py"):
        space: dict[str, Any] = {}
        exec(compile("async def read(): pass", name, "exec"), space)
        left.append(SimpleNamespace(object=space["read"](), exc_value=Exception("while reading")))
        sys.unraisablehook(left[-1])
        left[-1].object.close()
    assert [one for one in told if one in left] == left[1:]


PASSING = {
    "EIO": OSError(errno.EIO, "Input/output error"),
    "EMFILE": OSError(errno.EMFILE, "Too many open files"),
    "memory": MemoryError(),
    "memory of a device": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12884901888 bytes."),
    "EIO of TensorStore": ValueError("UNKNOWN: Error reading: Input/output error [os_error_code='5']"),
}


def failing(saved: Checkpoints, step: int, error: Exception, monkeypatch: pytest.MonkeyPatch, item: str) -> None:
    """Lets the reads of one part of one checkpoint end with an error."""
    read = saved._manager.restore

    def restore(asked: int, args: Any) -> Any:
        if asked == step and item in args.keys():  # noqa: SIM118 (a Composite, not a dict)
            raise error
        return read(asked, args=args)

    monkeypatch.setattr(saved._manager, "restore", restore)


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.parametrize("item", ["state", "meta"])
def test_what_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, item: str
) -> None:
    """Once: then the newest is there as it was, and is restored."""
    save(tmp_path / "c", 5, 6)
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        failing(saved, 6, PASSING[name], monkeypatch, item)
        with pytest.raises(CannotReadError, match=r"c/6: cannot be read now \(.+\); the checkpoint is left as it is$"):
            saved.restore_newest(tree())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        step, state, said = saved.restore_newest(tree())
    assert (step, said) == (6, [])
    assert leaf_hashes(state) == leaf_hashes(tree(6))


def test_nothing_is_set_aside_where_the_one_before_the_damaged_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "c", 5, 6)
    damage(tmp_path / "c", 6)
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        failing(saved, 5, PASSING["EIO"], monkeypatch, "state")
        with pytest.raises(CannotReadError, match="c/5: "):
            saved.restore_newest(tree())
    assert not (tmp_path / "c-damaged").exists()


def test_what_is_gone_is_damage(tmp_path: Path) -> None:
    """A file of the newest that is not there will not come back."""
    save(tmp_path / "c", 5, 6)
    for path in (tmp_path / "c/6/state").glob("*/*"):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    with Checkpoints(tmp_path / "c", {"a": 1}) as saved:
        assert saved.restore_newest(tree())[0] == 5
    assert (tmp_path / "c-damaged/6").exists()


def test_the_best_is_not_removed_where_it_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Checkpoints(tmp_path, {"a": 1}, keep=1, best=1) as saved:
        saved.save(1, tree(1), quality=0.9)
        saved.save(2, tree(2), quality=0.1)
        failing(saved, 1, PASSING["EIO"], monkeypatch, "meta")
        with pytest.raises(InputError):
            saved.save(3, tree(3), quality=0.2)
        with pytest.raises(CannotReadError):
            saved.best_step()
    with Checkpoints(tmp_path, {"a": 1}, keep=1, best=1) as saved:
        assert saved.best_step() == 1


def test_too_many_open_files_are_not_damage(tmp_path: Path) -> None:
    """The real thing, in a process of its own."""
    save(tmp_path / "c", 5, 6)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_checkpoints import CannotReadError, Checkpoints, tree\n"
        "with Checkpoints(sys.argv[1], {'a': 1}) as saved:\n"
        "    read, like = saved._manager.restore, tree()\n"
        "    def few(step, args):\n"
        "        if 'state' in args.keys():\n"
        "            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 4096))\n"
        "        return read(step, args=args)\n"
        "    saved._manager.restore = few\n"
        "    try:\n"
        "        saved.restore_newest(like)\n"
        "    except CannotReadError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c"), str(Path(__file__).parent)], capture_output=True
    )
    assert b"c/6: cannot be read now" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
