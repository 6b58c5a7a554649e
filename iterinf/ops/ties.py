"""Max pooling and unpooling with every position that ties for the maximum.

As the code released in 2017 has it. After a ReLU ties are common: its zeros are equal.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from iterinf.ops.switches import join_corners
from iterinf.types import Size


def max_pool_with_ties(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h//2 w//2 c"], UInt8[Array, "b h//2 w//2 c"]]:
    """Takes the maximum of every 2x2 window and says where it was reached.

    Args:
      x: any real values. A last odd row or column is dropped.

    Returns:
      pooled: the maxima.
      ties: bit 2 * row + column of each is set where the window's value is the maximum.
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
    """Puts each value back to every position where its maximum stood.

    Args:
      x: values, one a window.
      ties: from `max_pool_with_ties`.
      shape: (height, width) of the result; an odd last row or column is zeros.
      fill: what share of its value the other positions of a window get.

    Returns:
      The unpooled map, of x's dtype.
    """
    rest = fill * x if fill else jnp.zeros((), x.dtype)
    unpooled = join_corners(
        [jnp.where(ties & jnp.uint8(1 << i), x, rest) for i in range(4)]
    )
    rows, columns = shape[0] - unpooled.shape[1], shape[1] - unpooled.shape[2]
    return jnp.pad(unpooled, ((0, 0), (0, rows), (0, columns), (0, 0)))
