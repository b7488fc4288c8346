"""Sees ways from the device to the host, also on a CPU, where a transfer guard sees none.

`forbidden` watches JAX's arrays, and what NumPy and JAX call to read them; NumPy's functions read an array of a CPU past it, by its
buffer, without a call that could be watched. `sealed` hides arrays altogether, so that only what opens them can read them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class HiddenFetchError(AssertionError):
    """An array of the device was looked at on the host, or waited for, where that was not allowed."""


class Watch:
    """What `forbidden` yields: `allowed` says where fetches may be; `count` is how often that was called."""

    def __init__(self) -> None:
        self.count, self._open = 0, 0

    def allowed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, in which fetches are allowed."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            with self.open():
                return function(*arguments, **options)

        return wrapped

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """A block in which fetches are allowed."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def refuse(self, how: str) -> None:
        """Raises where no fetch is allowed."""
        if not self._open:
            raise HiddenFetchError(f"an array is fetched by {how}")


@contextlib.contextmanager
def forbidden() -> Iterator[Watch]:
    """Refuses to let arrays of JAX be read on the host, or be waited for, but where `Watch` allows it."""
    watch = Watch()
    kind = type(jnp.zeros(()))

    def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            leaves = jax.tree.leaves((arguments, options))
            if any(isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) for leaf in leaves):
                watch.refuse(name)
            return function(*arguments, **options)

        return wrapped

    value = kind._value

    def read(array: Any) -> Any:
        watch.refuse("_value")
        return value.fget(array)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_value", property(read))
        for name in ("__array__", "__dlpack__", "item", "tolist", "block_until_ready", "copy_to_host_async"):
            patch.setattr(kind, name, guarded(name, getattr(kind, name)))
        for module, names in (
            (np, ("asarray", "array", "ascontiguousarray", "stack", "concatenate", "copyto")),
            (jax, ("device_get", "block_until_ready")),
        ):
            for name in names:
                patch.setattr(module, name, guarded(f"{module.__name__}.{name}", getattr(module, name)))
        yield watch


class Sealed:
    """In place of an array: whatever asks something of it is refused."""

    __slots__ = ("_array",)

    def __init__(self, array: Any) -> None:
        self._array = array

    def __getattr__(self, name: str) -> Any:
        raise HiddenFetchError(f"{name} of a sealed array is asked for")


def _refused(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise HiddenFetchError(f"{name} of a sealed array is asked for")

    return refuse


for _name in (
    *("array", "array_ufunc", "array_function", "buffer", "dlpack", "float", "int", "bool", "complex", "index"),
    *("getitem", "iter", "len", "format", "repr", "str", "hash", "reduce_ex"),
    *("lt", "le", "eq", "ne", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv"),
):
    setattr(Sealed, f"__{_name}__", _refused(_name))


def sealed(tree: Any) -> Any:
    """The tree with every array sealed."""
    return jax.tree.map(Sealed, tree)


def opened(tree: Any) -> Any:
    """The tree with the arrays that `sealed` took; others are as they were."""
    return jax.tree.map(lambda leaf: leaf._array if type(leaf) is Sealed else leaf, tree)
