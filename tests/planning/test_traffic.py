"""What devices send to each other is read right from the text of compiled programs."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.planning import counts, hlo
from dwrl_jax.planning.compiled import compile_program, shard_bytes
from dwrl_jax.training.programs import abstract_state
from tests.planning.recipes import make_recipe
from tests.small import in_process_of_devices


def known_traffic():
    """A loop with a counter, and one that ends when data says so, over four devices."""
    mesh = jax.make_mesh((4,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec("x")

    def body(x):
        counted = jax.lax.fori_loop(0, 5, lambda i, y: jax.lax.psum(y, "x") / 4 + 0.5, x)

        def turn(carry):
            y, n = carry
            return jax.lax.all_gather(y, "x").sum(0) / 4 + 1, n + 1

        return jax.lax.while_loop(lambda c: (c[0].sum() < 1e6) & (c[1] < 99), turn, (counted, 0))[0]

    def read(body):
        program = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
        return hlo.traffic(program.lower(jnp.zeros((4, 1000))).compile().as_text(), 4)

    found = read(body)
    assert found.once == {"all-reduce": 5 * 2 * 4000 * 3 / 4}
    assert found.turn == {"all-gather": 4 * 4000 * 3 / 4}
    assert found.total(10) == found.once["all-reduce"] + 10 * found.turn["all-gather"]
    in_parts = read(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: body(y) * 0.5, x))
    assert in_parts.once == {"all-reduce": 3 * found.once["all-reduce"]}
    assert in_parts.turn == {"all-gather": 3 * found.turn["all-gather"]}


def test_an_operation_spread_over_fusions_counts_once_and_groups_are_read_in_all_forms():
    line = "  %a{} = bf16[8,64]{{1,0}} all-gather(%p), channel_id={}, replica_groups={}, dimensions={{0}}"
    text = "\n".join(
        [
            "%part.1 (p: bf16[2,64]) -> bf16[8,64] {",
            line.format(1, 7, "[4,4]<=[16]"),
            "}",
            "%part.2 (p: bf16[2,64]) -> bf16[8,64] {",
            line.format(2, 7, "[4,4]<=[16]"),
            "}",
            "ENTRY %main (p: bf16[2,64]) -> bf16[8,64] {",
            "  %f.1 = bf16[8,64]{1,0} fusion(%p), kind=kCustom, calls=%part.1",
            "  %f.2 = bf16[8,64]{1,0} fusion(%f.1), kind=kCustom, calls=%part.2",
            line.format(3, 8, "{{0,1},{2,3}}"),
            line.format(4, 9, "mesh['a'=4,'b'=2,'c'=2] {'b','c'}"),
            "}",
        ]
    )
    size = 8 * 64 * 2
    assert hlo.traffic(text, 16).once == {"all-gather": size * (3 / 4 + 1 / 2 + 3 / 4)}


def unrolled_loop(limit, step, counter="%add.1", body=()):
    """A TPU's loop that counts from 0 to `limit` by `step` and passes 256 bytes on in each turn."""
    return [
        "%condition.1 (c: (u32[], bf16[2,64])) -> pred[] {",
        f"  %constant.1 = u32[] constant({limit})",
        "  %c = (u32[]{:T(128)}, bf16[2,64]{1,0}) parameter(0)",
        "  %get-tuple-element.1 = u32[]{:T(128)} get-tuple-element(%c), index=0",
        "  ROOT %compare.1 = pred[] compare(%get-tuple-element.1, %constant.1), direction=LT",
        "}",
        "%body.1 (b: (u32[], bf16[2,64])) -> (u32[], bf16[2,64]) {",
        f"  %constant.2 = u32[] constant({step})",
        "  %b = (u32[]{:T(128)}, bf16[2,64]{1,0}) parameter(0)",
        "  %get-tuple-element.2 = u32[]{:T(128)} get-tuple-element(%b), index=0",
        "  %get-tuple-element.3 = bf16[2,64]{1,0} get-tuple-element(%b), index=1",
        "  %add.1 = u32[]{:T(128)} add(%get-tuple-element.2, %constant.2)",
        "  %p.1 = bf16[2,64]{1,0} collective-permute(%get-tuple-element.3), channel_id=1, source_target_pairs={{0,1}}",
        *body,
        f"  ROOT %tuple.1 = (u32[]{{:T(128)}}, /*index=1*/bf16[2,64]{{1,0}}) tuple({counter}, /*index=1*/%p.1)",
        "}",
    ]


ENTER = [
    "ENTRY %main (p: (u32[], bf16[2,64])) -> (u32[], bf16[2,64]) {",
    "  %w = (u32[], bf16[2,64]{1,0}) while(%p), condition=%condition.1, body=%body.1",
    "}",
]


