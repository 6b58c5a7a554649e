"""High-dimensional Gaussian filtering on the permutohedral lattice."""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from iterinf.ops.uint64 import Codes, negate, search, shift_word, sort_codes

_LANES = 4  # entries of a vertex that the splat sums before it scatters
_CHUNK = 1 << 14  # vertices per neighbour lookup on a CPU, for its caches
_SMALLEST = 1 << 12  # smallest size, in vertices, with its own program
_FARTHEST = 1 << 16  # standard deviations
_SHARES = (64, 32, 16, 8, 4, 2, 1)


class Lattice(NamedTuple):
    """The lattice vertices around n points in d dimensions, v = d + 1 per point.

    Each vertex has a remainder 0..d; the simplex of a point has one vertex of each.
    Arrays have room for the maximum number of vertices, m = n v.
    """

    weights: Float[Array, "v n"]  # barycentric, by remainder; sum to one over v
    vertices: Int[Array, "v n"]  # indices of the vertices around each point
    neighbors: Int[Array, "v 2 m"]  # of each vertex along v directions; m: none
    lane_points: Int[Array, "lanes m"]  # entries by vertex, up to 4 per group
    lane_weights: Float[Array, "lanes m"]  # their weights; 0: no entry
    group_vertices: Int[Array, " m"]  # vertex of each group; m: no group
    num_vertices: Int[Array, ""]  # number of vertices in use


def build_lattice(features: Float[Array, "n d"]) -> Lattice:
    """Finds the vertices around every point, and their neighbours.

    Exact for any number of vertices: they are identified by sorting, not by a hash
    table of limited size.

    Args:
      features: The features of n >= 1 points in d >= 1 dimensions, in standard
        deviations of the Gaussian. Gradients flow through `weights`, which are linear
        within a simplex.

    Returns:
      The lattice. Its weights are nan if a feature is nan or beyond +-2^16, where
      float32 cannot resolve cells, or if the bounding box has over 2^64 cells.

    Source: Adams, Baek & Davis 2010, "Fast High-Dimensional Filtering Using the
      Permutohedral Lattice", sections 3.1 and 3.2.
    """
    cells, rank, weights = _locate(features)
    codes, offsets, num_bits = _encode(cells, rank)
    placed = jnp.all(jnp.abs(features) < _FARTHEST) & (num_bits <= 64)
    weights = jnp.where(placed, weights, jnp.nan)
    order = sort_codes(codes, num_bits)
    codes = codes.at_order(order)
    is_first = codes.differ_from_previous()
    number = jnp.cumsum(is_first.reshape(-1), dtype=jnp.int32).reshape(order.shape) - 1
    num_vertices = number[-1, -1] + 1
    rows = jnp.arange(len(order))[:, None]
    return Lattice(
        weights=weights,
        vertices=jnp.zeros_like(order).at[rows, order].set(number),
        neighbors=_find_neighbors(codes, is_first, number, offsets),
        num_vertices=num_vertices,
        **_group_entries(jax.lax.stop_gradient(weights), order, is_first, number),
    )


def fits_lattice(extents: Float[np.ndarray, " d"]) -> bool:
    """Whether the lattice of any points in [0, extents] is certain to be finite."""
    if np.max(extents) >= _FARTHEST:
        return False
    elevation = np.abs(_make_elevation(len(extents)))[:-1].astype(np.float64)
    lengths = elevation @ extents + 8  # rounding, wrapping and a border: at most 6
    return bool(np.ceil(np.log2(lengths)).sum() <= 64)


def filter_on_lattice(
    lattice: Lattice, values: Float[Array, "n c"]
) -> Float[Array, "n c"]:
    """Sums the values of all points, weighted by a Gaussian of their distance.

    out_i ~ sum_j exp(-|f_i - f_j|^2 / 2) values_j, up to a constant factor: splat to
    the vertices, blur by [1/2 1 1/2] along v directions, slice, and divide by 1 + 2^-d,
    the gain of the blur at a vertex. Linear in the values. Differentiable in the values
    and the lattice's weights, in reverse mode, and a second time in the values only.

    Source: Adams, Baek & Davis 2010, section 3.3; its factor 1 / (1 + 2^-d) as in
      Kraehenbuehl & Koltun's code.
    """
    return _filter(lattice.weights, lattice, values)


