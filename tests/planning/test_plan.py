"""The plan: counts are exact, programs are the run's own, and what is sent is read right from their text."""

import dataclasses
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import Judge, logps
from dwrl_jax.judge.thoughts import ThoughtPlan
from dwrl_jax.models.attention import few_bits
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, published, shrink
from dwrl_jax.models.transformer import REMAT_POLICIES, Decoder, axis_names
from dwrl_jax.models.unstacked import matrices_in_few_bits, unstack
from dwrl_jax.objectives import dwrl
from dwrl_jax.plan import FLAGS
from dwrl_jax.plan import main as plan_main
from dwrl_jax.planning import chips, counts, hlo, memory, plan
from dwrl_jax.planning.compiled import Program, compile_program, shard_bytes, wanted_bytes
from dwrl_jax.planning.model import model_of
from dwrl_jax.planning.text import table
from dwrl_jax.settings.commandline import parse_config
from dwrl_jax.training.assemble import recipe as recipe_of
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.programs import Recipe, abstract_state
from dwrl_jax.training.settings import OptimSettings
from tests.small import REPO, given_thoughts, in_process_of_devices, make_batch

SMOKE = ["--config=configs/qwen7b.py:smoke", "--config.data.buckets=(64,)", "--config.sampler.group_size=1"]
ALONE = "--config.eval.pairs=0"  # without the programs of an evaluation


def make_recipe(mesh=(1, 1, 1), vocab_size=512, chunk=64, micro_batches=2, max_thought=16, question=(3, 4, 5), **shape):
    """Programs of a small Qwen judge on a mesh of this process's devices."""
    hf_config = shrink(PRESETS["qwen2.5-3b"], vocab_size, **shape)
    judge = Judge(Decoder(model_config(hf_config, attention="xla")), question, (1, 2), 0, chunk=chunk)
    devices = jax.devices()[: np.prod(mesh)]
    phases = dwrl.phases(dwrl.Hyper())
    return Recipe(
        seed=0,
        judge=judge,
        mesh=sharding.make_mesh(dict(zip(sharding.AXES, mesh)), devices),
        thoughts=ThoughtPlan("policy", SamplerOptions(group_size=2, max_thought=max_thought)),
        votes=(1, 2),
        phases=phases,
        optimizer=optax.adamw(1e-3),
        micro_batches=micro_batches,
        needs_reference=False,
        margins=False,
    )


@pytest.mark.parametrize(
    "hub_id, parameters",
    [
        ("Qwen/Qwen2.5-3B-Instruct", 3_085_938_688),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
    ],
)
def test_published_shapes_have_the_published_numbers_of_parameters(hub_id, parameters):
    assert counts.parameters(model_config(published(hub_id))) == parameters


def product_flops(jaxpr) -> int:
    """FLOPs of all matrix products of a traced function, loops by their turns."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += times * product_flops(inner) if hasattr(inner, "eqns") else 0
    return total


def test_flops_of_a_pass_are_those_of_its_products():
    """All scores are made here, also masked ones: so each token sees as many keys as its row has."""
    recipe = make_recipe(chunk=33, question=(3, 4, 5))
    shape, batch = recipe.judge.model.config, make_batch(pairs=3, length=12)
    sizes = counts.Sizes(rows=6, prefix=12, group=2, thought=11, question=3)
    thoughts = given_thoughts(np.ones((3, 2, 2, 11)), np.full((3, 2, 2), 11))
    params = nn.meta.unbox(axis_names(shape))
    traced = jax.make_jaxpr(lambda params: logps(recipe.judge, params, batch, thoughts).thought.sum())(params)
    prefixes = counts.forward(shape, 6 * 12, 12, 0)
    branches = counts.forward(shape, 12 * sizes.branch, 12 + sizes.branch, 12 * (11 + 1))
    assert product_flops(traced.jaxpr) == prefixes + branches
    halved = counts.update_flops(shape, sizes, phases=1) / 3
    assert 0.9 < halved / (prefixes + branches) < 1, "the masked half is not counted"


def test_remat_makes_again_what_it_says():
    """By products of one layer's gradient: "dots" makes attention again, "narrow" gate and up too, "full" all."""
    shape = dataclasses.replace(make_recipe().judge.model.config, layers=1)
    tokens = jnp.ones((2, 1, 12), jnp.int32)
    params = nn.meta.unbox(axis_names(shape))

    def flops(remat):
        model = Decoder(dataclasses.replace(shape, remat=remat))
        return product_flops(jax.make_jaxpr(jax.grad(lambda p: model.apply(p, tokens, tokens)[0].sum()))(params).jaxpr)

    once = {remat: flops(remat) for remat in REMAT_POLICIES}
    token = 2 * 24  # FLOPs of a weight over all tokens
    wide, whole = 2 * shape.hidden_size * shape.mlp_size, counts.layer_weights(shape)
    assert once["narrow"] - once["dots"] == token * wide
    assert once["full"] - once["narrow"] == token * (whole - wide - shape.mlp_size * shape.hidden_size)
    assert 0 < once["dots"] - once["none"] <= 24 * 4 * shape.heads * shape.head_dim * 12, "attention"
    shares = [counts.passes(dataclasses.replace(shape, remat=remat)) - 3 for remat in ("dots", "narrow", "full")]
    assert shares == pytest.approx([0, wide / whole, 1]), "all of a layer, though its last product is not made again"


