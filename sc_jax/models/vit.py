"""Vision transformer."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from sc_jax.files import InputError
from sc_jax.models.dropout import Dropout
from sc_jax.models.resnet import require_image

EPSILON = 1e-6  # of every LayerNorm

Linear = partial(nnx.Linear, kernel_init=nnx.initializers.normal(0.02))


class Attention(nnx.Module):
    """Self-attention of several heads: proj(concat_i softmax(q_i k_iᵀ / √d) v_i), the softmax in float32.

    Args:
      width: of a token, divided among the heads.
      heads: h; d = width / h.
      dtype: of the computation.
      rngs: of the initialisation.
    """

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        b, n, width = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, width // self.heads)
        query, key, value = (qkv[:, :, i] for i in range(3))
        return self.proj(jax.nn.dot_product_attention(query, key, value).reshape(b, n, width))


class FeedForward(nnx.Module):
    """fc2(GELU(fc1(x))) on every token, with the exact GELU.

    Args:
      width: of a token.
      hidden: of the layer between.
      dtype: of the computation.
      rngs: of the initialisation.
    """

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))


class Block(nnx.Module):
    """x ← x + attention(norm(x)); x ← x + feed-forward(norm(x)).

    Args:
      width: of a token.
      heads: of the attention.
      mlp_ratio: hidden width of the feed-forward layers, in widths.
      dtype: of the computation.
      rngs: of the initialisation.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.attn = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.mlp = FeedForward(width, mlp_ratio * width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nnx.Module):
    """Vision transformer: patches → tokens, and one of the class → blocks of attention → the class token → logits.

    With n patches of p×p pixels, c channels, width w, depth l and k classes there are
    (p²c + 1)·w + w + (n + 1)·w + l·(12w² + 13w) + 2w + (w + 1)·k parameters: at 224×224 and 1,000 classes 5,717,416 (tiny),
    22,050,664 (small) and 86,567,656 (base). Features are the class token after the last norm.

    Dropout is before the head alone, as is timm's `drop_rate`, which the recipe of Xia et al. (2025, arXiv:2403.14715) sets
    to 0.1; the vision transformer's own paper drops after every dense layer instead. Dense layers and position embeddings
    start from N(0, 0.02²), biases at 0, the class token from N(0, 10⁻¹²), the patches' projection and its bias uniformly within
    ±1/√(p²c): timm's initialisation (`weight_init=""`; its truncated normal is cut at ±2, which is 100 standard deviations).

    Args:
      input_shape: (h, w, c), of a multiple of `patch` pixels.
      num_classes: k.
      width: of a token.
      heads: of the attention; they divide the width.
      depth: l.
      patch: p.
      mlp_ratio: hidden width of the feed-forward layers, in widths.
      dropout: rate, before the head.
      dtype: of the computation; parameters, the last norm and the head are float32.
      rngs: of the initialisation.

    Raises:
      InputError: the inputs are no images, the patches do not tile the image, or the heads do not divide the width.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words (ICLR 2021, arXiv:2010.11929), §3.1; the tiny one is of
    Touvron et al. (2021, arXiv:2012.12877), Table 1.
    """

    member_mapping = "vmap"
    head_parts = ("head",)

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int,
        heads: int,
        depth: int = 12,
        patch: int = 16,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        require_image(input_shape)
        rows, columns, channels = input_shape
        if rows % patch or columns % patch:
            raise InputError(f"model.patch: {patch} does not divide {rows}×{columns} pixels; resize or crop the images")
        if width % heads:
            raise InputError(f"model.heads: {heads} do not divide the width of {width}; choose a divisor")
        self.dtype = dtype
        bound = (patch**2 * channels) ** -0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        projection = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=uniform,
            bias_init=uniform,
            dtype=dtype,
            rngs=rngs,
        )
        self.patch_embed = nnx.Dict(proj=projection)
        tokens = 1 + (rows // patch) * (columns // patch)
        self.cls_token = nnx.Param(1e-6 * jax.random.normal(rngs.params(), (1, 1, width)))
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([Block(width, heads, mlp_ratio, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.dropout = Dropout(dropout)
        self.head = Linear(width, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> dict[str, jax.Array]:
        x = self.patch_embed.proj(images)
        b, _, _, width = x.shape
        class_token = jnp.broadcast_to(self.cls_token[...], (b, 1, width))
        x = jnp.concatenate([class_token.astype(self.dtype), x.reshape(b, -1, width)], axis=1)
        x = x + self.pos_embed[...].astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        features = self.norm(x[:, 0].astype(jnp.float32))
        x = self.dropout(features, deterministic=not train, rngs=None if key is None else nnx.Rngs(dropout=key))
        return {"logits": self.head(x), "features": features}
