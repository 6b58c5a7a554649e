"""A Gaussian mixture whose smoothed score is known, and a DAE that learns it.

Points lie in the unit square. x is drawn from the mixture, y = x + sigma * noise from
the smoothed density p_sigma; the best reconstruction of x from y is E[x | y], and
(E[x | y] - y) / sigma^2 = grad log p_sigma(y)                       (paper, Eq. 1).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.scipy.special import logsumexp
from jax.scipy.stats import multivariate_normal
from jaxtyping import Array, Float, Key

Point = Float[Array, "2"]
Points = Float[Array, "*n 2"]


class Mixture(NamedTuple):
    """A mixture of m Gaussians."""

    weights: Float[Array, " m"]  # sum to one
    means: Float[Array, "m 2"]
    covariances: Float[Array, "m 2 2"]


def create_mixture() -> Mixture:
    """Four Gaussians in the unit square, of different weight, width and direction."""
    return Mixture(
        weights=jnp.array([0.3, 0.2, 0.3, 0.2]),
        means=jnp.array([[0.26, 0.30], [0.40, 0.46], [0.77, 0.32], [0.48, 0.80]]),
        covariances=jnp.array(
            [
                [[0.0040, 0.0020], [0.0020, 0.0040]],
                [[0.0060, 0.0030], [0.0030, 0.0040]],
                [[0.0020, -0.0015], [-0.0015, 0.0080]],
                [[0.0140, 0.0010], [0.0010, 0.0015]],
            ]
        ),
    )


def smooth(mixture: Mixture, sigma: float) -> Mixture:
    """The mixture whose density is p_sigma: each covariance grows by sigma^2."""
    noise = sigma**2 * jnp.eye(2)[None]
    return mixture._replace(covariances=mixture.covariances + noise)


def compute_log_density(mixture: Mixture, y: Point) -> Float[Array, ""]:
    """The logarithm of the mixture's density at one point."""
    return logsumexp(_compute_log_joint(mixture, y))


def denoise(mixture: Mixture, sigma: float, y: Point) -> Point:
    """The best reconstruction of one point.

    E[x | y] = sum_m p(m | y) (mu_m + C_m (C_m + sigma^2 I)^-1 (y - mu_m))

    Args:
      mixture: what x is drawn from: p(m), mu_m and C_m.
      sigma: standard deviation of the noise that made y of x.
      y: the corrupted point.
    """
    smoothed = smooth(mixture, sigma)
    residuals = jnp.linalg.solve(
        smoothed.covariances, (y[None] - mixture.means)[..., None]
    )
    expected = mixture.means + (mixture.covariances @ residuals)[..., 0]  # m 2
    return jax.nn.softmax(_compute_log_joint(smoothed, y)) @ expected


@partial(jax.jit, static_argnames="count")
def sample(mixture: Mixture, key: Key[Array, ""], count: int) -> Float[Array, "n 2"]:
    """Draws points."""
    key_component, key_point = jax.random.split(key)
    component = jax.random.categorical(
        key_component, jnp.log(mixture.weights), shape=(count,)
    )
    return jax.random.multivariate_normal(
        key_point, mixture.means[component], mixture.covariances[component]
    )


@jax.jit
def find_modes(mixture: Mixture) -> Float[Array, "m 2"]:
    """Where Newton's method on the log density leads from each mean.

    Components that lie close together lead to the same mode.
    """
    log_density = partial(compute_log_density, mixture)

    def update(_, y):
        return y - jnp.linalg.solve(
            jax.hessian(log_density)(y), jax.grad(log_density)(y)
        )

    return jax.vmap(lambda mean: jax.lax.fori_loop(0, 20, update, mean))(mixture.means)


@jax.jit
def compute_score(mixture: Mixture, y: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
    """The gradient of the log density at points."""
    return jax.vmap(jax.grad(partial(compute_log_density, mixture)))(y)


class Denoiser(nn.Module):
    """A small network from corrupted points to points."""

    width: int = 64

    @nn.compact
    def __call__(self, y: Points) -> Points:
        """Reconstructs points."""
        hidden = 8.0 * (y - 0.5)  # the unit square, several units wide
        for _ in range(2):
            hidden = nn.tanh(nn.Dense(self.width)(hidden))
        return y + nn.Dense(2)(hidden)


def train_denoiser(
    mixture: Mixture, sigma: float, key: Key[Array, ""], num_steps: int = 2000
) -> Callable[[Points], Points]:
    """Trains a denoising autoencoder with Gaussian corruption.

    min E |r(x + sigma * noise) - x|^2, with fresh x and noise, 512 of them, a step.

    Returns:
      r, a function of points.
    """
    model = Denoiser()
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    key_init, key_train = jax.random.split(key)
    params = model.init(key_init, jnp.zeros((1, 2)))

    def compute_loss(params, key):
        key_point, key_noise = jax.random.split(key)
        x = sample(mixture, key_point, 512)
        y = x + sigma * jax.random.normal(key_noise, x.shape)
        return jnp.mean((model.apply(params, y) - x) ** 2)

    def update(carry, key):
        params, state = carry
        gradient = jax.grad(compute_loss)(params, key)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key_train, num_steps)
    (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    return lambda y: model.apply(params, y)


def compute_cosine(a: Points, b: Points) -> Float[Array, "*n"]:
    """The cosine of the angle between vectors."""
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.sum(a * b, axis=-1) / lengths


def _compute_log_joint(mixture: Mixture, y: Point) -> Float[Array, " m"]:
    """The logarithm of p(m) p(y | m)."""
    log_likelihoods = jax.vmap(multivariate_normal.logpdf, (None, 0, 0))(
        y, mixture.means, mixture.covariances
    )
    return jnp.log(mixture.weights) + log_likelihoods