@pytest.mark.parametrize(("cache", "weights"), [("", ""), ("int8", ""), ("float8", "int8")])
def test_bytes_in_decoding_are_those_of_the_arrays(cache, weights):
    """Keys and values of a token, and the weights as the sampler lays them out; a scale of a head or output each."""
    shape = dataclasses.replace(make_recipe().judge.model.config, dtype="bfloat16")
    share = counts.Share(rows=1, tensor=1, devices=1, cache=cache, weights=weights)
    key = jax.ShapeDtypeStruct((1, 1, shape.kv_heads, shape.head_dim, 1), jnp.bfloat16)
    keys = jax.eval_shape(lambda x: few_bits.encode(x, cache, 3) if cache else x, key)
    assert counts.token_bytes(shape, share) == 2 * shape.layers * nbytes(keys)
    alone = dataclasses.replace(shape, scanned=False)

    def laid_out(params):
        params = unstack(params, alone)
        return matrices_in_few_bits(params, alone, weights)[0] if weights else params

    arrays = jax.eval_shape(laid_out, nn.meta.unbox(axis_names(shape)))
    norms = 2 * sum(x.size for path, x in jax.tree_util.tree_leaves_with_path(arrays) if path[-1].key == "scale")
    assert counts.decode_weights(shape, share) == nbytes(arrays) - norms, "norms are float32, and counted in bfloat16"


def nbytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_weights_of_a_device_where_heads_have_copies(tensor):
    shape = make_recipe().judge.model.config
    boxed = axis_names(shape)
    places = sharding.shardings(jax.sharding.AbstractMesh((1, 1, tensor), sharding.AXES), boxed)
    parts = jax.tree.map(lambda x, place: int(np.prod(place.shard_shape(x.shape))), nn.meta.unbox(boxed), places)
    leaves = jax.tree_util.tree_leaves_with_path(parts)
    small = sum(size for path, size in leaves if path[-1].key in ("scale", "bias"))
    matrices = sum(size for path, size in leaves) - small
    assert counts.copies_of_heads(shape, tensor) == (2 if tensor == 4 else 1), "two key/value heads"
    assert matrices <= counts.on_device(shape, counts.parameters(shape), tensor) <= matrices + small


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


def test_the_largest_size_lies_on_the_line_through_two():
    assert memory.largest_size([(8, 900), (4, 500)], room=1700, unit=4) == 16
    assert memory.largest_size([(8, 900), (4, 500)], room=1699, unit=4) == 12
    assert memory.largest_size([(8, 900), (4, 500)], room=50, unit=4) == 0
    assert memory.largest_size([(8, 900), (4, 900)], room=1700, unit=4) is None


def test_sampling_in_parts_needs_less_memory():
    whole = make_recipe(max_thought=64)
    options = dataclasses.replace(whole.thoughts.sampler, batch_size=4)
    parts = dataclasses.replace(whole, thoughts=dataclasses.replace(whole.thoughts, sampler=options))
    found = [compile_program(recipe, "sample", 256, pairs=16).temporaries for recipe in (whole, parts)]
    assert found[1] < found[0] / 3, "a quarter, and the weights"


def test_the_update_changes_the_state_in_place():
    recipe = make_recipe()
    assert compile_program(recipe, "update", 64, pairs=4).alias == shard_bytes(abstract_state(recipe))


