"""Checkpoint folders in the forms that people have: what loads has the right logits, the rest is refused in one line.

The maker of the folders is beside the shared data. `truth/NAME` is the same model in its plainest form: the right
logits are those of transformers on it.
"""

import functools
import importlib.util
import json
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from dwrl_jax.core.types import TrainState
from dwrl_jax.dialogue.tokenizers import load_tokenizer
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.transformer import Decoder, logits
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import run
from dwrl_jax.training.assemble import build, keep_architecture
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export
from tests.models.test_reward_models import our_rewards, rewards_of
from tests.runs import REPO, params_of, run_command

DATA = Path(os.environ.get("DWRL_JAX_DATA", REPO.parent / "shared" / "data"))
MAKER = DATA / "cases" / "checkpoints" / "make.py"
TEXT = np.random.default_rng(0).integers(0, 384, (2, 150))
PAIRS = [
    ("How do I bake bread?", "Mix the flour with water.", "I do not know."),
    ("Is 1 a number? 1G", "Yes, 1 is a number.", "No."),
    ("Write a poem", "The sea is wide.", "No poem G1"),
    ("Fix my bicycle", "Take the chain off.", "Go away."),
]
# of the folders for which either would be right, those that load; all but the last say how they were read
LOADED = ["tied_head_differs", "shards_duplicate", "single_and_shards", "stub_beside_shards", "head_value_head"]
LOADED += ["eos_in_config_only"]


def load_maker():
    spec = importlib.util.spec_from_file_location("checkpoint_cases", MAKER)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