def filter_exactly(
    features: Float[Array, "n d"], values: Float[Array, "n c"]
) -> Float[Array, "n c"]:
    """Computes the sum that the lattice approximates, in O(n^2) time and O(n c) memory.

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) values_j, features in standard deviations.
    """

    @jax.checkpoint
    def sum_at(feature):
        distance = jnp.sum(jnp.square(features - feature[None]), axis=1)
        return jnp.dot(jnp.exp(-distance / 2), values, precision="highest")

    return jax.lax.map(sum_at, features, batch_size=256)


def _locate(
    features: Float[Array, "n d"],
) -> tuple[Int[Array, "v n"], Int[Array, "v n"], Float[Array, "v n"]]:
    """Finds the simplex around every point.

    Returns:
      The cell of the vertex of remainder 0 (its lattice coordinates / v), the rank of
      each coordinate's distance from it (largest first), and the barycentric weights by
      remainder.
    """
    d = features.shape[1]
    v = d + 1
    elevate = jnp.asarray(_make_elevation(d))
    elevated = jnp.einsum("vd,nd->vn", elevate, features, precision="highest")
    fixed = jax.lax.stop_gradient(elevated)
    cells = jnp.round(fixed).astype(jnp.int32)
    above = fixed - cells
    ranks = [cells.sum(axis=0)] * v
    for i, j in combinations(range(v), 2):  # ties keep their order
        is_after = (above[i] < above[j]).astype(jnp.int32)
        ranks[i], ranks[j] = ranks[i] + is_after, ranks[j] + 1 - is_after
    rank = jnp.stack(ranks)
    wrap = (rank < 0).astype(jnp.int32) - (rank > d).astype(jnp.int32)
    cells, rank = cells + wrap, rank + v * wrap
    offset = elevated - cells
    by_rank = jnp.stack(
        [sum(jnp.where(rank[i] == k, offset[i], 0) for i in range(v)) for k in range(v)]
    )
    above_next = by_rank[::-1] - jnp.roll(by_rank[::-1], 1, axis=0)
    return cells, rank, above_next.at[0].add(1)


def _make_elevation(d: int) -> Float[np.ndarray, "v d"]:
    """Creates the map from features to the lattice's plane, with cells of length 1."""
    index = np.arange(1, d + 1)
    scale = math.sqrt(2 / 3) / np.sqrt(index * (index + 1))
    basis = np.triu(np.ones((d + 1, d))) - np.diag(index, -1)[:, :d]
    return (basis * scale).astype(np.float32)


def _encode(
    cells: Int[Array, "v n"], rank: Int[Array, "v n"]
) -> tuple[Codes, Int[Array, " d"], Int[Array, ""]]:
    """Packs the first d cell coordinates of each vertex into 64 bits.

    The vertex of remainder k is one cell lower in the coordinates ranked above d - k.
    Fields have room for one step beyond the outermost vertex.

    Returns:
      The codes [remainder, point], the lowest bit of every field, and the bits in use.
    """
    v = len(cells)
    lowest = cells[:-1].min(axis=1) - 2
    extent = (cells[:-1].max(axis=1) + 1 - lowest).astype(jnp.uint32)
    widths = 32 - jax.lax.clz(extent).astype(jnp.int32)
    offsets = jnp.cumsum(widths) - widths
    code = Codes(jnp.uint32(0), jnp.uint32(0))
    for i in range(v - 1):
        moved = rank[i][None] > np.arange(v - 1, -1, -1)[:, None]
        field = (cells[i][None] - moved - lowest[i]).astype(jnp.uint32)
        code = Codes(
            code.high | shift_word(field, offsets[i] - 32),
            code.low | shift_word(field, offsets[i]),
        )
    return code, offsets, widths.sum()