def test_a_larger_vocabulary_costs_activations_no_more_than_a_chunk():
    """Twice the vocabulary, and temporaries grow by gradients and one [chunk, vocabulary], not by [tokens, ...]."""
    size, chunk, pairs = 8192, 64, 8
    small, large = (make_recipe(vocab_size=v, chunk=chunk, micro_batches=1) for v in (size, 2 * size))
    found = [compile_program(r, "update", 64, pairs=pairs).temporaries for r in (small, large)]
    gradients = 4 * (counts.parameters(large.judge.model.config) - counts.parameters(small.judge.model.config))
    assert 0 < found[1] - found[0] - gradients <= 4 * chunk * 2 * size, "of 8 chunks of tokens"


def test_a_first_moment_in_bfloat16_saves_two_bytes_per_parameter():
    recipe, options = make_recipe(), OptimSettings(warmup=0, schedule="constant")
    half = dataclasses.replace(options, moment_dtype="bfloat16")
    found = [
        shard_bytes(abstract_state(dataclasses.replace(recipe, optimizer=make_optimizer(kind, phases=1))).opt_state)
        for kind in (options, half)
    ]
    assert found[0] - found[1] == 2 * counts.parameters(recipe.judge.model.config)


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


def run_plan(*arguments, of=SMOKE, **env):
    command = [sys.executable, "-m", "dwrl_jax.plan", *of, *arguments]
    return subprocess.run(command, cwd=REPO, env=os.environ | env, capture_output=True, text=True)


