"""A judge loads from a workdir, an export or a Hugging Face folder, and no trainer comes with it."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core import checksums, files
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import TrainState
from dwrl_jax.data import world
from dwrl_jax.dialogue import Texts
from dwrl_jax.judge import JudgeCard, load, score
from dwrl_jax.judge.card import as_json
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as workdir_model
from tests.judge.test_score import talkative
from tests.small import REPO

CARD = JudgeCard(texts=Texts(world.JUDGE, world.ASK, world.ANSWERS), max_thought=4, buckets=(16,), chunk=64)
ROWS = [{"prompt": "s1 o1 o2 o3 o4 o5", "responses": ["s2 warm", "s5 curt"]}]


def hf_config():
    return shrink(PRESETS["llama3.2-3b"], 1 + max(world.make_tokenizer().get_vocab().values()))


def make_workdir(path, config, card=CARD, steps=(3,)):
    """The workdir of a run that was saved at these steps, whose parameters grow with the step."""
    shape = model_config(config)
    params = talkative(shape)
    kept = path / workdir_model.ARCHITECTURE
    kept.mkdir(parents=True)
    files.write_json(kept / "config.json", config)
    world.make_tokenizer().save_pretrained(kept)
    if card is not None:
        files.write_json(kept / "judge.json", as_json(card))
    files.write_json(path / "config.json", {"model": {"param_dtype": "float32"}})
    with checkpoint.open_manager(path) as manager:
        for step in steps:
            grown = {"params": params["params"] | {"norm": {"scale": params["params"]["norm"]["scale"] * step}}}
            state = TrainState(jnp.int32(step), grown, {"count": jnp.int32(step)})
            checkpoint.save(manager, state, {"accuracy": 1 / step})
        manager.wait_until_finished()
    return path


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp("load") / "run", hf_config(), steps=(2, 3))


SCRIPT = """
import json, sys
from pathlib import Path
from dwrl_jax.judge import load, score
from dwrl_jax.judge.card import read_card
folders, rows, card = json.loads(sys.argv[1]), json.loads(sys.argv[2]), read_card(Path(sys.argv[3]))
found = [list(score(load(folder, card=card if "plain" in folder else None), rows, votes=3)) for folder in folders]
heavy = [name for name in ("optax", "orbax", "datasets", "tensorboardX", "matplotlib") if name in sys.modules]
print(json.dumps([found, heavy]))
"""


def test_smoke_three_kinds_of_folder_score_alike_without_a_trainer(workdir, tmp_path):
    exported, plain = tmp_path / "exported", tmp_path / "plain"
    workdir_model.export(workdir, exported, dtype="float32")
    assert json.loads((exported / "judge.json").read_text()) == json.loads(json.dumps(as_json(CARD)))
    plain.mkdir()
    for file in exported.iterdir():
        (plain / file.name).symlink_to(file) if file.name != "judge.json" else None
    arguments = [
        json.dumps([str(f) for f in (workdir, exported, plain)]),
        json.dumps(ROWS),
        str(exported / "judge.json"),
    ]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    scored, heavy = json.loads(done.stdout.splitlines()[-1])
    assert not heavy, f"scoring has imported {heavy}"
    assert scored[0] == scored[1] == scored[2] and len(set(scored[0][0]["score"])) == 2


def test_parity_parameters_are_those_that_orbax_reads(workdir):
    for which, step in (("last", 3), ("best", 2), ("2", 2)):
        loaded = load(workdir, checkpoint=which)
        assert loaded.name.endswith(f"checkpoints/{step}")
        shape = loaded.judge.model.config
        expected = talkative(shape)["params"]
        scale = expected["norm"]["scale"] * step
        np.testing.assert_array_equal(loaded.params["params"]["norm"]["scale"], scale)
        np.testing.assert_array_equal(
            loaded.params["params"]["layers"]["q"]["kernel"], expected["layers"]["q"]["kernel"]
        )
        with checkpoint.open_manager(workdir) as manager:
            restored = checkpoint.restore_params(
                manager, which, workdir_model.abstract_params(loaded.judge.model.config)
            )
        np.testing.assert_array_equal(restored["params"]["norm"]["scale"], scale)


def test_a_checkpoint_that_is_not_there(workdir):
    with pytest.raises(UserError, match=r"checkpoint '7' is not in .*checkpoints: steps there are \[2, 3\]"):
        load(workdir, checkpoint="7")


def test_a_broken_checkpoint_is_named(tmp_path):
    path = make_workdir(tmp_path / "run", hf_config())
    for file in (path / "checkpoints" / "3" / "params" / "d").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="checkpoints/3: damaged: params/d/.* is missing"):
        load(path)
    (path / "checkpoints" / "3" / checksums.NAME).unlink()  # checkpoints of an earlier version have none
    with pytest.raises(UserError, match="params: parameter .* cannot be read"):
        load(path)


def test_folders_that_are_no_judges(tmp_path):
    with pytest.raises(UserError, match="no judge.json; go on with the run once"):
        load(make_workdir(tmp_path / "old", hf_config(), card=None))
    head = with_value_head(hf_config(), 0, 1)
    with pytest.raises(UserError, match="kind 'verdict' cannot be made of a model with a value head with 1 outputs"):
        load(make_workdir(tmp_path / "head", head))
    with pytest.raises(UserError, match="kind 'reward' cannot be made of a model with no value head"):
        load(make_workdir(tmp_path / "bare", hf_config(), dataclasses.replace(CARD, kind="reward")))
    started = dataclasses.replace(CARD, thoughts="start")
    with pytest.raises(UserError, match="give its folder, --start"):
        load(make_workdir(tmp_path / "start", hf_config(), started))


def test_thoughts_of_the_starting_model(tmp_path):
    """They are its own, and the trained model scores them."""
    path = make_workdir(tmp_path / "run", hf_config(), dataclasses.replace(CARD, thoughts="start"))
    config = hf_config()
    shape = model_config(config)
    hf.save_model(tmp_path / "start", talkative(shape), shape, config, tokenizer=world.make_tokenizer())
    (row,) = score(load(path, start=tmp_path / "start"), ROWS, votes=3)
    (own,) = score(load(tmp_path / "start", card=CARD), ROWS, votes=3)
    assert row["thoughts"] == own["thoughts"] and row["score"] != own["score"]