def _find_neighbors(
    codes: Codes,
    is_first: Bool[Array, "v n"],
    number: Int[Array, "v n"],
    offsets: Int[Array, " d"],
) -> Int[Array, "v 2 m"]:
    """Looks up the vertices one step away along v directions.

    A step along direction j adds 1 to all lattice coordinates except the j-th, from
    which it subtracts d. It leads from remainder k < d to k + 1, one cell back along j;
    and from remainder d to 0, one cell forward in all coordinates except j.
    """
    v, n = is_first.shape
    m = v * n
    slot = jnp.where(is_first, number, m).reshape(-1)

    def scatter(values):  # those of first entries, to their vertices
        return jnp.zeros_like(values).at[slot].set(values, mode="drop")

    codes = Codes(*(scatter(word.reshape(-1)) for word in codes))
    remainders = scatter(jnp.repeat(jnp.arange(v, dtype=jnp.int32), n))
    ends = number[:, -1] + 1
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    units = _make_units(offsets)
    zero = Codes(jnp.uint32(0), jnp.uint32(0))
    everywhere = sum(units, zero)
    longest = jnp.max(ends - starts)

    def find_in_chunk(chunk, i, neighbors):
        def take_chunk(array, start):
            return jax.lax.dynamic_slice(array, (start,), (chunk,))

        start = jnp.minimum(i * chunk, m - chunk)
        numbers = start + jnp.arange(chunk, dtype=jnp.int32)
        own = Codes(*(take_chunk(word, start) for word in codes))
        k = take_chunk(remainders, start)
        target = (k + 1) % v
        in_use = numbers < ends[-1]
        for j in range(v):
            unit = units[j] if j < v - 1 else zero
            back = negate(unit)
            onward = everywhere + back
            step = Codes(
                *(jnp.where(k < v - 1, b, o) for b, o in zip(back, onward, strict=True))
            )
            query = own + step
            place = search(codes, query, starts[target], ends[target], longest)
            match = in_use & (place < ends[target])
            for word, wanted in zip(codes, query, strict=True):
                match &= word[jnp.minimum(place, m - 1)] == wanted
            after = jnp.where(match, place, m)
            neighbors = jax.lax.dynamic_update_slice(
                neighbors, after[None, None], (j, 1, start)
            )
            neighbors = neighbors.at[j, 0, after].set(numbers, mode="drop")
        return neighbors

    def find_in_chunks(chunk):
        num_chunks = -(-ends[-1] // chunk)
        nowhere = jnp.full((v, 2, m), m, jnp.int32)
        return jax.lax.fori_loop(0, num_chunks, partial(find_in_chunk, chunk), nowhere)

    # On other devices every step of a loop waits for the host.
    return jax.lax.platform_dependent(
        cpu=partial(find_in_chunks, min(m, _CHUNK)), default=partial(find_in_chunks, m)
    )


def _make_units(offsets: Int[Array, " d"]) -> list[Codes]:
    """Makes the codes of one cell along each coordinate."""
    one = jnp.ones_like(offsets, jnp.uint32)
    words = zip(shift_word(one, offsets - 32), shift_word(one, offsets), strict=True)
    return [Codes(*pair) for pair in words]


def _group_entries(
    weights: Float[Array, "v n"],
    order: Int[Array, "v n"],
    is_first: Bool[Array, "v n"],
    number: Int[Array, "v n"],
) -> dict[str, Array]:
    """Arranges the entries of every vertex in groups of `_LANES`.

    The splat gathers and sums lanes, and scatters only the sums: on a CPU five times
    faster than scattering every entry.
    """
    m = order.size
    places = jnp.arange(m, dtype=jnp.int32)
    first = is_first.reshape(-1)
    start = jax.lax.cummax(jnp.where(first, places, 0))
    lane = (places - start) % _LANES
    group = jnp.cumsum(lane == 0, dtype=jnp.int32) - 1
    points = order.reshape(-1)
    sorted_weights = jnp.take_along_axis(weights, order, axis=1).reshape(-1)
    empty = jnp.zeros((_LANES, m), jnp.int32)
    return {
        "lane_points": empty.at[lane, group].set(points),
        "lane_weights": empty.astype(weights.dtype).at[lane, group].set(sorted_weights),
        "group_vertices": jnp.full(m, m, jnp.int32).at[group].set(number.reshape(-1)),
    }


def _switch_by_size(compute: Callable[[int], Any], lattice: Lattice) -> Any:
    """Calls `compute` with the smallest size that holds all vertices.

    Sizes are m, m / 2, m / 4 .. m / 64, so that memory and time scale with the number
    of vertices in use although shapes are static.
    """
    m = lattice.group_vertices.size
    sizes = [-(-m // share) for share in _SHARES]
    sizes = [size for size in sizes if size >= min(m, _SMALLEST)]
    branch = jnp.searchsorted(jnp.asarray(sizes), lattice.num_vertices)
    return jax.lax.switch(branch, [partial(compute, size) for size in sizes])


@jax.custom_vjp
def _filter(
    weights: Float[Array, "v n"], lattice: Lattice, values: Float[Array, "n c"]
) -> Float[Array, "n c"]:
    def compute(size):
        blurred = _splat_and_blur(size, lattice, values)
        return _slice(weights, lattice.vertices, blurred)

    return _switch_by_size(compute, lattice)


def _filter_forward(weights, lattice, values):
    return _filter(weights, lattice, values), (weights, lattice, values)


def _filter_backward(residuals, cotangent):
    """Computes the transpose, which blurs in reverse; the weights enter twice."""
    weights, lattice, values = residuals
    weights = _refuse_derivatives(weights)

    def compute(size):
        blurred = _splat_and_blur(size, lattice, values)
        transposed = _splat_and_blur(size, lattice, cotangent, reverse=True)
        entering = [
            jnp.sum(cotangent * blurred[vertex] + values * transposed[vertex], axis=1)
            for vertex in lattice.vertices
        ]
        return jnp.stack(entering), _slice(weights, lattice.vertices, transposed)

    entering, transposed = _switch_by_size(compute, lattice)
    zeros = jax.tree.map(_make_zero_cotangent, lattice)
    return entering / _compute_gain(len(weights)), zeros, transposed


_filter.defvjp(_filter_forward, _filter_backward)


@jax.custom_jvp
def _refuse_derivatives(weights: Float[Array, "v n"]) -> Float[Array, "v n"]:
    """The identity, whose derivative raises: the splat's weights are not traced."""
    return weights


@_refuse_derivatives.defjvp
def _raise_error(primals, tangents):
    raise NotImplementedError(
        "the permutohedral lattice has only first derivatives in its features; "
        "use filter_exactly for higher ones"
    )


def _make_zero_cotangent(x: Array) -> Any:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros_like(x) if floating else np.zeros(x.shape, jax.dtypes.float0)


def _splat_and_blur(
    size: int, lattice: Lattice, values: Float[Array, "n c"], *, reverse: bool = False
) -> Float[Array, "{size}+1 c"]:
    """Computes the values at the vertices, and a last row of 0 for missing ones."""
    m = lattice.group_vertices.size
    num_groups = min(m, -(-(m + (_LANES - 1) * size) // _LANES))
    sums = sum(
        lattice.lane_weights[lane, :num_groups, None]
        * values[lattice.lane_points[lane, :num_groups]]
        for lane in range(_LANES)
    )
    vertices = lattice.group_vertices[:num_groups]
    x = jnp.zeros((size + 1, values.shape[1]), values.dtype)
    x = x.at[vertices].add(sums, mode="drop", indices_are_sorted=True)
    neighbors = jnp.minimum(lattice.neighbors[:, :, :size], size)
    neighbors = jnp.pad(neighbors, ((0, 0), (0, 0), (0, 1)), constant_values=size)

    def blur(x, neighbors):
        before, after = neighbors
        return x + (x[before] + x[after]) / 2, None

    return jax.lax.scan(blur, x, neighbors, reverse=reverse)[0]


def _slice(
    weights: Float[Array, "v n"], vertices: Int[Array, "v n"], x: Float[Array, "m c"]
) -> Float[Array, "n c"]:
    """Interpolates between the vertices around each point."""
    sliced = sum(w[:, None] * x[v] for w, v in zip(weights, vertices, strict=True))
    return sliced / _compute_gain(len(weights))


def _compute_gain(v: int) -> float:
    """Returns the weight of a vertex's own value after the blur."""
    return 1 + 2.0 ** (1 - v)
