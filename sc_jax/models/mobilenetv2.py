"""MobileNetV2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.models.efficientnet import InvertedResidualNetwork, Stage, divisible

STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 3, 2, 32, 3),
    Stage(6, 3, 2, 64, 4),
    Stage(6, 3, 1, 96, 3),
    Stage(6, 3, 2, 160, 3),
    Stage(6, 3, 1, 320, 1),
)
"""Of width 1 (Sandler et al., 2018, Table 2)."""


class MobileNetV2(InvertedResidualNetwork):
    """Inverted residuals with ReLU6, every width but the features' 1,280 scaled, that one only up.

    Widths 1.0, 1.3 and 1.4 have at 1,000 classes 3,504,872, 5,386,792 and 6,108,776 parameters; timm has the first and the
    last, and its rule gives the second. The paper trains at width 1 for 96 to 224 pixels.

    Args:
      input_shape: (h, w, c).
      num_classes: k.
      width: factor of the channels, rounded to multiples of 8.
      relu6: min(max(x, 0), 6) as in the paper; if false max(x, 0), which Xia & Bouganis (2023, arXiv:2303.08010) trained.
      dropout: rate, before the head; neither paper names one.
      dtype: of the computation.
      rngs: of the initialisation.

    Source: Sandler et al., MobileNetV2 (CVPR 2018, arXiv:1801.04381), Table 2 and §6.1.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: float,
        relu6: bool = True,
        dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            stages=tuple(stage._replace(channels=divisible(stage.channels * width)) for stage in STAGES),
            stem_channels=divisible(32 * width),
            head_channels=divisible(1280 * max(1.0, width)),
            activation=jax.nn.relu6 if relu6 else jax.nn.relu,
            squeeze=False,
            dropout=dropout,
            drop_path=0.0,
            dtype=dtype,
            rngs=rngs,
        )
