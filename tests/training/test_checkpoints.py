"""A checkpoint comes back as it was saved, or not at all."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax.files import InputError
from sc_jax.training.checkpoints import Checkpoints, leaf_hashes


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
