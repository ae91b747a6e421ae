"""Smoke and restart: whole runs from their command lines, on the built-in world and on real data."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from dwrl_jax.core import hosts, lock
from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.data.examples import Examples
from dwrl_jax.dialogue import Texts, make_dialogue
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.transformer import Decoder, logits, output_table
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import sources
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export
from tests.runs import REPO, TINY, assert_same_run, call, command, fit, lines, params_of, run_command


@pytest.fixture(scope="module", autouse=True)
def at_the_root():
    before = Path.cwd()
    os.chdir(REPO)
    yield
    os.chdir(before)


def test_a_run_leaves_what_it_promises(four_steps):
    workdir, results = four_steps
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))
    for name in ("base", "trained"):
        for votes in ("k1", "k8"):
            found = results[name][votes]
            assert found["pairs"] == 8 and 0 <= found["accuracy"] <= 1 and found["nll"] > 0
            assert found["interval"][0] <= found["accuracy"] <= found["interval"][1]
    assert results["steps"] == 4 and results["seconds"] > 0
    assert results["config"]["objective"]["name"] == "dwrl"
    assert results["reference"]["no_thought"]["pairs"] == results["reference"]["ceiling"]["pairs"] == 8
    assert [row["step"] for row in lines(workdir / "metrics.jsonl")] == [1, 2, 3, 4]
    assert {"train/pair_nll", "train/log_preference_score_chosen", "data/padding", "sample/tokens_per_second"} <= set(
        lines(workdir / "metrics.jsonl")[0]
    )
    assert "<html" in (workdir / "report.html").read_text()
    assert list((workdir / "tensorboard").iterdir())
    with checkpoint.open_manager(workdir) as manager:
        assert manager.latest_step() == 4


def test_thoughts_are_written_with_their_weights(four_steps):
    rows = lines(four_steps[0] / "thoughts.jsonl")
    assert {row["split"] for row in rows} == {"train", "eval"}
    group = [row for row in rows if (row["step"], row["split"], row["pair"]) == (1, "train", 0)]
    by_side = {side: [row for row in group if row["side"] == side] for side in ("chosen", "rejected")}
    for side, sign in (("chosen", 1), ("rejected", -1)):
        weights = np.array([row["thought_weight"] for row in by_side[side]])
        scores = np.array([row["score"] for row in by_side[side]])
        np.testing.assert_allclose(weights, scores / scores.sum(), rtol=1e-4)
        dual = [row["dual_weight"] for row in by_side[side]]
        np.testing.assert_allclose(dual, sign * weights * group[0]["misalignment_weight"], rtol=1e-4)
    means = [np.mean([row["score"] for row in by_side[side]]) for side in ("chosen", "rejected")]
    assert group[0]["misalignment_weight"] == pytest.approx(means[1] / sum(means), rel=1e-4)
    assert group[0]["prompt"][0]["role"] == "user" and group[0]["response"]


def test_killed_run_goes_on_bit_for_bit(base, four_steps, tmp_path):
    """Killed in the middle of its third step, after a checkpoint at the second."""
    arguments = [*TINY, f"--config.model.path={base}", f"--workdir={tmp_path}"]
    process = subprocess.Popen(command("train", *arguments), cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not (tmp_path / "checkpoints" / "2").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read().decode()
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "results.json").exists()
    fit(tmp_path, f"--config.model.path={base}")
    assert_same_run(tmp_path, four_steps[0])


def test_terminated_run_goes_on_without_its_starting_model(base, four_steps, tmp_path, monkeypatch, capsys):
    """SIGTERM in the first step: what is missing afterwards is in the workdir alone."""
    shutil.copytree(base, tmp_path / "start")
    arguments = [f"--config.model.path={tmp_path / 'start'}", f"--workdir={tmp_path / 'run'}"]

    def terminated(stopping):
        signal.raise_signal(signal.SIGTERM)
        return stopping[0]

    with monkeypatch.context() as patched:
        patched.setattr(hosts, "stop", terminated)
        assert run_command("train", *TINY, *arguments) == 143
    assert "stopped after step 1 of 4: the same command goes on from there" in capsys.readouterr().err
    with checkpoint.open_manager(tmp_path / "run") as manager:
        assert manager.latest_step() == 1
    shutil.rmtree(tmp_path / "start")
    assert run_command("train", *TINY, *arguments) == 0
    assert_same_run(tmp_path / "run", four_steps[0])


def test_thoughts_about_the_same_drawn_pairs_are_written_before_and_after(four_steps):
    """Four of eight held-out pairs, from all of them, with the scores that the evaluation counts."""
    workdir = four_steps[0]
    drawn = np.random.default_rng(0).permutation(8)[:4]
    for step, name in ((0, "base"), (4, "trained")):
        rows = [row for row in lines(workdir / "thoughts.jsonl") if (row["split"], row["step"]) == ("eval", step)]
        assert sorted({row["pair"] for row in rows}) == sorted(drawn)
        counted = {row["pair"]: row["log_scores"] for row in lines(workdir / "eval" / f"{name}.jsonl")}
        assert len(rows) == 4 * 2 * 8
        for row in rows:
            side = ("chosen", "rejected").index(row["side"])
            assert row["score"] == pytest.approx(np.exp(counted[row["pair"]][side][row["sample"]]), rel=1e-6)


def test_a_second_run_in_a_workdir_is_refused(base, tmp_path, capsys):
    arguments = [*TINY, f"--config.model.path={base}", f"--workdir={tmp_path}"]
    with lock.held(tmp_path / lock.NAME, "go"):
        assert run_command("train", *arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and f"process {os.getpid()} on" in errors[0] and "choose another --workdir" in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]


@pytest.mark.parametrize("variant", ["smoke", "bt,smoke"])
def test_two_pairs_are_learnt_by_heart(base, tmp_path, variant):
    rows = [{"prompt": "s1 o1 o2", "chosen": f"s{i} warm", "rejected": f"s{i + 2} curt"} for i in (2, 3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["optim.steps=30", "optim.learning_rate=0.003", "optim.schedule=constant", "eval.pairs=0"]
    arguments = [f"--config.{option}" for option in [*options, f"data.train={tmp_path / 'pairs.jsonl'}"]]
    fit(tmp_path / "run", f"--config.model.path={base}", *arguments, variant=variant)
    loss = [row["train/pair_nll"] for row in lines(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(loss[-3:]) < loss[0] / 2


def test_finished_run_is_shown_again(base, four_steps):
    workdir, results = four_steps
    before = (workdir / "metrics.jsonl").read_text()
    again = fit(workdir, f"--config.model.path={base}")
    assert again == results and (workdir / "metrics.jsonl").read_text() == before


def test_another_config_does_not_go_on(base, four_steps):
    with pytest.raises(UserError, match=r"optim\.learning_rate=0\.00015, not 0\.001"):
        fit(four_steps[0], f"--config.model.path={base}", "--config.optim.learning_rate=0.001")


def test_every_step_draws_thoughts_of_its_own(base, tmp_path):
    """The same two pairs at every step, nothing learnt: only the keys change."""
    rows = [{"prompt": "s1 o1 o2", "chosen": f"s{i} warm", "rejected": "s5 curt"} for i in (2, 3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["optim.learning_rate=0.0", "log.thoughts_every=1", "eval.pairs=0", "optim.steps=2"]
    arguments = [f"--config.{option}" for option in [*options, f"data.train={tmp_path / 'pairs.jsonl'}"]]
    fit(tmp_path / "run", f"--config.model.path={base}", *arguments)
    thoughts = {1: [], 2: []}
    for row in sorted(lines(tmp_path / "run" / "thoughts.jsonl"), key=lambda row: (row["pair"], row["side"])):
        thoughts[row["step"]].append(row["thought"])
    assert len(thoughts[1]) == len(thoughts[2]) and thoughts[1] != thoughts[2]


def test_a_command_that_failed_can_be_mended(base, tmp_path, capsys):
    """A run that never began binds nobody to its config; mended, it ends well, here without held-out pairs."""
    arguments = [*TINY, f"--config.model.path={base}", f"--workdir={tmp_path}"]
    with pytest.raises(UserError, match="no-such"):
        fit(tmp_path, f"--config.model.path={base}", "--config.data.train=no-such.jsonl")
    assert run_command("train", *arguments, "--config.eval.pairs=0", "--config.optim.steps=1") == 0
    assert "without held-out pairs" in capsys.readouterr().out


@pytest.mark.parametrize("changes", [["objective.updates=joint"], ["objective.kl=0.1", "score.readout=choices"]])
def test_options_run(base, tmp_path, changes):
    arguments = [f"--config.{change}" for change in ["optim.steps=1", *changes]]
    results = fit(tmp_path, f"--config.model.path={base}", *arguments)
    metrics = lines(tmp_path / "metrics.jsonl")[0]
    assert results["steps"] == 1 and ("train/kl" in metrics) == (len(changes) == 2)
    assert metrics["train/logp_gap_max"] < 1e-4


@pytest.mark.parametrize("importance", [0, 2])
def test_a_run_that_samples_in_few_bits_says_so(base, tmp_path, capsys, importance):
    changes = ["sampler.cache=float8", "sampler.weights=int8", f"objective.importance={importance}", "eval.pairs=0"]
    arguments = [f"--config.{change}" for change in ["optim.steps=1", *changes]]
    fit(tmp_path, f"--config.model.path={base}", *arguments)
    assert 1e-4 < lines(tmp_path / "metrics.jsonl")[0]["train/logp_gap_max"] < 1
    assert ("sampler.cache or sampler.weights the density" in capsys.readouterr().out) == (importance == 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nowhere.py"], "configs/nowhere.py"),
        (["--config=configs/tiny.py", "--config.optim.stepz=3"], "stepz"),
        (["--config=configs/tiny.py", "--config.optim.steps=many"], "many"),
        (["--config=configs/tiny.py", "--config.optim.steps=0"], "optim.steps=0"),
        (["--config=configs/tiny.py", "--config.objective.baseline=median"], "none, mean, leave_one_out"),
        (["--config=configs/tiny.py", "--config.objective.name=ppo2"], "choose one of"),
        (["--config=configs/tiny.py:smoke", "--config.model.path=no/such/folder"], "no/such/folder"),
        (["--config=configs/tiny.py:smoke", "--config.model.param_dtype=bfloat16"], "with model.dtype='bfloat16'"),
        (["--config=configs/stories_hh.py"], "model.path is missing"),
        (["--config=configs/llama8b.py:smoke", "--config.data.train=missing.jsonl"], "missing.jsonl"),
        (["--config=configs/llama8b.py:smoke", "--config.optim.micro_batches=3"], "does not divide"),
        (["--config=configs/llama8b.py:smoke", "--config.sampler.batch_size=3"], "sampler.batch_size=3 does not"),
        (
            ["--config=configs/qwen3_30b_a3b.py:smoke", "--config.sampler.weights=int8"],
            "weights='int8': experts",
        ),
        (["--config=configs/llama8b.py:smoke", "--config.sampler.cache=int4"], "int8, float8"),
        (["--config=configs/llama8b.py:smoke", "--config.dialogue.answers=('A', 'B C')"], "must be one token"),
        (["--config=configs/llama8b.py:smoke", "--config.data.buckets=(4096,)"], "more than the model's 2048"),
        (["--config=configs/tiny.py", "extra"], "extra"),
        (["--config=configs/tiny.py:smokey"], ":smokey: no such variant; give one of"),
        (["--config=configs/tiny.py:dwrl,smokey"], ":dwrl,smokey: no such variant"),
        (["--config=configs/tiny.py:smoke,dwrl"], ":smoke,dwrl: no such variant"),
        (["--config=configs/qwen7b.py:large"], ":large: no such variant"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert run_command("train", *arguments, f"--workdir={tmp_path / 'run'}") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0]


def test_bad_input_from_the_shell(tmp_path):
    done = call("train", "--config=configs/tiny.py", "--config.optim.stepz=3", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert "stepz" in done.stderr and "Traceback" not in done.stderr


def test_vocabulary_mismatch_is_named(base, shared_data, tmp_path):
    tokenizer = shared_data / "tokenizers" / "qwen2.5"
    with pytest.raises(UserError, match="token ids up to 151664.*vocabulary ends at"):
        fit(tmp_path, f"--config.model.path={base}", f"--config.model.tokenizer={tokenizer}")


def test_exports_load_in_transformers(four_steps, tmp_path, capsys):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    workdir = four_steps[0]
    to_model = [f"--workdir={workdir}", f"--output={tmp_path / 'model'}"]
    assert run_command("export", *to_model) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    chat = [{"role": "user", "content": "s1 o2 o3 o4 o5 o6"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    ours = world.make_tokenizer().apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids[0].tolist() == ours
    _, shape = export.read_architecture(workdir)
    tokens = jnp.asarray(ids.numpy())[None]
    params = params_of(workdir)
    hidden, _ = Decoder(shape).apply(params, tokens, jnp.arange(len(ours))[None, None])
    expected = logits(hidden, output_table(params))[0]
    np.testing.assert_allclose(model(ids).logits.detach().numpy(), expected, atol=1e-4)
    assert run_command("export", *to_model) == 2 and "already there" in capsys.readouterr().err
    wrong = [f"--workdir={workdir}", f"--output={tmp_path / 'm'}", "--checkpoint=77"]
    assert run_command("export", *wrong) == 2 and "77" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "qwen7b",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("qwen3b", "llama3b", "llama8b", "stories_hh", "smollm2_hh")
        ),
    ],
)
def test_every_config_has_a_smoke_run(name, tmp_path):
    assert run_command("train", f"--config=configs/{name}.py:smoke", f"--workdir={tmp_path}") == 0
    assert json.loads((tmp_path / "results.json").read_text())["trained"]["k2"]["pairs"] == 16


def test_written_verdicts_are_for_supervised_training_alone(tmp_path):
    """Elsewhere a score is the probability of the good answer, on both sides."""
    rows = [{"prompt": "s1 o1", "chosen": "s2 warm", "rejected": "s3 warm"} | extra for extra in WRITTEN]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config, _ = parse(["--config=configs/tiny.py", "--workdir=unused"])
    words = {"judge_question": world.JUDGE, "answer_question": world.ASK, "answers": world.ANSWERS}
    talk = make_dialogue(world.make_tokenizer(), Texts(**words))
    good, bad = talk.answer_ids
    for supervised, answers in ((True, [(good, bad), (bad, bad)]), (False, [(good, good)] * 2)):
        config.data.train = str(tmp_path / "pairs.jsonl")
        examples, note = sources.tokenised(config, talk, "train", tmp_path, sources.Needs(thoughts=supervised))
        assert [row.answer for row in examples.rows] == answers
        assert (examples.rows[0].thoughts is not None) == supervised
    assert "3 pairs read" not in note and "2 pairs read, 1 left out (missing column: chosen 1)" in note
    assert (tmp_path / "skipped_train.txt").read_text() == f"{tmp_path / 'pairs.jsonl'}:3: missing column: chosen\n"


WRITTEN = (
    {"thoughts": ["hm", "s1 off2"], "verdicts": [0, 1]},
    {"thoughts": ["hm", "hm"], "verdicts": [1, 1]},
    {"chosen": None},
)


def test_a_part_of_the_held_out_pairs_is_drawn_from_all_of_them():
    examples = Examples(tuple(range(1000)))
    drawn = sources.part_of(examples, 100).rows
    assert len(set(drawn)) == 100 and list(drawn) == sorted(drawn)
    assert 30 < sum(row < 500 for row in drawn) < 70 and drawn == sources.part_of(examples, 100).rows


def train_on_real_pairs(shared_data, workdir, capsys, *arguments):
    """A run on HH-RLHF."""
    pairs = {"train": "train.jsonl.gz", "eval": "validation.jsonl.gz"}
    files = [f"--config.data.{key}={shared_data / 'hh_rlhf' / name}" for key, name in pairs.items()]
    assert run_command("train", *arguments, *files, "--config.data.pairs=300", f"--workdir={workdir}") == 0
    said = capsys.readouterr().out
    assert "300 pairs read by seed 0, 3298 not drawn, 0 left out" in said
    assert "16 pairs read by seed 0, 484 not drawn, 0 left out" in said
    assert "too long" in said and ": too long" in (workdir / "skipped_train.txt").read_text()


def test_real_tokenizer_and_pairs(shared_data, tmp_path, capsys):
    """Qwen2.5's tokenizer and chat template, real dialogues, the architecture in small."""
    tokenizer = f"--config.model.tokenizer={shared_data / 'tokenizers' / 'qwen2.5'}"
    train_on_real_pairs(shared_data, tmp_path, capsys, "--config=configs/qwen7b.py:smoke", tokenizer)
    assert lines(tmp_path / "thoughts.jsonl")[0]["prompt"][-1]["role"] == "user"
    results = json.loads((tmp_path / "results.json").read_text())
    sources, kept = results["sources"], results["trained"]["k2"]["pairs"]
    assert sources.keys() == {"hh-rlhf/helpful-base", "hh-rlhf/harmless-base"}
    assert sum(found["trained"]["k2"]["pairs"] for found in sources.values()) == kept > 8
    page = (tmp_path / "report.html").read_text()
    assert "<td>hh-rlhf/helpful-base</td>" in page and "sources.hh-rlhf" not in page


