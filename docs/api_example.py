"""Bilevel training with `bljust_jax.combine_levels` on a problem without speech.

Points in 30 dimensions lie near a plane; 4 of them have a label. The upper level fits the labels,
the lower level reconstructs all points from two numbers each (an autoencoder); the encoder is
shared. Penalty 0 trains on labels alone; a penalty that rises to 1 also solves the lower level.
"""

import jax
import jax.numpy as jnp
import optax

from bljust_jax import Grads, combine_levels

k_plane, k_at, k_noise, k_encoder, k_decoder = jax.random.split(jax.random.key(0), 5)
at, plane = jax.random.normal(k_at, (1024, 2)), jax.random.normal(k_plane, (2, 30))
points = at @ plane + 0.6 * jax.random.normal(k_noise, (1024, 30))
labels = at @ jnp.array([1.0, -2.0])


def upper(p, n=slice(0, 4)):
    return jnp.mean((points[n] @ p["encoder"] @ p["regressor"] - labels[n]) ** 2)


def lower(p, n=slice(0, 512)):
    return jnp.mean((points[n] @ p["encoder"] @ p["decoder"] - points[n]) ** 2)


def train(penalty, steps=1500):
    """Test error after training with gamma rising linearly to `penalty` over half of the steps."""
    encoder = 0.1 * jax.random.normal(k_encoder, (30, 2))
    decoder = 0.1 * jax.random.normal(k_decoder, (2, 30))
    params = {"encoder": encoder, "regressor": jnp.ones(2), "decoder": decoder}
    optimizer = optax.chain(combine_levels(), optax.adam(0.01))

    @jax.jit
    def step(params, state, gamma):
        f, g = jax.grad(upper)(params), jax.grad(lower)(params)
        owned = {"encoder": None, "regressor": f["regressor"], "decoder": g["decoder"]}
        heads = {"regressor": None, "decoder": None}
        levels = ({"encoder": f["encoder"], **heads}, {"encoder": g["encoder"], **heads})
        grads = Grads(owned, levels)
        updates, state = optimizer.update(grads, state, params, level_weights=(1.0, gamma))
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for k in range(steps):
        params, state = step(params, state, penalty * min(1.0, 2 * k / steps))
    return float(upper(params, slice(512, None)))


if __name__ == "__main__":
    for penalty in (0.0, 1.0):
        print(f"penalty {penalty:g}: test error {train(penalty):.3f}")
