"""The way from --config=FILE:OBJECTIVE,smoke to a config, and what its keys may be."""

from pathlib import Path

import pytest

from dwrl_jax import objectives
from dwrl_jax.core import settings
from dwrl_jax.core.errors import UserError
from dwrl_jax.settings.commandline import parse
from dwrl_jax.settings.config import as_json, flat, keys, nearest
from dwrl_jax.training import config as configuration
from dwrl_jax.training.assemble import load_objective

CONFIGS = Path(__file__).parents[2] / "configs"


def config_of(path, variant="", *changes):
    return parse([f"--config={path}{variant}", "--workdir=unused", *changes])[0]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("", ("dwrl", False)),
        ("smoke", ("dwrl", True)),
        ("sft", ("sft", False)),
        ("sft,smoke", ("sft", True)),
    ],
)
def test_variants(variant, expected):
    assert configuration.read_variant(variant) == dict(zip(("objective", "smoke"), expected))


def test_a_variant_with_a_name():
    read = configuration.read_variant
    assert read("bt,world=long,smoke", ["world"]) == {"objective": "bt", "smoke": True, "world": "long"}
    assert read("world=few", ["world"]) == {"objective": "dwrl", "smoke": False, "world": "few"}
    for variant in ("world=few", "bt,world=few,world=long", "world=few,bt", "smoke=1", "objective=bt"):
        with pytest.raises(UserError, match=f":{variant}: no such variant"):
            read(variant, ["world"] if variant != "world=few" else [])


@pytest.mark.parametrize("variant", ["smokey", "smoke,dwrl", "dwrl,sft", "dwrl,smoke,smoke", "_policy", "__init__"])
def test_a_variant_that_does_not_exist(variant):
    with pytest.raises(UserError, match=f":{variant}: no such variant; give one of .*dwrl, .*sft, or NAME,smoke"):
        configuration.read_variant(variant)


@pytest.mark.parametrize("name", objectives.names())
def test_every_config_takes_every_objective(name):
    """The keys of its section are its hyper-parameters, and its needs hold after the quick trial is made."""
    objective = objectives.load(name)
    for path in CONFIGS.glob("*.py"):
        config, quick = (config_of(path, f":{name}{smoke}") for smoke in ("", ",smoke"))
        assert quick.optim.steps < config.optim.steps
        for made in (config, quick):
            assert set(made.objective) == {"name", *settings.keys(objective.hyper)} and made.objective.name == name
            joint = path.stem == "smollm2_hh" and "updates" in made.objective  # for a short step
            assert load_objective(made)[1] == objective.hyper(**({"updates": "joint"} if joint else {})), path.name
            assert made.is_locked and made.objective.is_locked
            if objective.thoughts == "none":
                assert (made.sampler.group_size, made.sampler.max_thought, made.eval.votes) == (1, 1, (1,))
            assert made.score.readout == ("choices" if objective.judges[0] == "label" else "vocab")


def test_every_key_has_a_meaning_and_a_default_inside_its_bound():
    for name in objectives.names():
        for key, setting in keys(configuration.sections(name)).items():
            assert setting.meaning, f"{key} of {name} has no meaning"
            assert settings.problem(setting, setting.default) is None, key