@pytest.mark.slow
def test_real_checkpoint_and_pairs(shared_data, tmp_path, capsys):
    model = f"--config.model.path={shared_data / 'models' / 'stories260K'}"
    train_on_real_pairs(shared_data, tmp_path, capsys, "--config=configs/stories_hh.py:smoke", model)
    assert json.loads((tmp_path / "architecture" / "config.json").read_text())["hidden_size"] == 64


@pytest.mark.slow
def test_a_published_model_trains_and_reloads_in_transformers(shared_data, tmp_path, capsys):
    """SmolLM2-135M-Instruct on real pairs: logits before and after, and the exported folder, in transformers."""
    torch, folder = pytest.importorskip("torch"), os.environ.get("DWRL_JAX_SMOLLM2")
    if not folder:
        pytest.skip("set DWRL_JAX_SMOLLM2 to a folder of SmolLM2-135M-Instruct")
    model = f"--config.model.path={folder}"
    train_on_real_pairs(shared_data, tmp_path / "run", capsys, "--config=configs/smollm2_hh.py:smoke", model)
    exported = tmp_path / "model"
    assert run_command("export", f"--workdir={tmp_path / 'run'}", f"--output={exported}") == 0
    ids = AutoTokenizer.from_pretrained(exported).apply_chat_template(
        [{"role": "user", "content": "Can you tell me how to bake bread?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    for path in (Path(folder), exported):
        shape = model_config(read_config(path))
        params, tokens = hf.load_params(path, shape), jnp.asarray(ids)[None, None]
        hidden, _ = Decoder(shape).apply(params, tokens, jnp.arange(len(ids))[None, None])
        ours = logits(hidden, output_table(params))[0, 0]
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(torch.tensor([ids])).logits[0]
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4, rtol=1e-5)
