"""The network of several exits; what all backbones share is in test_models.py."""

from __future__ import annotations

import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sc_jax import models
from sc_jax.files import InputError
from sc_jax.models import costs

IMAGENET = models.BACKBONES["msdnet_imagenet"][1]
FAST = {"xla_backend_optimization_level": 0}  # to compile


@pytest.fixture(autouse=True)
def flax_broadcasts() -> object:
    """Flax's normalisations broadcast their scales."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_imagenet_of_five_exits() -> None:
    """Costs of the network up to every exit.

    The authors' figures, 339.9 to 1360.5 million (from memory), count ReLUs, pooling and biases too, which is within .8 %.
    """
    shape = (224, 224, 3)
    model = models.build("msdnet_imagenet", input_shape=shape, num_classes=1000)
    forms = closed_forms.msdnet(
        IMAGENET["blocks"], IMAGENET["channels"], IMAGENET["growth"], IMAGENET["factors"], 1000, imagenet=True
    )
    published = [339.90e6, 685.46e6, 1008.16e6, 1254.47e6, 1360.53e6]
    np.testing.assert_allclose([form.macs for form in forms], published, rtol=8e-3)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    program, (outputs, _) = jax.make_jaxpr(model.apply, return_shape=True)(params, state, images)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == forms[-1].parameters
    assert costs.count(program.jaxpr) == 2 * forms[-1].macs
    assert outputs["exit_logits"].shape == (5, 2, 1000)
    # 32 + 20·16 channels, halved with every of three scales dropped, times the coarsest factor
    assert outputs["features"].shape == (2, 4 * (((((32 + 6 * 16) // 2) + 5 * 16) // 2 + 5 * 16) // 2 + 4 * 16))


def test_an_exit_sees_only_what_is_before_it() -> None:
    """Of later blocks it has no gradient, of earlier ones it has: what is computed for an exit serves the next."""
    model = models.build("msdnet", input_shape=(32, 32, 3), num_classes=3, blocks=(1, 1), channels=4, growth=2)
    params, state = jax.jit(model.init, compiler_options=FAST)(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))

    def reach(block: int) -> np.ndarray:
        """[e]: whether the exit's logits depend on the block."""

        def exits(scale: jax.Array) -> jax.Array:
            scaled = jax.tree.map(lambda leaf: leaf * scale, params["blocks"][block])
            changed = type(params)({**params, "blocks": {**params["blocks"], block: scaled}})
            return model.apply(changed, state, images)[0]["exit_logits"]

        _, tangent = jax.jit(lambda s: jax.jvp(exits, (s,), (jnp.ones(()),)), compiler_options=FAST)(jnp.ones(()))
        return np.abs(tangent).max((1, 2)) > 0

    np.testing.assert_array_equal(reach(0), [True, True])
    np.testing.assert_array_equal(reach(1), [False, True])


def test_another_stem_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.stem: 'foo'; take 'cifar' or 'imagenet'"):
        models.build("msdnet", input_shape=(32, 32, 3), num_classes=3, stem="foo")