def test_a_key_of_another_objective_is_an_error():
    with pytest.raises(UserError) as error:
        config_of(CONFIGS / "tiny.py", ":bt", "--config.objective.kl=0.1")
    assert str(error.value) == "objective.kl: bt has no such key; its keys: bradley_terry, centring, head_init"
    config = config_of(CONFIGS / "tiny.py", "", "--config.objective.name=bt")
    with pytest.raises(UserError, match="objective.name='bt': .*of another objective; choose it by FILE:bt"):
        configuration.check(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("eval.votes=(3,8)", "eval.votes=(3, 8): 3 does not divide 8, and thoughts would be left over"),
        ("eval.votes=(0,8)", "eval.votes=(0, 8): give at least 1 value, each at least 1"),
        ("optim.clip_norm=-1.0", "optim.clip_norm=-1.0: must not be negative"),
        ("optim.clip_norm=nan", "optim.clip_norm=nan: must not be negative"),
        ("optim.schedule=square", "optim.schedule='square': choose one of constant, linear, cosine"),
        ("sampler.temperature=0.0", "sampler.temperature=0.0: must be above 0"),
        ("sampler.top_p=1.5", "sampler.top_p=1.5: must be above 0 and at most 1"),
        ("data.batch_size=0", "data.batch_size=0: must be at least 1"),
        ("data.buckets=(64,32)", "data.buckets=(64, 32): give lengths from the smallest to the largest"),
        ("dialogue.answers=('A',)", "dialogue.answers=('A',): give 2 values"),
        ("objective.clip=(0.2,-0.1)", "objective.clip=(0.2, -0.1): give 2 values, each at least 0"),
        ("objective.dual_clip=1.0", "objective.dual_clip=1.0: must be above 1"),
        ("base.optim.steps=0", "base.optim.steps=0: must be at least 1"),
    ],
)
def test_a_value_outside_its_bound(change, message):
    config = config_of(CONFIGS / "tiny.py", "", f"--config.{change}")
    with pytest.raises(UserError) as error:
        configuration.check(config)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("optim.lr", "optim.learning_rate"),
        ("lr", "optim.learning_rate"),
        ("optim.stepz", "optim.steps"),
        ("optm.steps", "optim.steps"),
        ("sampler.groupsize", "sampler.group_size"),
        ("data.bs", "data.batch_size"),
    ],
)
def test_a_typo_names_the_nearest_key(typo, meant):
    assert nearest(typo, flat(configuration.base_config().to_dict())) == meant


def kept(*changes, variant=""):
    return as_json(config_of(CONFIGS / "tiny.py", variant, *(f"--config.{change}" for change in changes)))


def test_what_a_run_may_go_on_with():
    free = [
        "optim.micro_batches=2",
        "sampler.batch_size=4",
        "model.remat=full",
        "model.attention=xla",
        "score.chunk=64",
    ]
    free += ["log.thoughts_every=3", "checkpoint.every=7", "mesh.fsdp=1", "profile=True", "eval.batch_size=20"]
    free += ["base.checkpoint.every=7", "optim.packing=False"]
    assert configuration.changes(kept(), kept(*free)) == {}
    bound = ["optim.learning_rate=0.5", "objective.kl=0.1", "eval.every=7", "base.seed=3", "optim.steps=300"]
    found = configuration.changes(kept(), kept(*bound))
    assert found.keys() == {change.partition("=")[0] for change in bound}
    assert found["objective.kl"] == (0.0, 0.1)
    assert next(iter(configuration.changes(kept(), kept(variant=":bt")))) == "objective.name"


def test_more_steps_with_a_constant_schedule():
    constant = "optim.schedule=constant"
    shorter, longer = kept(constant, "optim.steps=10"), kept(constant, "optim.steps=20")
    assert configuration.changes(shorter, longer) == {}
    assert configuration.changes(longer, shorter) == {"optim.steps": (20, 10)}
    assert configuration.changes(kept("optim.steps=10"), longer).keys() == {"optim.schedule"}


def test_a_run_from_before_a_key_existed_had_its_default():
    """And one from the time when a config had the keys of all objectives says nothing by them."""
    old = kept(variant=":bt")
    del old["optim"]["moments"], old["objective"]["centring"], old["base"]["optim"]["moments"]
    old["objective"] |= {"kl": 0.0, "policy_updates": 1}
    assert configuration.changes(old, kept(variant=":bt")) == {}
    changed = kept("optim.moments=separate", "objective.centring=0.1", variant=":bt")
    assert configuration.changes(old, changed) == {
        "objective.centring": (0.0, 0.1),
        "optim.moments": ("shared", "separate"),
    }


def test_a_named_world_reaches_the_run_and_its_base_model():
    long, noisy, plain = (config_of(CONFIGS / "tiny.py", f":bt{name}") for name in (",world=long", ",world=noisy", ""))
    assert (long.world.name, long.base.world.name, long.data.buckets) == ("long", "long", (23,))
    assert (long.base.sampler.max_thought, long.base.world.pairwise_share) == (13, 0.5)
    assert config_of(CONFIGS / "tiny.py", ":dwrl,world=long").sampler.max_thought == 11
    assert noisy.world.name == "noisy" and noisy.base == plain.base  # made once for both
    with pytest.raises(UserError, match="world.name.*choose one of few, long"):
        configuration.check(config_of(CONFIGS / "tiny.py", "", "--config.world.name=short"))