@pytest.mark.parametrize("limit, step, turns", [(8, 1, 8), (8, 2, 4), (9, 2, 5)])
def test_a_loop_that_the_compiler_unrolled_turns_less_often(limit, step, turns):
    text = "\n".join(unrolled_loop(limit, step) + ENTER)
    assert hlo.traffic(text, 16).once == {"collective-permute": turns * 2 * 64 * 2}


def test_a_loop_whose_step_is_not_said_counts_by_one():
    text = "\n".join(unrolled_loop(8, 2, counter="%fusion.9") + ENTER)
    assert hlo.traffic(text, 16).once == {"collective-permute": 8 * 2 * 64 * 2}


def test_a_collective_that_runs_beside_a_loop_counts_where_it_begins():
    gather = "  %a{} = bf16[8,64]{{1,0}} all-gather(%p), channel_id=7, replica_groups=[4,4]<=[16], dimensions={{0}}"

    def fusion(name, number, *more):
        return [f"%{name} (p: bf16[2,64]) -> bf16[8,64] {{", gather.format(number), *more, "}"]

    start = '  ROOT %c = (bf16[8,64]{1,0}) custom-call(%a1), custom_call_target="AsyncCollectiveStart"'
    called = "  %f.{0} = bf16[8,64]{{1,0}} fusion(%p), kind=kCustom, calls=%part.{0}"
    text = "\n".join(
        [
            *fusion("part.1", 1, start),
            *fusion("part.2", 2),
            *fusion("part.3", 3),
            *unrolled_loop(8, 1, body=[called.format(2)]),
            ENTER[0],
            called.format(1),
            *ENTER[1:-1],
            called.format(3),
            "}",
        ]
    )
    assert hlo.traffic(text, 16).once == {"collective-permute": 8 * 256, "all-gather": 8 * 64 * 2 * 3 / 4}


def decode_layouts():
    """Bytes sent per generated token with the rules for decoding and with those for training, two rows of devices.

    XLA may gather weights in front of the loop, which is the layout for decoding by another name: not here.
    """
    os.environ["XLA_FLAGS"] += " --xla_disable_hlo_passes=while-loop-invariant-code-motion"
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
    recipe = make_recipe(mesh=(1, 2, 4), **wide)
    plain = compile_program(recipe, "sample", 64, pairs=2)
    found = plain.traffic
    rules, sharding.DECODE = sharding.DECODE, sharding.TRAIN
    as_trained = compile_program(recipe, "sample", 64, pairs=2).traffic
    sharding.DECODE = rules
    options = dataclasses.replace(recipe.thoughts.sampler, spread=True)
    spread = dataclasses.replace(recipe, thoughts=dataclasses.replace(recipe.thoughts, sampler=options))
    beside = compile_program(spread, "sample", 64, pairs=2)
    sent, before = (sum(traffic.turn.values()) for traffic in (found, as_trained))
    print(f"{sent:.0f} bytes per token, {before:.0f} in the layout for training: {before / sent:.1f} times fewer")
    assert 0 < 10 * sent <= before
    tokens = sum(beside.traffic.turn.values())
    print(f"{tokens:.0f} bytes per token with a spread feed-forward, in {beside.used} bytes instead of {plain.used}")
    assert sent <= tokens < 1.2 * sent, "a token is sent, no weights, and each sum goes to its own device alone"
    assert found.turn["all-gather"] < beside.traffic.turn["all-gather"]
    shape = recipe.judge.model.config
    half = counts.feed_forward_weights(shape) * 4 / 4 / 2  # float32, tensor 4, fsdp 2
    assert plain.used - beside.used > 0.9 * half
    update = compile_program(recipe, "update", 64, pairs=4)
    assert update.alias == shard_bytes(abstract_state(recipe))


def test_decoding_sends_ten_times_fewer_bytes_than_in_the_layout_for_training():
    in_process_of_devices(decode_layouts, 8)


def bytes_by_chunk():
    """Bytes that an update over 4 x 2 devices sends, with 4 rows of a device at a time and with 32."""
    wide = make_recipe(mesh=(1, 4, 2), vocab_size=4096, chunk=32)
    few = dataclasses.replace(wide, judge=dataclasses.replace(wide.judge, chunk=4))
    sent = [compile_program(recipe, "update", 64, pairs=4).traffic.total(0) for recipe in (wide, few)]
    assert sent[1] == pytest.approx(sent[0], rel=0.05)


def traffic_on_devices():
    known_traffic()
    bytes_by_chunk()


def test_what_is_sent_is_counted_by_the_turns_of_loops_and_smaller_chunks_send_no_more():
    in_process_of_devices(traffic_on_devices, 8)
