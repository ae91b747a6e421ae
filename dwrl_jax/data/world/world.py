"""The built-in world: preference pairs that a judge can judge well only if it writes the steps down.

A prompt gives a start state and a sequence of operations. Each operation is a fixed permutation of the states. A
response claims a final state, in one of three styles. Its quality falls with the circular distance of the claim from
the true final state, and it also depends on the style. Labels follow Bradley-Terry, P(y+ > y-) =
sigmoid(quality difference), so the best possible accuracy is known. A tiny transformer cannot compose the permutations
in a single pass, but it can write the chain of intermediate states. Everything follows from a seed, and nothing is
downloaded. `data/worlds/` has worlds with rules of their own.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dwrl_jax.data import worlds
from dwrl_jax.data.pairs import Pair
from dwrl_jax.data.worlds import Rules

STATES, OPERATIONS = 8, 8
STYLES = {"curt": -1.0, "plain": 0.0, "warm": 1.0}
DISTANCE_WEIGHT, STYLE_WEIGHT = 1.5, 0.7
TRUE_CLAIMS = 0.3  # share of responses that claim the true state; the others claim a random state
STYLE_OF_DISTANCE = ("warm", "plain", "curt")  # where the style tells it: 0, 1, 2 or more
SPLITS = {"train": 0, "demonstrations": 1, "eval": 2, "alike": 3}
TELLING = ("train", "alike")  # splits in which the style may tell
PASSABLE = -1.2  # a response of this quality is called good with probability 1/2
GOOD, BAD = 0, 1  # verdicts; for two responses 0 means that the first is better, 1 that the second is
# Shares of the kinds of written thoughts in the mixed stage. A thought is a chain of states, then the distance of the
# claim from the last state. "chain": every state is right. "slips": the chain has errors and goes on from them.
# "skipping": the chain breaks off, and its end is guessed. "rationalising": its end is a claim. "lazy": no chain.
# A thought about two responses repeats each claim before its distance: without this, a tiny model did not learn.
KINDS = {"chain": 0.15, "slips": 0.25, "skipping": 0.15, "lazy": 0.25, "rationalising": 0.2}
SLIP = 0.25  # probability that a step of a chain with slips goes to a random state


@dataclasses.dataclass(frozen=True)
class World:
    """A world. `permutations[o, s]` is the state after operation o on state s; they are drawn from the seed."""

    seed: int
    permutations: np.ndarray
    rules: Rules = Rules()

    def chain(self, start: int, operations: Sequence[int]) -> list[int]:
        """The states after each operation."""
        states, state = [], start
        for operation in operations:
            state = int(self.permutations[operation, state])
            states.append(state)
        return states

    def quality(self, prompt: str, response: str) -> float:
        """-1.5 * circular distance + 0.7 * style: the quality of a response text for a prompt text."""
        start, *operations = (int(word[1:]) for word in prompt.split())
        claim, style = response.split()
        return _quality(int(claim[1:]), self.chain(start, operations)[-1], style)


def make_world(seed: int, name: str = "plain") -> World:
    rng = np.random.default_rng([seed, 0])
    return World(seed, np.stack([rng.permutation(STATES) for _ in range(OPERATIONS)]), worlds.load(name))


def _quality(claim: int, truth: int, style: str) -> float:
    return -DISTANCE_WEIGHT * _distance(claim, truth) + STYLE_WEIGHT * STYLES[style]


def _distance(a: int, b: int) -> int:
    """The number of steps between two states on the circle of states."""
    return min(abs(a - b), STATES - abs(a - b))


def _margin(claims: Sequence[int], truth: int) -> float:
    """1 + min(difference, 2), with the absolute difference of the two claims' distances from the truth.

    1 means slightly better, 2 better, 3 much better. The margin does not depend on the label. Labels are noisy, so the
    chosen response can have the worse claim.
    """
    first, second = (_distance(claim, truth) for claim in claims)
    return float(1 + min(abs(first - second), 2))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + np.exp(-x))


def pair(world: World, split: str, index: int, *, mixed_from: int | None = None, pairwise: bool = False) -> Pair:
    """Pair number `index` of a split: "train", "demonstrations", "eval", or "alike", held out and made like "train".

    A pair of the split "demonstrations" has a thought and a verdict for each side. A side is a response, or with
    `pairwise` an order of both responses. Thoughts are clean chains below index `mixed_from` and of mixed quality from
    there on; without `mixed_from` all are clean.
    """
    rng = np.random.default_rng([world.seed, 1 + SPLITS[split], index])
    start, operations = int(rng.integers(STATES)), rng.integers(OPERATIONS, size=world.rules.operations)
    states = world.chain(start, operations)
    telling = world.rules.telling if split in TELLING else 0.0
    responses = [_response(rng, states[-1], telling)]
    while len(responses) < 2:
        other = _response(rng, states[-1], telling)
        if other != responses[0]:
            responses.append(other)
    better = _quality(responses[0][0], states[-1], responses[0][1]) - _quality(
        responses[1][0], states[-1], responses[1][1]
    )
    if rng.random() > _sigmoid(world.rules.label_scale * better):
        responses.reverse()
    thoughts = verdicts = None
    if split == "demonstrations":
        mixed = mixed_from is not None and index >= mixed_from
        judged = [responses, responses[::-1]] if pairwise else [responses[:1], responses[1:]]
        thoughts, verdicts = zip(*(_demonstration(rng, world, start, operations, side, mixed) for side in judged))
    content = " ".join([f"s{start}", *(f"o{o}" for o in operations)])
    return Pair(
        prompt=({"role": "user", "content": content},),
        chosen=_text(responses[0]),
        rejected=_text(responses[1]),
        margin=_margin([claim for claim, _ in responses], states[-1]),
        source="world",
        where=f"world {world.seed}, {split} pair {index}",
        thoughts=thoughts,
        verdicts=verdicts,
    )


def _response(rng, truth: int, telling: float) -> tuple[int, str]:
    claim = truth if rng.random() < TRUE_CLAIMS else int(rng.integers(STATES))
    style = list(STYLES)[rng.integers(len(STYLES))]
    if telling and rng.random() < telling:
        style = STYLE_OF_DISTANCE[min(_distance(claim, truth), len(STYLE_OF_DISTANCE) - 1)]
    return claim, style


def _text(response: tuple[int, str]) -> str:
    return f"s{response[0]} {response[1]}"


def _demonstration(rng, world: World, start, operations, responses, mixed: bool) -> tuple[str, int]:
    """A thought about one or two responses, and the verdict of a judge who believes it."""
    truth = world.chain(start, operations)
    kind = rng.choice(list(KINDS), p=list(KINDS.values())) if mixed else "chain"
    states = list(truth)
    if kind == "slips":
        states, state = [], start
        for operation in operations:
            slipped = rng.random() < SLIP
            state = int(rng.integers(STATES)) if slipped else int(world.permutations[operation, state])
            states.append(state)
    elif kind == "skipping":
        states = [*truth[: rng.integers(1, len(truth) - 1)], int(rng.integers(STATES))]
    elif kind == "rationalising":
        states[-1] = responses[rng.integers(len(responses))][0]
    believed = truth[-1] if kind == "lazy" else states[-1]
    quality = [_quality(claim, believed, style) for claim, style in responses]
    better = quality[0] - (quality[1] if len(quality) == 2 else PASSABLE)
    good = rng.random() < _sigmoid(2.0 * better)
    words = [f"s{s}" for s in states]
    for claim, _ in responses:
        words += [f"s{claim}"] * (len(responses) == 2) + [f"off{_distance(claim, believed)}"]
    return "hm" if kind == "lazy" else " ".join(words), GOOD if good else BAD


def references(world: World, pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Log-odds [pairs], in nats, of chosen over rejected by two fixed readers.

    "no_thought" knows the weight of the styles but not the true states. A reader that does not compose the operations
    cannot do better. "ceiling" knows the quality itself, so only the noise of the labels is left. Both know that noise.
    """
    style = [STYLE_WEIGHT * (STYLES[p.chosen.split()[1]] - STYLES[p.rejected.split()[1]]) for p in pairs]
    scale, prompts = world.rules.label_scale, [p.prompt[0]["content"] for p in pairs]
    margin = [world.quality(x, p.chosen) - world.quality(x, p.rejected) for x, p in zip(prompts, pairs)]
    return {"no_thought": scale * np.array(style), "ceiling": scale * np.array(margin)}
