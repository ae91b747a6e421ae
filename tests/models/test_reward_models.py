"""Reward models for transformers: both read the same token of a conversation, whatever the tokenizer pads with."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.core.types import TrainState
from dwrl_jax.dialogue import tokenizers
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training.assemble import architecture, keep_architecture
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export
from tests.dialogue.test_dialogue import word_tokenizer
from tests.runs import tiny

CHATS = [
    [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    for user, answer in (("Tell me.", "Once upon a time there was a dog"), ("And?", "The dog slept."))
]


def bt_config():
    return parse([*tiny("bt,smoke"), "--workdir=unused"])[0]


@pytest.fixture(scope="module")
def exported(shared_data, tmp_path_factory):
    """stories260K with a value head, kept as a run keeps it and exported; its config and parameters."""
    folder, workdir = shared_data / "models/stories260K", tmp_path_factory.mktemp("run")
    tokenizer = tokenizers.load_tokenizer(folder)
    hf_config = architecture(bt_config(), folder, read_config(folder), tokenizer)
    config = model_config(hf_config)
    params = hf.load_params(folder, model_config(hf_config | {"architectures": ["LlamaForCausalLM"]}))
    params = hf.with_value_head(params, config, seed=0)
    keep_architecture(workdir / export.ARCHITECTURE, hf_config, folder, tokenizer)
    (workdir / export.ARCHITECTURE / export.CARD).write_text('{"kind": "reward"}')
    (workdir / "config.json").write_text('{"model": {"param_dtype": "float32"}}')
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, TrainState(jnp.int32(1), params, {"count": jnp.int32(1)}), None)
    export.export(workdir, workdir / "out")
    return workdir, config, params


def rewards_of(folder):
    """Rewards of CHATS by transformers, alone and right-padded together; and the ids of each."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in CHATS]
    with torch.no_grad():
        alone = [float(model(torch.tensor([row])).logits[0, 0]) for row in ids]
        together = model(**tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits[:, 0].tolist()
    return ids, alone, together


def our_rewards(config, params, ids):
    """The value head times the hidden state of each text's last token."""
    model, size = Decoder(config), max(map(len, ids))
    tokens = jnp.array([[row + [0] * (size - len(row))] for row in ids])
    positions = jnp.broadcast_to(jnp.arange(size), tokens.shape)
    hidden, _ = jax.jit(model.apply)(params, tokens, positions)
    return [float(h[0, len(row) - 1] @ params["params"]["value_head"][0]) for row, h in zip(ids, hidden)]


def test_parity_where_no_pad_token_was_and_the_end_token_closes(exported):
    workdir, config, params = exported
    ids, alone, together = rewards_of(workdir / "out")
    assert all(row[-1] == 2 for row in ids) and len(ids[0]) != len(ids[1])
    expected = our_rewards(config, params, ids)
    np.testing.assert_allclose(alone, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(together, expected, atol=1e-4, rtol=0)
    shorter = our_rewards(config, params, [row[:-1] for row in ids])
    assert np.abs(np.subtract(shorter, expected)).min() > 1e-2  # another token has another reward


def test_parity_of_older_runs(exported, tmp_path):
    """A run that kept its end token as pad token is exported with another; so is one that begins with such a model."""
    workdir, config, params = exported
    workdir = shutil.copytree(workdir, tmp_path / "run")
    kept = workdir / export.ARCHITECTURE / "config.json"
    mended = kept.read_text()
    old = json.loads(mended) | {"pad_token_id": 2}
    tokenizer = tokenizers.load_tokenizer(workdir / export.ARCHITECTURE)
    tokenizer.pad_token = tokenizer.eos_token
    assert architecture(bt_config(), tmp_path, old, tokenizer) == json.loads(mended)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(kept.parent)
    kept.write_text(json.dumps(old))
    export.export(workdir, tmp_path / "out")
    ids, *theirs = rewards_of(tmp_path / "out")
    np.testing.assert_allclose(theirs, [our_rewards(config, params, ids)] * 2, atol=1e-4, rtol=0)


def test_the_judge_travels_with_an_export(exported):
    assert json.loads((exported[0] / "out" / "judge.json").read_text()) == {"kind": "reward"}


# "</s>" closes a turn, "<a>" opens one, and unknown words are "<unk>".
@pytest.mark.parametrize(
    ("special", "control", "room", "expected"),
    [
        ({"pad_token": "<pad>"}, [], 0, "<pad>"),
        ({"pad_token": "<a>"}, ["<|python|>", "<|reserved_0|>"], 0, "<|reserved_0|>"),
        ({"pad_token": None}, ["<|reserved_0|>", "<|right_pad|>"], 0, "<|right_pad|>"),
        ({"pad_token": "</s>", "unk_token": "no"}, ["<|python|>"], 0, "no"),
        ({"pad_token": "</s>"}, ["<|python|>"], 1, tokenizers.NEW_PAD),
        ({"pad_token": None}, ["<|python|>"], 0, None),
    ],
)
def test_the_pad_token_stands_in_no_conversation(special, control, room, expected):
    tokenizer = word_tokenizer(extra=control, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": control}, replace_extra_special_tokens=False)
    vocab_size = len(tokenizer) + room
    pad = tokenizers.set_pad_token(tokenizer, vocab_size)
    assert tokenizers.set_pad_token(tokenizer, vocab_size) == pad
    assert pad is None if expected is None else tokenizer.convert_ids_to_tokens(pad) == expected == tokenizer.pad_token
    assert pad not in tokenizer.apply_chat_template(CHATS[0], return_dict=False)
    assert pad is None or pad < vocab_size


def test_the_warning_where_nothing_can_pad(exported, monkeypatch, capsys, tmp_path):
    """Without a pad token transformers reads the last token of one text, and refuses two."""
    monkeypatch.setattr(export, "set_pad_token", lambda *_: None)
    export.export(exported[0], tmp_path / "out")
    assert "takes one text at a time" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] is None
