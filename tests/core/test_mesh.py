"""Invariance: the same numbers on every mesh of devices, and clear errors for meshes that cannot be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.generation.token_logps import token_logps
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models.transformer import axis_names
from dwrl_jax.objectives import dwrl
from dwrl_jax.training.step import gradient
from tests.small import assert_trees_close, in_process_of_devices, make_batch, make_judge

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]  # the last has twice as many devices as key heads


def a_step(sizes, spread=False):
    """Thoughts, their scores, loss and gradient of eight pairs on a mesh; everything on the host.

    Nothing after the scores is computed where decoding is `spread`: it changes no gradient.
    """
    judge, params = make_judge(vocab_size=32)
    batch = jax.tree.map(np.asarray, make_batch(pairs=8, vocab_size=32))
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)), jax.devices()[: np.prod(sizes)])
    whole, places = sharding.whole(mesh), sharding.shardings(mesh, axis_names(judge.model.config))
    loss = dwrl.phases(dwrl.Hyper(updates="joint"))["joint"]
    options = SamplerOptions(group_size=6, max_thought=40, spread=spread)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, places)
        draw = jax.jit(functools.partial(sample, judge, options), out_shardings=whole)
        thoughts, log_scores, _ = draw(params, batch, jax.random.key(0))
        if spread:
            return jax.device_get((thoughts, log_scores))
        update = jax.jit(functools.partial(gradient, judge, loss, micro_batches=2), out_shardings=(places, whole))
        grads, metrics = update(params, batch, thoughts)
        spread = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), grads, places)
        assert all(jax.tree.leaves(spread))
    return jax.device_get((thoughts, log_scores, metrics["loss"], grads))


def every_mesh_agrees():
    (thoughts, log_scores, loss, grads), *others = map(a_step, MESHES)
    assert len(set(thoughts.thought_len.ravel())) > 4, "thoughts of one length would prove little"
    for found in (*others, a_step((2, 2, 2), spread=True)):
        np.testing.assert_array_equal(found[0].thought, thoughts.thought)
        np.testing.assert_array_equal(found[0].thought_len, thoughts.thought_len)
        np.testing.assert_allclose(found[0].old_logp, thoughts.old_logp, atol=1e-5)
        np.testing.assert_allclose(found[1], log_scores, atol=1e-5)
    for found in others:
        np.testing.assert_allclose(found[2], loss, atol=1e-5)
        assert_trees_close(found[3], grads, 1e-5)


def weights_are_spread():
    """Each device holds its part of matrices and of their moments, and tensors are split where the table says."""
    judge, params = make_judge(vocab_size=32)
    boxed = axis_names(judge.model.config)
    mesh = sharding.make_mesh({"data": 2, "fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    places = sharding.shardings(mesh, boxed)
    moments = optax.adamw(1e-3).init(params)
    for tree, found in ((params, places), (moments, sharding.like_parameters(mesh, moments, boxed))):
        laid = jax.device_put(tree, found)
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(laid))
        own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(laid))
        assert own < 0.3 * total, "a quarter, and the small ones whole"
    decoding = sharding.shardings(mesh, boxed, sharding.DECODE)
    kernel = params["params"]["layers"]["q"]["kernel"]
    shapes = [rule["params"]["layers"]["q"]["kernel"].shard_shape(kernel.shape) for rule in (places, decoding)]
    layers, hidden, heads = kernel.shape[0], kernel.shape[1], kernel.shape[2]
    assert [shape[:3] for shape in shapes] == [(layers, hidden // 2, heads // 2), (layers, hidden, heads // 2)]


def on_eight_devices():
    weights_are_spread()
    every_mesh_agrees()


def test_the_state_is_spread_and_thoughts_losses_and_gradients_are_the_same_on_every_mesh():
    in_process_of_devices(on_eight_devices, 8)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"data": 3, "fsdp": -1, "tensor": 1}, "mesh.data=3, mesh.fsdp=-1, mesh.tensor=1: .* the 1 devices"),
        ({"data": -1, "fsdp": -1, "tensor": 1}, "one of them may be -1"),
        ({"data": 0, "fsdp": 1, "tensor": 1}, "sizes are at least 1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(sizes, jax.devices()[:1])


def test_an_axis_that_does_not_divide_is_named():
    judge, _ = make_judge()
    mesh = jax.sharding.AbstractMesh((1, 1, 3), sharding.AXES)
    with pytest.raises(UserError, match="mesh.tensor=3: the model's .* axis has size .*, which 3 does not divide"):
        sharding.shardings(mesh, axis_names(judge.model.config))
    with pytest.raises(UserError, match=r"mesh.data=2, mesh.fsdp=4: the batch has size 12, which 8 does not divide"):
        sharding.check_divides(jax.sharding.AbstractMesh((2, 4, 1), sharding.AXES), sharding.ROWS, 12, "the batch")


@pytest.mark.parametrize(
    "function, shape, message",
    [
        (lambda x: sharding.constrain(x, sharding.ROWS), (6,), "mesh.data=2, mesh.fsdp=2: .* rows has size 6"),
        (lambda x: sharding.constrain(x, None, "tensor"), (4, 5), "mesh.tensor=2: dimension 1 .* has size 5"),
        (lambda x: token_logps(x, jnp.ones((8, 4)), jnp.zeros((6, 1), int)), (6, 4), "mesh.fsdp=2: .* rows has size 6"),
        (lambda x: sharding.rows_parts(len(x)), (6,), "mesh.fsdp=2: .* rows has size 6, which 4 does not divide"),
    ],
)
def test_nothing_is_copied_to_all_devices_because_an_axis_does_not_divide(function, shape, message):
    mesh = jax.sharding.AbstractMesh((2, 2, 2), sharding.AXES, (jax.sharding.AxisType.Auto,) * 3)
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(UserError, match=message):
        jax.eval_shape(function, jnp.ones(shape))


def test_a_batch_that_the_mesh_does_not_divide_is_refused_before_it_is_sampled():
    judge, params = make_judge()
    mesh = jax.sharding.AbstractMesh((2, 2, 1), sharding.AXES, (jax.sharding.AxisType.Auto,) * 3)
    draw = functools.partial(sample, judge, SamplerOptions(group_size=2, max_thought=4))
    with jax.sharding.use_abstract_mesh(mesh), pytest.raises(UserError, match="rows has size 6, which 4 does not"):
        jax.eval_shape(draw, params, make_batch(pairs=3), jax.random.key(0))
