"""Draws docs/score.png: what iterating a denoiser does where its score is known.

Takes about 10 seconds on 2 cores: python -m launch.score_figure
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from iterinf.inference import refine
from launch.score import (
    Mixture,
    Points,
    compute_cosine,
    compute_log_density,
    compute_score,
    create_mixture,
    denoise,
    find_modes,
    sample,
    smooth,
    train_denoiser,
)

OUTPUT = Path(__file__).parent.parent / "docs" / "score.png"
SIGMA = 0.08
NUM_TRAJECTORIES = 20


def main() -> None:
    """Draws the optimal denoiser beside one that was trained."""
    mixture = create_mixture()
    smoothed = smooth(mixture, SIGMA)
    optimal = jax.jit(jax.vmap(partial(denoise, mixture, SIGMA)))
    learned = train_denoiser(mixture, SIGMA, jax.random.key(0))
    y = sample(smoothed, jax.random.key(1), 10_000)
    cosine = compute_cosine(learned(y) - y, compute_score(smoothed, y)).mean()

    figure = Figure(figsize=(10, 5.7), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    draw_field(left, smoothed, optimal)
    left.set_title(r"Optimal denoiser: $r(y) - y = \sigma^2\,\nabla \log p_\sigma(y)$")
    draw_field(right, smoothed, learned)
    right.set_title(f"Trained DAE: mean cosine to the score {cosine:.2f}")
    left.set_ylabel("$y_2$")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(OUTPUT, dpi=100)
    print(f"wrote {OUTPUT}; mean cosine {cosine:.3f}")


def draw_field(
    axes: Axes, smoothed: Mixture, reconstruct: Callable[[Points], Points]
) -> None:
    """Draws the density, the field r(y) - y, and Eq. 6 from random starts."""
    fine, coarse = make_grid(120), make_grid(20)
    log_density = jax.vmap(partial(compute_log_density, smoothed))(fine)
    axes.contourf(
        *fine.T.reshape(2, 120, 120),
        jnp.exp(log_density).reshape(120, 120),
        12,
        cmap="Blues",
        alpha=0.8,
    )
    axes.quiver(
        *coarse.T,
        *(reconstruct(coarse) - coarse).T,
        angles="xy",
        color="0.45",
        width=0.003,
    )
    trajectories = trace(reconstruct)
    axes.plot(*np.moveaxis(trajectories, -1, 0), color="tab:orange", linewidth=1.5)
    axes.plot(*trajectories[0].T, "o", color="tab:orange", markersize=4, label="start")
    axes.plot(
        [],
        [],
        "0.45",
        marker=r"$\rightarrow$",
        markersize=14,
        linestyle="none",
        label="$r(y) - y$",
    )
    axes.plot([], [], color="tab:orange", label="path of Eq. 6")
    axes.plot(
        *find_modes(smoothed).T,
        "*",
        color="crimson",
        markersize=13,
        label=r"mode of $p_\sigma$",
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="$y_1$", aspect="equal")


def trace(reconstruct: Callable[[Points], Points]) -> Float[np.ndarray, "t n 2"]:
    """The paths of Eq. 6, starts included, from points uniform in the unit square."""
    starts = jax.random.uniform(jax.random.key(2), (NUM_TRAJECTORIES, 2))
    refinement = refine(
        lambda y: reconstruct(y[:, 0, 0])[:, None, None],
        starts[:, None, None],
        step_size=0.1,
        num_iterations=300,
        observe=lambda y: y[:, 0, 0],
    )
    return np.concatenate([starts[None], refinement.observations])


def make_grid(size: int) -> Float[Array, "n 2"]:
    """The centres of size x size cells of the unit square, row by row."""
    ticks = (jnp.arange(size) + 0.5) / size
    return jnp.stack(jnp.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)


if __name__ == "__main__":
    main()
