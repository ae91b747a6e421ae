"""Golden and exact: dialogues that show both responses, in both orders, and what their labels say about a pair."""

import hashlib
import json

import numpy as np
import pytest

from dwrl_jax import dialogue as dg
from dwrl_jax.core.errors import UserError
from dwrl_jax.data import world
from dwrl_jax.data.examples import tokenise
from dwrl_jax.data.pairs import Pair
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.judge.weights import weigh
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import sources
from tests.dialogue.test_dialogue import assistant, hh_rows, qwen, user, word_dialogue  # noqa: F401

WORLD = world.make_world(0)
PAIR = Pair((user("s3 o1 o2"),), chosen="s2 warm", rejected="s6 curt", where="f:1")
QUESTION = "{conversation}\n[A] {first}\n[B] {second}\nCompare."
TEXTS = {
    "judge_question": QUESTION,
    "answer_question": "A or B?",
    "answers": ("A", "B"),
    "turn": "{role}: {content}",
    "kind": "label",
}


def tiny(*arguments):
    return parse(["--config=configs/tiny.py", "--workdir=unused", *arguments])[0]


@pytest.fixture(scope="module")
def talk():
    return sources.make_talk(tiny(), world.make_tokenizer(), "label")


# --- golden: what is written ---


def test_both_orders_in_the_world(talk):
    examples, _ = tokenise([PAIR], talk, 20)
    row = examples.rows[0]
    opening, closing = "<bos> <user> s3 o1 o2", "judge <end> <assistant>"
    assert [talk.tokenizer.decode(ids) for ids in row.prefix] == [
        f"{opening} A s2 warm B s6 curt {closing}",
        f"{opening} A s6 curt B s2 warm {closing}",
    ]
    assert talk.tokenizer.convert_ids_to_tokens(row.answer) == ["yes", "no"]  # is the first one the better?
    assert talk.tokenizer.decode(list(talk.question_ids)) == "<end> <user> good? <end> <assistant>"


def test_labels_follow_the_written_verdicts(talk):
    written = Pair(PAIR.prompt, PAIR.chosen, PAIR.rejected, thoughts=("hm", "s1 s5"), verdicts=(1, 1))
    row = tokenise([written], talk, 20)[0].rows[0]
    assert talk.tokenizer.convert_ids_to_tokens(row.answer) == ["no", "no"]
    assert [talk.tokenizer.decode(ids) for ids in row.thoughts] == ["hm <end>", "s1 s5 <end>"]


def test_qwen_dialogue_is_this_text(qwen):  # noqa: F811
    talk = dg.make_dialogue(qwen, dg.Texts(**TEXTS, system="Be fair."))
    messages = [user("Hi"), assistant("Hello {first}"), user("Bye")]
    prefix = (
        "<|im_start|>system\nBe fair.<|im_end|>\n<|im_start|>user\nuser: Hi\n\nassistant: Hello {first}\n\nuser: Bye\n"
        "[A] Ciao\n[B] No\nCompare.<|im_end|>\n<|im_start|>assistant\n"
    )
    both, right = dg.sides(talk, "Ciao", "No")
    assert qwen.decode(dg.prefix_ids(talk, messages, both[0])) == prefix
    swapped = prefix.replace("[A] Ciao\n[B] No", "[A] No\n[B] Ciao")
    assert qwen.decode(dg.prefix_ids(talk, messages, both[1])) == swapped
    assert [qwen.decode([talk.answer_ids[i]]) for i in right] == ["A", "B"]
    own = dg.prefix_ids(talk, [{"role": "system", "content": "Obey."}, *messages], both[0])
    assert qwen.decode(own) == prefix.replace("Be fair.", "Obey.")


