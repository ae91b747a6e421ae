"""The built-in world has the properties that it is made for."""

import numpy as np
import pytest

from dwrl_jax.data import world
from dwrl_jax.dialogue import Texts, make_dialogue
from dwrl_jax.evaluation import metrics as evaluate

WORLD = world.make_world(0)


def made(split, count, **options):
    return [world.pair(WORLD, split, index, **options) for index in range(count)]


def test_pairs_follow_from_the_seed():
    assert made("train", 20) == made("train", 20)
    assert made("train", 20) != made("eval", 20)
    assert (world.make_world(1).permutations != WORLD.permutations).any()
    assert (np.sort(WORLD.permutations, 1) == np.arange(world.STATES)).all()


def test_a_chain_is_the_composition_of_its_operations():
    state, expected = 3, []
    for operation in (1, 5, 1):
        state = WORLD.permutations[operation][state]
        expected.append(state)
    assert WORLD.chain(3, (1, 5, 1)) == expected
    text = "s3 o1 o5 o1"
    qualities = [WORLD.quality(text, f"s{(expected[-1] + d) % 8} plain") for d in range(8)]
    assert qualities == [-1.5 * d for d in (0, 1, 2, 3, 4, 3, 2, 1)]
    assert WORLD.quality(text, f"s{expected[-1]} warm") == pytest.approx(0.7)


def test_labels_are_bradley_terry_noise_around_the_quality():
    """The ceiling is calibrated: what the quality says should win with probability P wins that often."""
    found = world.references(WORLD, made("eval", 4000))
    ceiling, style = evaluate.summary(found["ceiling"][:, None]), evaluate.summary(found["no_thought"][:, None])
    assert ceiling["ece"] < 0.02
    assert 0.80 < ceiling["accuracy"] < 0.88 and 0.30 < ceiling["nll"] < 0.40
    assert 0.54 < style["accuracy"] < 0.61


def test_clean_demonstrations_are_right_and_mixed_ones_are_not_always():
    def share_true(pairs):
        right = []
        for pair in pairs:
            start, *operations = (int(word[1:]) for word in pair.prompt[0]["content"].split())
            chain = [f"s{s}" for s in WORLD.chain(start, operations)]
            right += [thought.split()[:-1] == chain for thought in pair.thoughts]
        return np.mean(right)

    assert share_true(made("demonstrations", 200, mixed_from=200)) == 1
    assert 0.15 < share_true(made("demonstrations", 1000, mixed_from=0)) < 0.4


def test_every_word_is_one_known_token():
    tokenizer = world.make_tokenizer()
    dialogue = make_dialogue(tokenizer, Texts(world.JUDGE, world.ASK, world.ANSWERS))
    source = world.WorldSource(WORLD, "demonstrations", dialogue, 20, mixed_from=0)
    rows = source.examples(5, 40)
    assert [row.pair_id for row in rows] == list(range(5, 40))
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert not any(unknown in ids for row in rows for ids in (*row.prefix, *row.thoughts, dialogue.question_ids))
    assert source.examples(9, 10)[0].pair == rows[4].pair


def of_world(name, split, count):
    made_world = world.make_world(3, name)
    return made_world, [world.pair(made_world, split, index) for index in range(count)]


def test_the_plain_world_is_what_it_was():
    """Its pairs, by hand: a change to them would make every published figure another world's."""
    first = world.pair(world.make_world(0), "train", 0)
    assert (first.prompt[0]["content"], first.chosen, first.rejected) == ("s4 o7 o7 o4 o2 o6", "s7 curt", "s3 curt")


def test_a_long_chain_has_eight_operations():
    _, pairs = of_world("long", "train", 20)
    assert {len(pair.prompt[0]["content"].split()) for pair in pairs} == {9}
    thoughts = world.pair(world.make_world(3, "long"), "demonstrations", 0).thoughts
    assert [len(thought.split()) for thought in thoughts] == [9, 9]  # the chain and the distance


@pytest.mark.parametrize(("split", "share"), [("train", 0.9 + 0.1 / 3), ("alike", 0.9 + 0.1 / 3), ("eval", 1 / 3)])
def test_a_shortcut_tells_the_distance_outside_the_held_out_pairs(split, share):
    made_world, pairs = of_world("shortcut", split, 500)
    style = {0: "warm", 1: "plain", 2: "curt", 3: "curt", 4: "curt"}
    told = []
    for pair in pairs:
        start, *operations = (int(word[1:]) for word in pair.prompt[0]["content"].split())
        truth = made_world.chain(start, operations)[-1]
        for claim, shown in (response.split() for response in (pair.chosen, pair.rejected)):
            off = abs(int(claim[1:]) - truth)
            told.append(shown == style[min(off, 8 - off)])
    assert np.mean(told) == pytest.approx(share, abs=0.05)  # the two responses differ, which moves it a little


def test_labels_and_readers_of_the_noisy_world_are_at_two_fifths():
    made_world, pairs = of_world("noisy", "eval", 4000)
    plain = world.references(world.make_world(3), pairs)
    said = world.references(made_world, pairs)
    for reader in ("ceiling", "no_thought"):
        np.testing.assert_allclose(said[reader], 0.4 * plain[reader])
    ceiling = evaluate.summary(said["ceiling"][:, None])
    assert ceiling["ece"] < 0.02 and 0.68 < ceiling["accuracy"] < 0.73


def test_few_pairs_come_again_and_again():
    dialogue = make_dialogue(world.make_tokenizer(), Texts(world.JUDGE, world.ASK, world.ANSWERS))
    few = world.make_world(3, "few")
    rows = world.WorldSource(few, "train", dialogue, 20).examples(190, 410)
    assert [row.pair_id for row in rows] == [*range(190, 200), *range(200), *range(10)]
    assert rows[0].pair == rows[200].pair and len({row.pair.where for row in rows}) == 200
    held_out = world.WorldSource(few, "eval", dialogue, 20).examples(190, 410)
    assert [row.pair_id for row in held_out] == list(range(190, 410))
