"""Max pooling with switches (the positions of the maxima), and unpooling.

Implemented with strided slices and selects: on a CPU the gradient of
`flax.linen.max_pool` (select-and-scatter) is about ten times slower.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from iterinf.types import Size


@jax.custom_vjp
def _pool_even(x):
    a, b, c, d = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    in_top = jnp.where(b > a, jnp.uint8(1), jnp.uint8(0))
    in_bottom = jnp.where(d > c, jnp.uint8(3), jnp.uint8(2))
    return jnp.maximum(top, bottom), jnp.where(bottom > top, in_bottom, in_top)


def _pool_even_forward(x):
    pooled, switches = _pool_even(x)
    return (pooled, switches), switches


def _pool_even_backward(switches, cotangents):
    return (_unpool_even(cotangents[0], switches),)


_pool_even.defvjp(_pool_even_forward, _pool_even_backward)


def _unpool_even(x, switches, fill=0.0):
    rest = fill * x if fill else jnp.zeros((), x.dtype)
    return join_corners([jnp.where(switches == i, x, rest) for i in range(4)])


def join_corners(
    corners: list[Float[Array, "b h w c"]],
) -> Float[Array, "b 2*h 2*w c"]:
    """Interleaves four maps to 2x2 windows; map 2 * row + column at (row, column)."""
    b, h, w, c = corners[0].shape
    rows = [jnp.stack(corners[i : i + 2], axis=3) for i in (0, 2)]  # b h w 2 c
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)


def max_pool_with_switches(
    x: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h//2 w//2 c"], UInt8[Array, "b h//2 w//2 c"]]:
    """Computes the maximum of every 2x2 window and its position.

    pooled = max(x[2i, 2j], x[2i, 2j+1], x[2i+1, 2j], x[2i+1, 2j+1])

    Args:
      x: The input; an odd last row or column is dropped.

    Returns:
      pooled: The maxima, whose gradient flows to the switch's position only.
      switches: The position 2 * row + column of the maximum in its window, 0..3; the
        first position on ties.

    Source: paper, section 4.3; Zeiler et al. 2011 ("switches").
    """
    height, width = x.shape[1:3]
    return _pool_even(x[:, : height // 2 * 2, : width // 2 * 2])


def max_unpool(
    x: Float[Array, "b h w c"],
    switches: UInt8[Array, "b h w c"],
    shape: Size,
    *,
    fill: float = 0.0,
) -> Float[Array, "b _ _ c"]:
    """Puts each value at the position of its maximum, and `fill` times it elsewhere.

    Args:
      x: The values, one per window.
      switches: The positions in the windows, from `max_pool_with_switches`.
      shape: The (height, width) of the result, 2h or 2h + 1 by 2w or 2w + 1; an odd
        last row or column is zero.
      fill: The factor for the other three positions of a window: 0 is unpooling as
        published, 1 is nearest-neighbour upsampling.

    Returns:
      The unpooled map, in the dtype of x.

    Raises:
      ValueError: If the windows do not tile `shape`.

    Source: paper, section 4.3; equals `torch.nn.functional.max_unpool2d`.
    """
    height, width = shape
    if (height // 2, width // 2) != x.shape[1:3]:
        raise ValueError(f"{x.shape[1:3]} windows of 2x2 do not tile shape {shape}")
    return pad_to(_unpool_even(x, switches, fill), shape)


def pad_to(x: Float[Array, "b h w c"], shape: Size) -> Float[Array, "b _ _ c"]:
    """Adds the zero row and column that pooling drops from odd sizes."""
    rows, columns = shape[0] - x.shape[1], shape[1] - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))