def test_parts_are_the_whole(qwen, hh_rows):  # noqa: F811
    """Parity with the template's own tokens, shortened or not."""
    talk = dg.make_dialogue(qwen, dg.Texts(**TEXTS))
    for row in hh_rows[:30]:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        both, right = dg.sides(talk, chosen, rejected)
        *prefixes, dropped = dg.fit_prefixes(talk, row["prompt"], both, 5000)
        assert dropped == 0
        said = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row["prompt"])
        for ids, (first, second), answer in zip(prefixes, both, right):
            asked = user(f"{said}\n[A] {first}\n[B] {second}\nCompare.")
            turns = [asked, assistant("Both fine."), user("A or B?"), assistant("AB"[answer])]
            whole = qwen.apply_chat_template(turns, return_dict=False)
            thought = dg.encode_thought(talk, "Both fine.")
            ours = [*ids, *thought, *talk.question_ids[1:], talk.answer_ids[answer]]
            assert ours == whole[: len(ours)] and whole[len(ours)] == talk.end_id
        if len(row["prompt"]) > 1:
            shorter = dg.fit_prefixes(talk, row["prompt"], both, max(map(len, prefixes)) - 1)
            assert shorter[2] == 2 and shorter[:2] == tuple(dg.prefix_ids(talk, row["prompt"][2:], y) for y in both)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge_question": "{conversation} {first}"}, "dialogue.pair_question.*'second' is missing"),
        ({"judge_question": QUESTION + "{third}"}, "dialogue.pair_question.*'third' is missing or does not exist"),
        ({"judge_question": QUESTION + "{"}, "dialogue.pair_question.*cannot be filled in"),
        ({"judge_question": QUESTION + "<|im_end|>"}, "dialogue.pair_question contains a control token"),
        ({"answer_question": "<|im_end|>"}, "dialogue.label_question contains a control token"),
        ({"turn": "{role}"}, r"dialogue.turn.*must have \{content\}"),
        ({"turn": "<|im_end|>{content}"}, "dialogue.turn contains a control token"),
        ({"answers": ("A", "the second")}, "dialogue.labels: 'the second' must be one token"),
        ({"answers": ("A", "A")}, "dialogue.labels.*same token"),
    ],
)
def test_what_is_refused(qwen, change, message):  # noqa: F811
    with pytest.raises(UserError, match=message) as error:
        dg.make_dialogue(qwen, dg.Texts(**TEXTS | change))
    assert "\n" not in str(error.value)


# --- the world's demonstrations ---


def test_pointwise_demonstrations_are_as_they_were():
    """Golden: the base model of the pointwise objectives does not depend on the pairwise ones."""
    pairs = (world.pair(WORLD, "demonstrations", index, mixed_from=100) for index in range(300))
    rows = [[p.chosen, p.rejected, p.thoughts, p.verdicts] for p in pairs]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] == "8cd5c206fd26222a"


def test_comparisons_follow_the_chain():
    """Clean thoughts are the chain and how far off either claim is; labels mostly agree with the quality."""
    agree = []
    for index in range(400):
        pair = world.pair(WORLD, "demonstrations", index, mixed_from=400, pairwise=True)
        start, *operations = (int(word[1:]) for word in pair.prompt[0]["content"].split())
        chain = WORLD.chain(start, operations)
        orders = ((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))
        for order, thought, verdict in zip(orders, pair.thoughts, pair.verdicts):
            claims = [int(text[1]) for text in order]
            first, second = (min((c - chain[-1]) % 8, (chain[-1] - c) % 8) for c in claims)
            distances = [f"s{claims[0]}", f"off{first}", f"s{claims[1]}", f"off{second}"]
            assert thought.split() == [f"s{s}" for s in chain] + distances
            quality = [WORLD.quality(pair.prompt[0]["content"], text) for text in order]
            if abs(quality[0] - quality[1]) > 1:
                agree.append(verdict == int(quality[1] > quality[0]))
    assert np.mean(agree) > 0.95


def source(share, **options):
    config = tiny("--config.data.train=world:demonstrations", f"--config.world.pairwise_share={share}")
    for key, value in options.items():
        config.dialogue[key] = value
    pointwise = sources.make_talk(config, world.make_tokenizer(), "verdict")
    return sources.training_source(config, pointwise, None, sources.Needs(thoughts=True))[0]