CASES = load_maker().CASES if MAKER.exists() else {}
LOADS = [name for name, case in CASES.items() if case["expect"] == "trains" or name in LOADED]
REFUSED = [name for name in CASES if name not in LOADS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of all cases, with `pairs.jsonl` beside them; and cases.json."""
    if not CASES:
        pytest.skip(f"no {MAKER}: set DWRL_JAX_DATA to the folder of shared data")
    out = tmp_path_factory.mktemp("cases")
    load_maker().make(out, CASES, list(CASES))
    rows = [{"prompt": asked, "chosen": better, "rejected": worse} for asked, better, worse in PAIRS]
    (out / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out, json.loads((out / "cases.json").read_text())


@pytest.fixture
def flags(folders, monkeypatch):
    """The flags of a run of two steps that starts from a case."""
    out, cases = folders

    def of(name):
        for variable, value in cases[name]["env"].items():
            monkeypatch.setenv(variable, value)
            if hasattr(hf.folder.huggingface_hub.constants, variable):
                read = bool if value == "1" else str
                monkeypatch.setattr(f"huggingface_hub.constants.{variable}", read(value))
        plain = cases[name]["path"].startswith("~") or "HF_HUB_CACHE" in cases[name]["env"]
        path = cases[name]["path"] if plain else out / cases[name]["path"]
        bt = ":bt" if cases[name]["objective"] == "bt" else ""
        settings = {"model.path": path, "data.train": out / "pairs.jsonl", "data.eval": out / "pairs.jsonl"}
        settings |= {"data.buckets": "(384,)", "data.batch_size": 2, "sampler.max_thought": 8, "optim.steps": 2}
        settings |= {"eval.pairs": 0} | ({} if bt else {"sampler.group_size": 2, "eval.votes": "(1,)"})
        config = [f"--config={REPO}/configs/stories_hh.py{bt}"]
        return config + [f"--config.{key}={value}" for key, value in settings.items()]

    return of


def loaded(flags, workdir):
    """The parts of a run that begins in `workdir`, its starting model, and the parameters that are loaded for it."""
    config, workdir = parse([*flags, f"--workdir={workdir}"])
    workdir.mkdir()
    start = run.new_start(config, workdir)
    made, _, _ = build(config, workdir, start)
    with jax.set_mesh(made.mesh):
        return made, start, made.load_params()


@functools.partial(jax.jit, static_argnums=0)
def ours(config, params):
    """Hidden states and outputs of the model's head, float32."""
    positions = jnp.broadcast_to(jnp.arange(TEXT.shape[1]), TEXT.shape)
    hidden, _ = Decoder(config).apply(params, TEXT[:, None], positions[:, None])
    tree = params["params"]
    table = next((tree[name] for name in ("value_head", "lm_head") if name in tree), tree["embed"]["embedding"])
    return hidden[:, 0], logits(hidden[:, 0], table)


def theirs(folder):
    """The same by transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    classes = {True: transformers.AutoModelForSequenceClassification, False: transformers.AutoModelForCausalLM}
    model = (
        classes[model_config(read_config(folder)).value_head > 0].from_pretrained(folder, dtype=torch.float32).eval()
    )
    with torch.no_grad():
        hidden = model.model(torch.tensor(TEXT)).last_hidden_state
        head = model.score if hasattr(model, "score") else model.lm_head
        return hidden.numpy(), head(hidden).numpy()


@pytest.fixture(autouse=True)
def odd_widths(monkeypatch):
    """transformers refuses a width that is no multiple of the heads, but its model computes it."""
    kind = pytest.importorskip("transformers").LlamaConfig
    checks = getattr(kind, "__class_validators__", [])  # the first releases of transformers 5 check nothing
    rest = [check for check in checks if check.__name__ != "validate_architecture"]
    monkeypatch.setattr(kind, "__class_validators__", rest, raising=False)


@pytest.mark.parametrize("name", LOADS)
def test_parity_of_what_loads(name, folders, flags, tmp_path, capsys):
    """Logits of transformers to 1e-4. What could be read in two ways is said."""
    made, _, params = loaded(flags(name), tmp_path / "run")
    expected = theirs(folders[0] / "truth" / name)
    for mine, right in zip(ours(made.judge.model.config, params), expected):
        if mine.shape == right.shape:  # a bare decoder gets a new value head
            np.testing.assert_allclose(mine, right, atol=1e-4, rtol=0)
    assert mine.shape == right.shape or name == "prefix_none_untied_bt"
    assert name not in LOADED[:-1] or "note: " in capsys.readouterr().out


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, folders, flags, tmp_path, capsys):
    """Exit code 2, and one line that says what the folder is and what to do."""
    assert run_command("train", *flags(name), f"--workdir={tmp_path / 'run'}") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    said = said.replace(str(folders[0] / name), "")
    for pattern in folders[1][name]["says"]:
        assert re.search(pattern, said, re.IGNORECASE), (pattern, said)


def test_tokenizers_under_a_wrong_class(folders, monkeypatch):
    """tokenizer.json alone says what the tokens are. By its class transformers 5.3 to 5.21 would lose all blanks."""
    folder = folders[0] / "tokenizer_class_llama"
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_: pytest.fail("read by its class"))
    text = "Can you tell me how  to bake bread?"
    expected = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert load_tokenizer(folder)(text)["input_ids"] == expected


def exported(workdir, params, dtype):
    """Holds a run's export in transformers against the run's parameters, rounded as the export is."""
    out = workdir / "out"
    assert run_command("export", f"--workdir={workdir}", f"--output={out}") == 0
    assert read_config(out)["dtype"] == dtype
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype("float32"), params)
    _, config = export.read_architecture(workdir)
    for mine, right in zip(ours(config, rounded), theirs(out)):
        np.testing.assert_allclose(mine, right, atol=1e-4, rtol=1e-4)
    if config.value_head:
        ids, *rewards = rewards_of(out)  # transformers looks for the last token that is not padding
        np.testing.assert_allclose(rewards, [our_rewards(config, rounded, ids)] * 2, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp16", "float16"),
        ("fp8_blocks", "bfloat16"),
        ("peft_adapter", "float32"),
        ("tied_head_differs", "float32"),
        ("pad_is_eos", "float32"),
        ("classifier_no_labels", "float32"),
        ("mlp_bias", "float32"),
        ("rope_yarn", "float32"),
    ],
)
def test_parity_of_exports(name, dtype, flags, tmp_path):
    """A run's export without options, as it is before the first step."""
    workdir = tmp_path / "run"
    _, start, params = loaded(flags(name), workdir)
    kept = workdir / export.ARCHITECTURE
    keep_architecture(kept, start.hf_config, start.folder(), start.tokenizer)
    (workdir / "config.json").write_text('{"model": {"param_dtype": "float32"}}')
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, TrainState(jnp.int32(1), params, {"count": jnp.int32(1)}), None)
    exported(workdir, params, dtype)


FAST = ("sliding_used", "classifier_says_causal")


@pytest.mark.parametrize("name", [pytest.param(x, marks=[] if x in FAST else [pytest.mark.slow]) for x in LOADS])
def test_two_steps_and_an_export(name, flags, tmp_path):
    """The commands themselves. The loss is finite, and the export without options reloads in transformers."""
    workdir = tmp_path / "run"
    assert run_command("train", *flags(name), f"--workdir={workdir}") == 0
    said = read_config(workdir / export.ARCHITECTURE)
    dtype = said.get("dtype") or said.get("torch_dtype") or "float32"
    exported(workdir, params_of(workdir), dtype)
