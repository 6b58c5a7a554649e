"""64-bit integers as two 32-bit words, since JAX has no 64-bit ones by default."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32


class Codes(NamedTuple):
    """An array of unsigned 64-bit integers."""

    high: UInt32[Array, "*shape"]
    low: UInt32[Array, "*shape"]

    def at_order(self, order: Int[Array, "v n"]) -> "Codes":
        """Reorders every row."""
        return Codes(*(jnp.take_along_axis(word, order, axis=1) for word in self))

    def differ_from_previous(self) -> Bool[Array, "v n"]:
        """Whether each differs from the previous one in its row; True for the first."""
        different = [word[:, 1:] != word[:, :-1] for word in self]
        return jnp.pad(different[0] | different[1], ((0, 0), (1, 0)), constant_values=1)

    def __add__(self, other: Any) -> "Codes":
        low = self.low + other.low
        carry = (low < self.low).astype(jnp.uint32)
        return Codes(self.high + other.high + carry, low)


def sort_codes(codes: Codes, num_bits: Int[Array, ""]) -> Int[Array, "v n"]:
    """Returns the order that sorts every row of codes with at most `num_bits` bits.

    A radix sort: each pass sorts words that combine a few bits of the code with the
    current position, several times faster in XLA than sorting pairs.
    """
    n = codes.low.shape[1]
    place_bits = max(1, math.ceil(math.log2(n)))
    digit_bits = 32 - place_bits
    places = jnp.arange(n, dtype=jnp.uint32)

    def sort_row(i, order, high, low):
        shift = i * digit_bits
        digit = shift_word(low[order], -shift) | shift_word(high[order], 32 - shift)
        words = jax.lax.sort((digit << place_bits) | places)
        return order[(words & ((1 << place_bits) - 1)).astype(jnp.int32)]

    def sort_pass(i, orders):  # separate rows, which XLA sorts in parallel
        return [sort_row(i, *row) for row in zip(orders, *codes, strict=True)]

    start = [places.astype(jnp.int32)] * len(codes.low)
    num_passes = -(-num_bits // digit_bits)
    return jnp.stack(jax.lax.fori_loop(0, num_passes, sort_pass, start))


def search(
    codes: Codes,
    query: Codes,
    first: Int[Array, " q"],
    last: Int[Array, " q"],
    longest: Int[Array, ""],
) -> Int[Array, " q"]:
    """Finds the first position in [first, last) whose code is not below the query.

    A binary search; `longest` is the length of the longest interval.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        word = Codes(codes.high[middle], codes.low[middle])
        below = (word.high < query.high) | (
            (word.high == query.high) & (word.low < query.low)
        )
        below &= low < high
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    steps = 32 - jax.lax.clz(longest)
    return jax.lax.fori_loop(0, steps, halve, (first, last))[0]


def negate(code: Codes) -> Codes:
    """Computes the two's complement."""
    return Codes(~code.high, ~code.low) + Codes(jnp.uint32(0), jnp.uint32(1))


def shift_word(word: UInt32[Array, "*shape"], places: Any) -> UInt32[Array, "*shape"]:
    """Shifts bits left, or right where `places` is negative."""
    amount = jnp.abs(places).astype(jnp.uint32)
    amount = jnp.broadcast_to(amount, word.shape)
    return jnp.where(
        jnp.broadcast_to(places, word.shape) >= 0,
        jax.lax.shift_left(word, amount),
        jax.lax.shift_right_logical(word, amount),
    )