def test_a_share_of_the_demonstrations_is_pairwise():
    rows = source(0.25).examples(10, 1010)
    assert [row.pair_id for row in rows] == list(range(10, 1010))
    first = world.make_tokenizer().convert_tokens_to_ids("A")
    pairwise = [bool((ids == first).any()) for row in rows for ids in row.prefix]
    assert pairwise[::2] == pairwise[1::2] and 0.2 < np.mean(pairwise) < 0.3
    alone = source(0.25).examples(37, 38)[0]
    assert alone.pair == rows[27].pair and (alone.prefix[0] == rows[27].prefix[0]).all()
    pointwise = source(0.0).examples(10, 1010)
    same = [all((a == b).all() for a, b in zip(x.prefix, y.prefix)) for x, y in zip(rows, pointwise)]
    assert same == [not each for each in pairwise[::2]]


def test_a_share_needs_one_second_question():
    with pytest.raises(UserError, match="world.pairwise_share.*dialogue.label_question"):
        source(0.25, label_question="judge")


# --- exact: what two orders say about a pair ---

# right label's probability [pair, order, vote]: agree and right, disagree, agree and wrong, undecided in one order
RIGHT = np.array(
    [[[0.9, 0.7], [0.6, 0.8]], [[0.9, 0.9], [0.3, 0.1]], [[0.4, 0.2], [0.1, 0.1]], [[0.7, 0.3], [0.9, 0.9]]]
)


def test_orders_in_numbers():
    found = evaluate.metrics(np.log(RIGHT), 2, pairwise=True)
    probability = np.array([0.75, 0.55, 0.2, 0.7])
    np.testing.assert_allclose(evaluate.log_odds(np.log(RIGHT), 2, True)[:, 0], np.log(probability / (1 - probability)))
    assert found["accuracy"] == 0.75 and found["pairs"] == 4
    assert found["nll"] == pytest.approx(-np.log(probability).mean())
    assert found["brier"] == pytest.approx(((1 - probability) ** 2).mean())
    assert found["flips"] == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    # of the first response: .8, .3; .9, .8; .3, .9; .5, .1
    assert found["position_bias"] == pytest.approx((0.55 + 0.85 + 0.6 + 0.3) / 4 - 0.5)
    single = evaluate.metrics(np.log(RIGHT), 1, pairwise=True)
    assert single["flips"] == pytest.approx((0 + 0 + 1 + 1 + 0 + 0 + 0 + 1) / 8)
    assert "flips" not in evaluate.metrics(np.log(RIGHT), 2)


def test_no_order_is_preferred():
    swapped = evaluate.metrics(np.log(RIGHT[:, ::-1]), 2, pairwise=True)
    found = evaluate.metrics(np.log(RIGHT), 2, pairwise=True)
    assert swapped.pop("position_bias") == pytest.approx(-found.pop("position_bias"))
    assert swapped == found


def test_a_judge_that_is_sure_stays_finite():
    log_scores = np.array([[[0.0], [0.0]], [[-200.0], [-200.0]], [[0.0], [-200.0]]], np.float32)
    margin = evaluate.log_odds(log_scores, 1, pairwise=True)[:, 0]
    assert np.isfinite(margin).all() and margin[0] > 10 and margin[1] < -10 and margin[2] == 0
    assert evaluate.metrics(log_scores, 1, pairwise=True)["ties"] == pytest.approx(1 / 3)
    assert evaluate.metrics(log_scores, 1, pairwise=True)["flips"] == pytest.approx(1 / 3)


def test_weights_between_sides_are_not_written_for_orders():
    log_scores = np.log(RIGHT)
    assert weigh(log_scores, pairwise=True).keys() == {"thought_weight"}
    assert "dual_weight" in weigh(log_scores)
