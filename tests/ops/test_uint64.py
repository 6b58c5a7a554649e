"""Integers of two words against Python's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iterinf.ops.uint64 import Codes, negate, search, shift_word, sort_codes


def draw_integers(rng, shape, num_bits):
    """Integers of so many bits, with equal ones among them."""
    few = rng.integers(0, 2**num_bits, shape[-1] // 2, dtype=np.uint64)
    return rng.choice(few, shape)


def to_codes(integers):
    words = (integers >> np.uint64(32), integers & np.uint64(2**32 - 1))
    return Codes(*(jnp.asarray(word.astype(np.uint32)) for word in words))


def to_integers(codes):
    high, low = (np.asarray(word, np.uint64) for word in codes)
    return (high << np.uint64(32)) | low


@pytest.mark.parametrize("num_bits", [1, 20, 33, 63])
def test_rows_are_sorted_and_equal_ones_keep_their_order(rng, num_bits):
    integers = draw_integers(rng, (3, 500), num_bits)
    order = jax.jit(sort_codes)(to_codes(integers), jnp.int32(num_bits))
    np.testing.assert_array_equal(order, np.argsort(integers, axis=1, kind="stable"))
    codes = to_codes(integers).at_order(order)
    ordered = np.sort(integers, axis=1)
    np.testing.assert_array_equal(to_integers(codes), ordered)
    expected = np.diff(ordered, axis=1, prepend=ordered[:, :1] + np.uint64(1)) != 0
    np.testing.assert_array_equal(codes.differ_from_previous(), expected)


def test_sums_and_negatives_wrap(rng):
    left, right = draw_integers(rng, (2, 100), 63) * np.uint64(2) + np.uint64(1)
    found = to_integers(to_codes(left) + to_codes(right))
    np.testing.assert_array_equal(found, left + right)
    found = to_integers(to_codes(left) + negate(to_codes(left)))
    np.testing.assert_array_equal(found, np.zeros(100))


def test_search_finds_the_first_place_that_is_not_below(rng):
    integers = np.sort(draw_integers(rng, (300,), 40))
    queries = np.concatenate([integers[::7], integers[::7] + np.uint64(1)])
    first, last = jnp.full(len(queries), 20), jnp.full(len(queries), 280)
    found = search(to_codes(integers), to_codes(queries), first, last, jnp.int32(260))
    expected = 20 + np.searchsorted(integers[20:280], queries)
    np.testing.assert_array_equal(found, expected)


def test_a_word_is_shifted_both_ways_and_out():
    word = jnp.uint32(0b1011)
    for places in (0, 3, 31, 32, 60, -1, -3, -32, -50):
        integer = 0b1011 << places if places >= 0 else 0b1011 >> -places
        assert int(shift_word(word, places)) == integer % 2**32