def test_a_plan_for_a_mesh_of_cpu_devices(tmp_path):
    """The command, in small; the KL term keeps the starting model, and one thought is as many as one vote."""
    keys = ["mesh.tensor=2", "objective.kl=0.1", "sampler.max_thought=2", "eval.votes=(1,)"]
    done = run_plan("--topology=cpu:4", *(f"--config.{key}" for key in keys), f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert {"fits", "hbm_bytes", "per_device", "programs"} <= found.keys() and found["fits"]
    assert found["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2} and not found["assumed"]
    sample, update = (found["per_device"][name] for name in ("sample", "update"))
    assert sample["optimizer"] == pytest.approx(2 * sample["parameters"], rel=0.01)
    for terms in (sample, update):
        assert terms["starting_model"] == terms["parameters"] and terms["temporaries"] > 0
    assert sum(update.values()) == found["programs"]["update"]["total_bytes"] <= found["per_device"]["total"]
    assert found["programs"]["sample"]["collective_bytes_per_token"]
    assert found["phases"]["update"]["flops"] > found["phases"]["prefixes"]["flops"] > 0
    assert "fits, with" in done.stdout and done.stdout.strip() == table(found)
    assert "starting model, for the KL term" in done.stdout and "compiled sample" in done.stderr
    assert found["programs"].keys() == {"sample", "update"}, "evaluation is the program that samples in training"
    assert "evaluation of 4 pairs, 4 at a time, with 1 votes, by the program that samples in training" in done.stdout


def plan_of(arguments, topology="cpu"):
    return plan.make_plan(parse_config([*arguments, f"--topology={topology}"], FLAGS)[0], topology)


@pytest.fixture(scope="module")
def crowded():
    """A plan for a chip on which sampling with one thought and the update fit, but not evaluation with many votes."""
    small = chips.Chip("Small", 15 * 10**6, 1e12, 1e9, 1e9, "invented")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "topology", lambda name: (small, jax.devices()[:1]))
        return plan_of([*SMOKE, "--config.eval.votes=(1,64)", "--config.eval.batch_size=16"])


def test_an_evaluation_that_needs_more_than_a_step_decides_whether_a_run_fits(crowded):
    assert not crowded["fits"]
    room, programs = crowded["hbm_bytes"], crowded["programs"]
    assert max(programs[name]["total_bytes"] for name in ("sample", "update")) < 0.8 * room
    assert programs["evaluation"]["total_bytes"] == crowded["per_device"]["total"] > 1.2 * room
    terms, sampling = (crowded["per_device"][name] for name in ("evaluation", "sample"))
    assert sum(terms.values()) == programs["evaluation"]["total_bytes"] and min(terms.values()) > 0
    kept = ("parameters", "optimizer", "decode_weights")
    assert [terms[name] for name in kept] == [sampling[name] for name in kept]
    # 32 rows of a prefix and 64 thoughts, where 8 rows have one
    assert terms["kv_regions"] / sampling["kv_regions"] == 32 * (64 + 64 * 8) / (8 * (64 + 8))
    assert crowded["evaluation"] == {"pairs": 16, "pairs_at_once": 16, "votes": 64}


def test_a_plan_that_does_not_fit_says_by_how_much_and_why(crowded):
    over = crowded["per_device"]["total"] - crowded["hbm_bytes"]
    *lines, verdict = table(crowded).splitlines()
    assert f"does not fit: {over / 2**30:.2f} GiB too much in evaluation, where the largest part is" in verdict
    assert any(line.split()[-3:] == ["sampling", "evaluation", "update"] for line in lines)
    sizes = crowded["largest"]
    assert sizes["evaluation_pairs"] < 16 and sizes["batch_pairs"] > 4
    assert f"largest sampler.batch_size in evaluation: at most {sizes['evaluation_pairs']} pairs" in "\n".join(lines)
    assert f"largest sampler.batch_size: at least {sizes['batch_pairs']} pairs" in "\n".join(lines)
    phase = crowded["phases"]["thoughts"]
    assert phase["seconds"] == max(phase["times"].values()) == phase["memory_bytes"] / 1e9
    assert phase["bound"] == "memory"


def test_an_evaluation_in_parts_holds_the_keys_and_values_of_one():
    arguments = [*SMOKE, "--config.eval.votes=(64,)", "--config.eval.batch_size=16", "--topology=cpu"]
    found = []
    for size in (0, 4):
        config, _ = parse_config([*arguments, f"--config.sampler.batch_size={size}"], FLAGS)
        shape, tokens, _ = model_of(config, "cpu")
        recipe = recipe_of(config, shape, *tokens)
        assert memory.wanted(config, recipe)["evaluation"] == ("evaluation", 16)
        assert recipe.thoughts.sampler.batch_size == size, "what the compiled program samples at a time"
        shares = memory.share(config, recipe, "evaluation")
        found.append(counts.region_bytes(shape, memory.sizes(config, recipe, "evaluation"), shares))
    assert found[1] == found[0] / 4


def test_a_plan_of_a_baseline_without_thoughts_has_a_teacher_forced_evaluation():
    arguments = ["--config=configs/qwen7b.py:bt,smoke", "--config.data.buckets=(64,)"]
    found = plan_of(arguments)
    assert found["programs"].keys() == {"evaluation", "update"} and found["phases"].keys() == {"update"}
    assert not {"decode_weights", "kv_regions"} & found["per_device"]["evaluation"].keys()
    assert found["per_device"]["evaluation"]["temporaries"] > 0
    assert "largest eval.batch_size in evaluation: at least" in table(found)
    config, _ = parse_config([*arguments, "--topology=cpu"], FLAGS)
    tokens = 2 * config.data.batch_size * 64
    assert found["step_flops"] == 3 * counts.forward(model_of(config, "cpu")[0], tokens, 32, 0), "no branches"


@pytest.mark.parametrize("kept, programs", [((), {"sample", "evaluation"}), ((ALONE,), {"sample"})])
def test_an_evaluation_is_planned_only_where_a_run_has_one(kept, programs):
    config, _ = parse_config([*SMOKE, *kept, "--topology=cpu"], FLAGS)
    shape, tokens, _ = model_of(config, "cpu")
    recipe = recipe_of(config, shape, *tokens)
    assert memory.wanted(config, recipe).keys() == programs | {"update", "other"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v7:2x2"], "--topology=v7:2x2: give a TPU's kind and shape"),
        (["--topology=cpu", "--config.mesh.tensor=4"], "mesh.tensor=4: these do not make up the 1 devices"),
        (["--topology=cpu", "--config.model.path=nobody/nothing"], "its shape is not known without a download"),
        ([], "--topology is missing, e.g. --config"),
        (["--topology=cpu", "--json=no/such/plan.json"], "its folder is not there"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", *SMOKE, *arguments])
    with pytest.raises(SystemExit) as ended:
        plan_main()
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and message in printed and len(printed.strip().splitlines()) == 1


def test_a_gpu_is_planned_only_where_one_is():
    try:
        jax.devices("gpu")
    except RuntimeError:
        with pytest.raises(UserError, match="JAX compiles for GPUs only where one is attached"):
            chips.topology("gpu")
    else:
        assert chips.topology("gpu")[0].memory > 0


LIBTPU = "compiling for TPUs needs libtpu: pip install -e '.[tpu]'"


def test_what_a_refused_program_wanted_is_read():
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.48G hbm. Exceeded by 5.02G."
    assert wanted_bytes(RuntimeError(older)) == 20.5 * 2**30
    with pytest.raises(RuntimeError, match="INTERNAL"):
        wanted_bytes(RuntimeError("INTERNAL: Used 1G of 2G"))


def test_a_tpu_program_that_is_too_large_is_refused_with_its_bytes():
    pytest.importorskip("libtpu", reason=LIBTPU)
    _, devices = chips.topology("v5e:2x2")
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 1}, devices)
    array = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32, sharding=sharding.whole(mesh))  # 8 GiB
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x * 2).lower(array).compile()
    assert wanted_bytes(refused.value) == pytest.approx(16 * 2**30, rel=0.01)


