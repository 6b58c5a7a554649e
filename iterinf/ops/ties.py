"""Max pooling and unpooling with all positions tied for the maximum.

As in the code released in 2017. Ties are common after a ReLU, between zeros.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from iterinf.ops.switches import join_corners, pad_to
from iterinf.types import Size


def max_pool_with_ties(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h//2 w//2 c"], UInt8[Array, "b h//2 w//2 c"]]:
    """Computes the maximum of every 2x2 window, and the bit set of its positions.

    Bit 2 * row + column is set if the maximum is there, see `max_pool_with_switches`.
    """
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    corners = [x[:, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    a, b, c, d = corners
    pooled = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    bits = [
        jnp.where(corner == pooled, jnp.uint8(1 << i), jnp.uint8(0))
        for i, corner in enumerate(corners)
    ]
    return pooled, bits[0] | bits[1] | bits[2] | bits[3]


def max_unpool_ties(
    x: Float[Array, "b h w c"],
    ties: UInt8[Array, "b h w c"],
    shape: Size,
    *,
    fill: float = 0.0,
) -> Float[Array, "b _ _ c"]:
    """Inverts `max_pool_with_ties` like `max_unpool`, at all positions of a maximum."""
    rest = fill * x if fill else jnp.zeros((), x.dtype)
    corners = [jnp.where(ties & jnp.uint8(1 << i), x, rest) for i in range(4)]
    return pad_to(join_corners(corners), shape)
