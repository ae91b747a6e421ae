"""Exact: the clipped surrogate where the policy has moved far, and where it has not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives.parts import policy

SHAPE = (1, 2, 2, 3)  # B S G T


def loss_and_gradient(logp, old_logp, advantage):
    """policy_loss of thoughts of three tokens, its gradient in their log-probabilities, and its metrics."""
    answer = jnp.zeros(SHAPE[:3])
    thoughts = ThoughtBatch(jnp.ones(SHAPE, jnp.int32), jnp.full(SHAPE[:3], 3), old_logp)

    def loss(logp):
        logps = Logps(logp, answer, answer, jnp.zeros(SHAPE))
        found, metrics = policy.policy_loss(logps, thoughts, jnp.full(SHAPE[:3], advantage), policy.Policy())
        return found[0], metrics

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logp)
    return value, gradient, metrics


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "per_token", "slope"),
    [
        (200.0, 0.5, -1.2 * 0.5, 0.0),  # clipped from above
        (200.0, -0.5, 3.0 * 0.5, 0.0),  # the dual clip
        (-200.0, 0.5, 0.0, 0.0),
        (-200.0, -0.5, 0.8 * 0.5, 0.0),  # clipped from below
    ],
)
def test_a_policy_that_moved_far_has_finite_gradients(log_ratio, advantage, per_token, slope):
    old_logp = jnp.full(SHAPE, -250.0)
    value, gradient, metrics = loss_and_gradient(old_logp + log_ratio, old_logp, advantage)
    assert float(value) == pytest.approx(np.prod(SHAPE) * per_token, rel=1e-6, abs=1e-30)
    np.testing.assert_array_equal(gradient, np.full(SHAPE, slope))
    assert all(np.isfinite(found).all() for found in metrics.values())


def test_the_bound_changes_no_bit_of_usual_ratios(monkeypatch):
    """Log-ratios up to 3, with both signs of the advantage, against exp(logp - old_logp) as it stands."""
    rng = np.random.default_rng(0)
    old_logp = jnp.asarray(rng.uniform(-5, -3, SHAPE), jnp.float32)
    logp = old_logp + jnp.asarray(rng.uniform(-3, 3, SHAPE), jnp.float32)
    for advantage in (0.5, -0.5):
        bounded = loss_and_gradient(logp, old_logp, advantage)
        with monkeypatch.context() as patched:
            patched.setattr(policy, "probability_ratio", lambda logp, old_logp: jnp.exp(logp - old_logp))
            plain = loss_and_gradient(logp, old_logp, advantage)
        assert np.abs(bounded[1]).max() > 0
        jax.tree.map(np.testing.assert_array_equal, bounded, plain)
