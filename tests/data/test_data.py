"""Tokenised pairs, and the promise that a batch follows from (seed, step) alone."""

import dataclasses
import os
import socket
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dwrl_jax.core.errors import UserError
from dwrl_jax.data import examples as data_examples
from dwrl_jax.data.batches import make_batches, padding_share, prefetch
from dwrl_jax.data.examples import tokenise
from dwrl_jax.data.pairs import Pair, read_pairs
from dwrl_jax.dialogue import Texts, encode_thought, make_dialogue, prefix_ids
from dwrl_jax.dialogue.tokenizers import load_tokenizer
from tests.small import REPO

BUCKETS = (16, 24, 48)


def word_dialogue():
    """One token a word: 9 tokens of a prefix are not the prompt's or the response's."""
    words = ["<s>", "</s>", "<pad>", "<unk>", "User:", "Assistant:", "judge", "ask", "yes", "no", "x", "y", "z"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    return make_dialogue(tokenizer, Texts("judge", "ask", ("yes", "no")))


@pytest.fixture(scope="module")
def dialogue():
    return word_dialogue()


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def random_pairs(n, seed=0, **fields):
    rng = np.random.default_rng(seed)
    text = lambda: " ".join(rng.choice(["x", "y", "z"], size=rng.integers(1, 14)))  # noqa: E731
    return [Pair((user(text()),), text(), text(), where=f"f:{i + 1}", **fields) for i in range(n)]


def make(pairs, dialogue, **changes):
    examples, _ = tokenise(pairs, dialogue, BUCKETS[-1])
    sizes = {"batch_size": 4, "buckets": BUCKETS, "pad_id": dialogue.pad_id, "window": 2} | changes
    return make_batches(examples, **sizes)


def seen(batches, epoch=0):
    """pair_id of every valid row of an epoch, in order."""
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    found = [batches(step)[0] for step in steps]
    return [int(i) for batch in found for i in batch.pair_id[batch.valid]]


# --- exact: tokenising ---


def test_sides_answers_and_thoughts(dialogue):
    plain = Pair((user("x"),), "y", "z z", where="f:1")
    written = Pair((user("x"),), "y", "z z", thoughts=("x x", "y"), verdicts=(0, 1), where="f:2")
    examples, report = tokenise([plain, written], dialogue, 48)
    for example in examples.rows:
        assert example.prefix[0].tolist() == prefix_ids(dialogue, plain.prompt, "y")
        assert example.prefix[1].tolist() == prefix_ids(dialogue, plain.prompt, "z z")
    good, bad = dialogue.answer_ids
    assert [example.answer for example in examples.rows] == [(good, good), (good, bad)]
    assert examples.rows[0].thoughts is None
    assert examples.rows[1].thoughts == (encode_thought(dialogue, "x x"), encode_thought(dialogue, "y"))
    assert (report.kept, report.shortened, report.turns_dropped) == (2, 0, 0)


def test_a_row_with_an_unknown_word_is_named(dialogue):
    """Even without `strict`: a tokenizer that lacks one word of a file is mostly the wrong tokenizer."""
    pairs = [Pair((user("x"),), "y", "z", where="f:1"), Pair((user("x"),), "y", "y hello", where="f:2")]
    with pytest.raises(UserError, match="f:2: the tokenizer has no word 'hello'"):
        tokenise(pairs, dialogue, 48)


def test_what_does_not_fit_is_counted(dialogue):
    prompt = (user("x x"), assistant("y y y"), user("z"))
    pairs = [
        Pair(prompt, "y", "z", where="f:1"),
        Pair(prompt, "y</s>", "z", where="f:2"),
        Pair(prompt, "y", "z " * 30, where="f:3"),
        Pair((user("x"),), "y", "z", where="f:4", thoughts=("<pad>", "x")),
    ]
    short = len(prefix_ids(dialogue, prompt[2:], "y"))
    examples, report = tokenise(pairs, dialogue, short)
    assert [example.pair_id for example in examples.rows] == [0]
    assert examples.rows[0].prefix[1].tolist() == prefix_ids(dialogue, prompt[2:], "z")
    assert (report.kept, report.shortened, report.turns_dropped) == (1, 1, 2)
    control = "control token in text"
    assert sorted(report.skipped.rows) == [("f:2", control), ("f:3", "too long"), ("f:4", control)]
    assert report.summary() == (
        "1 pairs kept (1 of them without their oldest turns, 2 in all), "
        "3 left out (control token in text 2, too long 1)"
    )
    for row, reason in ((1, control), (2, "too long")):
        with pytest.raises(UserError, match=f"f:{row + 1}: {reason}"):
            tokenise(pairs[row : row + 1], dialogue, short, strict=True)
    with pytest.raises(UserError, match="data.buckets"):
        tokenise(pairs[2:3], dialogue, short)


SHARING = """
import sys
from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.data import examples
from tests.data import test_data

hosts.start()
shares, encode = [], examples._encode
examples._encode = lambda pairs, ids, *rest: (shares.extend(ids), encode(pairs, ids, *rest))[1]
dialogue, pairs = test_data.word_dialogue(), test_data.shared_pairs()
together = examples.tokenise(pairs, dialogue, 48, together=True)
print(len(shares), file=sys.stderr)
assert str(together) == str(examples.tokenise(pairs, dialogue, 48)), "not the same as alone"
try:
    examples.tokenise(pairs, dialogue, 48, strict=True, together=True)
except UserError as error:
    print(error, file=sys.stderr)
"""


def shared_pairs():
    """More than one process does at once, and one that cannot be used."""
    pairs = random_pairs(2 * data_examples._CHUNK + 10)
    pairs[data_examples._CHUNK + 3] = dataclasses.replace(pairs[3], chosen="y</s>", where="f:bad")
    return pairs


def in_two_processes(code):
    """The exit code and standard error of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    names = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | names | {"JAX_PROCESS_ID": str(number)},
            cwd=REPO,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    return [(process.communicate(timeout=120)[1], process.returncode) for process in started]


def test_processes_share_the_tokenising():
    """Each does its part, all have all; a bad row that one of them finds ends all."""
    ended = in_two_processes(SHARING)
    assert [code for _, code in ended] == [0, 0], ended
    said = [text.splitlines()[-2:] for text, _ in ended]
    assert [int(count) for count, _ in said] == [data_examples._CHUNK + 10, data_examples._CHUNK]
    assert all(error.startswith("f:bad: control token in text") for _, error in said)


# --- exact: batches ---


def test_a_batch_holds_its_pairs(dialogue):
    pairs = random_pairs(10)
    batches = make(pairs, dialogue)
    for step in range(batches.steps_per_epoch):
        batch, thoughts = batches(step)
        assert thoughts is None
        for b, pair_id in enumerate(batch.pair_id):
            for s, response in enumerate((pairs[pair_id].chosen, pairs[pair_id].rejected)):
                ids = prefix_ids(dialogue, pairs[pair_id].prompt, response)
                assert batch.prefix_len[b, s] == len(ids)
                assert batch.prefix[b, s, : len(ids)].tolist() == ids
                assert (batch.prefix[b, s, len(ids) :] == dialogue.pad_id).all()
        assert batch.prefix.shape[2] == min(size for size in BUCKETS if size >= batch.prefix_len.max())
        assert (batch.answer == dialogue.answer_ids[0]).all()
        assert {batch.prefix.dtype, batch.prefix_len.dtype, batch.pair_id.dtype} == {np.dtype(np.int32)}


def test_a_prefix_as_long_as_a_bucket_stays_in_it(dialogue):
    pair = Pair((user("x"),), "y", "z z")
    length = len(prefix_ids(dialogue, pair.prompt, "z z"))
    for buckets, chosen in (((length, 40), length), ((length - 1, 40), 40)):
        batches = make([pair], dialogue, batch_size=1, buckets=buckets)
        assert batches(0)[0].prefix.shape == (1, 2, chosen)


def test_written_thoughts(dialogue):
    pairs = random_pairs(3, thoughts=("x y z", "z"), verdicts=(0, 1))
    batch, thoughts = make(pairs, dialogue, batch_size=3, max_thought=5)(0)
    assert thoughts.thought.shape == thoughts.old_logp.shape == (3, 2, 1, 5)
    assert thoughts.thought_len[:, :, 0].tolist() == [[4, 2]] * 3
    long, short = encode_thought(dialogue, "x y z"), encode_thought(dialogue, "z")
    pad = dialogue.pad_id
    assert thoughts.thought[1, :, 0].tolist() == [[*long, pad], [*short, pad, pad, pad]]
    assert not thoughts.old_logp.any() and thoughts.old_logp.dtype == np.float32
    assert batch.answer.tolist() == [list(dialogue.answer_ids)] * 3
    for max_thought in (3, None):
        with pytest.raises(UserError, match=f"sampler.max_thought: {max_thought}, f:1 has 4 tokens"):
            make(pairs, dialogue, batch_size=3, max_thought=max_thought)
    with pytest.raises(UserError, match="f:1: no thoughts"):
        make(random_pairs(1) + pairs, dialogue, max_thought=5)


def test_padding_share_counts_valid_tokens_only(dialogue):
    pair = Pair((user("x"),), "y", "z z")
    lengths = [len(prefix_ids(dialogue, pair.prompt, y)) for y in ("y", "z z")]
    batch, _ = make([pair], dialogue, batch_size=2, shuffle=False)(0)
    assert batch.valid.tolist() == [True, False]
    assert padding_share(batch) == pytest.approx(1 - sum(lengths) / (2 * 2 * 16))


def test_sizes_that_do_not_fit(dialogue):
    pairs = random_pairs(3)
    for buckets in ((), (8, 8), (16, 8), (0, 8)):
        with pytest.raises(UserError, match="data.buckets"):
            make(pairs, dialogue, batch_size=2, buckets=buckets)
    with pytest.raises(UserError, match=r"data.buckets: 12 is the largest, f:\d has"):
        make(pairs, dialogue, batch_size=2, buckets=(8, 12))
    with pytest.raises(UserError, match="data.batch_size: 4 is more than the 3 pairs"):
        make(pairs, dialogue)


# --- invariance ---


def test_every_pair_once_an_epoch(dialogue):
    batches = make(random_pairs(22), dialogue)
    assert batches.steps_per_epoch == 6
    epochs = [seen(batches, epoch) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    last = batches(5)[0]
    assert last.valid.tolist() == [True, True, False, False]
    assert last.pair_id[2] == last.pair_id[3] == last.pair_id[0]
    assert (last.prefix[2] == last.prefix[0]).all() and last.prefix_len[2].tolist() == last.prefix_len[0].tolist()
    assert all(batches(step)[0].valid.all() for step in range(5))


def test_a_batch_follows_from_seed_and_step(dialogue):
    pairs = random_pairs(22)
    walked, jumped, other = (make(pairs, dialogue, seed=seed) for seed in (3, 3, 4))
    batches = [walked(step)[0] for step in range(15)]
    for step in (14, 0, 7):
        for ours, theirs in zip(vars(batches[step]).values(), vars(jumped(step)[0]).values()):
            np.testing.assert_array_equal(ours, theirs)
    assert seen(walked) != seen(other)


def test_grouping_by_length_saves_padding_and_order_stays_random(dialogue):
    pairs = random_pairs(400)
    buckets = tuple(range(12, 49, 2))
    shares = {}
    for window in (1, 16):
        batches = make(pairs, dialogue, window=window, buckets=buckets)
        shares[window] = np.mean([padding_share(batches(step)[0]) for step in range(100)])
    longest = [int(batches(step)[0].prefix_len.max()) for step in range(16)]
    assert shares[16] < 0.7 * shares[1]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_in_order_is_by_length_and_the_same_every_time(dialogue):
    batches = make(random_pairs(10), dialogue, shuffle=False)
    found = [batches(step)[0] for step in range(3)]
    lengths = [int(n) for batch in found for n in batch.prefix_len.max(axis=1)[batch.valid]]
    assert lengths == sorted(lengths)
    assert sorted(seen(batches)) == list(range(10)) and seen(batches) == seen(batches, epoch=1)
    assert found[2].valid.tolist() == [True, True, False, False]


def test_an_unlimited_source_is_read_in_order(dialogue):
    pairs = random_pairs(40)
    examples, _ = tokenise(pairs, dialogue, BUCKETS[-1])
    endless = types.SimpleNamespace(examples=examples.examples)
    batches = make_batches(endless, batch_size=4, buckets=BUCKETS, pad_id=dialogue.pad_id)
    assert batches.steps_per_epoch is None
    batch, _ = batches(3)
    assert batch.pair_id.tolist() == [12, 13, 14, 15] and batch.valid.all()
    ids = prefix_ids(dialogue, pairs[13].prompt, pairs[13].rejected)
    assert batch.prefix[1, 1, : batch.prefix_len[1, 1]].tolist() == ids


def test_prefetch_is_the_plain_loop(dialogue):
    batches = make(random_pairs(22), dialogue)
    fetched = [batch.pair_id.tolist() for batch, _ in prefetch(batches, 2, 9)]
    assert fetched == [batches(step)[0].pair_id.tolist() for step in range(2, 9)]


def test_prefetch_passes_errors_on_and_its_thread_ends():
    def fails(step):
        if step == 2:
            raise UserError("row 2")
        return step

    fetched = []
    with pytest.raises(UserError, match="row 2"):
        for step in prefetch(fails, 0, 5):
            fetched.append(step)
    assert fetched == [0, 1]
    stream = prefetch(lambda step: step, 0, 10**9, depth=1)
    assert next(stream) == 0
    stream.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


# --- smoke ---


def test_real_pairs_to_batches(shared_data):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "qwen2.5")
    dialogue = make_dialogue(tokenizer, Texts("Judge the response.", "Good? A or B", ("A", "B")))
    pairs, _ = read_pairs(shared_data / "hh_rlhf" / "validation.jsonl.gz")
    examples, report = tokenise(pairs, dialogue, 512)
    assert report.kept + len(report.skipped.rows) == 500 and report.shortened > 0
    batches = make_batches(examples, batch_size=16, buckets=(128, 256, 512), pad_id=dialogue.pad_id)
    assert sorted(seen(batches)) == [example.pair_id for example in examples.rows]