@pytest.mark.slow
def test_a_plan_for_a_tpu_without_one(tmp_path):
    pytest.importorskip("libtpu", reason=LIBTPU)
    # heads and tokens of real size, so that the kernels for TPUs are compiled; two layers, so that it takes seconds
    config = PRESETS["qwen2.5-7b"] | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [
        f"--config.model.path={tmp_path}",
        "--config.sampler.max_thought=64",
        ALONE,
        "--topology=v5e:4x4",
        f"--json={tmp_path / 'plan.json'}",
    ]
    done = run_plan(*arguments, of=["--config=configs/qwen7b.py"], JAX_PLATFORMS="")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["hbm_bytes"] == 16 * 10**9 and found["devices"] == 16
    assert found["assumed"] == ["the second question has 24 tokens"]
    state = found["per_device"]["update"]["parameters"] + found["per_device"]["update"]["optimizer"]
    assert found["programs"]["update"]["alias_bytes"] == pytest.approx(state, rel=0.01)
    assert found["phases"]["thoughts"]["bound"] == "memory" and found["step_seconds"] > 0


def test_a_run_with_adapters_keeps_frozen_weights_once_and_moments_of_adapters():
    """Its start is no second copy, and one of the four passes of an update goes through adapters alone."""
    config, _ = parse_config([*SMOKE, ALONE, "--config.lora.rank=4", "--config.objective.kl=0.1"], {}, "", lambda: "")
    shape, tokens, _ = model_of(config, "cpu")
    recipe = recipe_of(config, shape, *tokens, jax.devices()[:1])
    terms = memory.memory(config, recipe, {"update": Program(0.0, 10**9)})["update"]
    trained = sum(x.size for x in jax.tree.leaves(abstract_state(recipe).params))
    assert terms["parameters"] == 2 * counts.parameters(shape) and terms["adapters"] == 4 * trained
    assert 8 * trained <= terms["optimizer"] < 8 * trained + 64 and "starting_model" not in terms
    assert trained == 4 * shape.layers * (4 * 64 + 2 * 64 + 2 * 32 + 3 * (64 + 128))
    sizes = counts.Sizes(rows=6, prefix=12, group=2, thought=11, question=3)
    full, adapted = (counts.update_flops(shape, sizes, 1, adapters) for adapters in (None, 0))
    assert adapted / full == pytest.approx((counts.passes(shape) - 1) / counts.passes(shape))


def test_a_plan_counts_weights_in_few_bits():
    """Qwen2.5-7B in nf4: its matrices in 0.516 bytes a number, also where the sampler lays them out."""
    flags = ["--config=configs/qwen7b.py", ALONE, "--config.mesh.tensor=1", "--config.sampler.batch_size=1"]
    flags += ["--config.lora.rank=16", "--config.lora.base=nf4", "--config.sampler.spread=False"]
    config, _ = parse_config(flags, {}, "", lambda: "")
    shape, tokens, _ = model_of(config, "cpu")
    recipe = recipe_of(config, shape, *tokens, jax.devices()[:1])
    terms = memory.memory(config, recipe, {"sample": Program(0.0, 0)})["sample"]
    matrices = shape.layers * counts.layer_weights(shape)
    expected = 0.516 * matrices + 2 * (counts.parameters(shape) - matrices)
    assert terms["parameters"] == pytest.approx(expected, rel=1e-3)
    assert terms["decode_weights"] == pytest.approx(expected, rel=1e-3)
    assert sum(terms.values()) - terms["temporaries"] < 13e9
