"""The house as a whole: who imports whom, what is documented, what an import costs."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import sc_jax

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(sc_jax.__path__, "sc_jax."))


def test_import_contracts() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_parallel_alone_speaks_of_shardings() -> None:
    words = ("jax.sharding", "NamedSharding", "PartitionSpec", "shard_map")
    speakers = [
        p
        for p in (ROOT / "sc_jax").rglob("*.py")
        if any(
            f"import {w}" in p.read_text() or f"from {w}" in p.read_text() or f"{w}(" in p.read_text() for w in words
        )
    ]
    assert [path.name for path in speakers] == ["parallel.py"]


def public(module: ModuleType) -> list[tuple[str, object]]:
    """Functions, classes and their public methods that `module` defines."""
    found = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or callable(value):
            found.append((f"{module.__name__}.{name}", value))
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    found.append((f"{module.__name__}.{name}.{attribute}", member))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_public_symbol_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    bare = [symbol for symbol, value in public(module) if not inspect.getdoc(value)]
    # A NamedTuple or dataclass without a docstring gets one made up by Python: its own signature.
    bare += [
        symbol
        for symbol, value in public(module)
        if (inspect.getdoc(value) or "").startswith(symbol.split(".")[-1] + "(")
    ]
    assert not bare


def test_every_export_of_ops_says_what_goes_in_and_out() -> None:
    from sc_jax import ops

    for name in ops.__all__:
        value = getattr(ops, name)
        if inspect.isclass(value):
            continue
        text = inspect.getdoc(value)
        if len(text.splitlines()) > 1 and "as for `" not in text:  # else shapes stand in the sentence itself
            assert "Args:" in text, name
            assert "Returns:" in text, name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_tests(name: str) -> None:
    """Tests mirror modules; doors and packages may be covered by the tests of the pipe."""
    covered_elsewhere = {
        "sc_jax.train": "integration/test_pipe.py",
        "sc_jax.predict": "integration/test_pipe.py",
        "sc_jax.run": "integration/test_pipe.py",
        "sc_jax.pages": "test_report.py",
        "sc_jax.cascade": "test_cascade_door.py",  # methods/test_cascade.py has the name
        "sc_jax.ensemble": "test_ensemble_door.py",  # methods/test_ensemble.py has the name
        "sc_jax.methods.scod": "methods/test_scod_rejectors.py",  # ops/test_scod.py has the name
        "sc_jax.data.pipelines": "training/test_step.py",
        "sc_jax.data.build_fashion_mnist": "data/test_fashion_mnist.py",
        "sc_jax.training.state": "training/test_step.py",
        "sc_jax.models.mlp": "models/test_models.py",
        "sc_jax.models.cnn": "models/test_models.py",
        "sc_jax.methods.scores": "methods/test_scores_table.py",
        "sc_jax.data": "data/test_datasets.py",
        "sc_jax.models": "models/test_models.py",
        "sc_jax.ops": "test_house.py",
        "sc_jax.methods": "test_house.py",
        "sc_jax.training": "test_house.py",
    }
    *folders, leaf = name.split(".")[1:]
    expected = covered_elsewhere.get(name, "/".join([*folders, f"test_{leaf}.py"]))
    assert (ROOT / "tests" / expected).exists(), f"{name}: no tests/{expected}"


def test_no_two_test_files_share_a_name() -> None:
    """Pytest imports them by it, and leaves out the second."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_what_is_printed_needs_no_picture() -> None:
    """Matplotlib and SciPy's statistics take most of a second each before a door says anything."""
    code = "import sys, sc_jax.evaluate, sc_jax.select; print([m for m in ('matplotlib', 'scipy.stats', 'orbax') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_import_is_light_and_changes_no_setting() -> None:
    code = (
        "import sys, json, os; before = dict(os.environ); import sc_jax; from sc_jax import ops, files, predictions\n"
        "heavy = [m for m in ('orbax', 'grain', 'tensorflow_datasets', 'tensorflow', 'matplotlib', 'flax') if m in sys.modules]\n"
        "import jax; print(json.dumps([heavy, before == dict(os.environ), jax.config.jax_enable_x64]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == [[], True, False]
    assert not [path for path in (ROOT / "sc_jax").rglob("*.py") if "config.update(" in path.read_text()]
