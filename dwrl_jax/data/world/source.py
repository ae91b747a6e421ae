"""The built-in world as an endless source of examples."""

import dataclasses

import numpy as np

from dwrl_jax.data.examples import Example, tokenise
from dwrl_jax.data.world.world import World, pair
from dwrl_jax.dialogue import Dialogue


@dataclasses.dataclass(frozen=True)
class WorldSource:
    """A split of a world as an endless source of examples. An example is tokenised when it is requested.

    The share `pairwise_share` of the pairs, chosen by the world's seed, uses the dialogue `pairwise`. Where the world
    has a number of distinct training pairs, the split "train" begins anew after them.
    """

    world: World
    split: str
    dialogue: Dialogue
    max_length: int  # largest number of tokens in a prefix
    mixed_from: int | None = None
    pairwise: Dialogue | None = None
    pairwise_share: float = 0.0

    def examples(self, start: int, stop: int) -> list[Example]:
        rows: list[Example | None] = [None] * (stop - start)
        numbers = [self._number(i) for i in range(start, stop)]
        for dialogue in (self.dialogue, self.pairwise):
            places = [place for place, number in enumerate(numbers) if self._dialogue(number) is dialogue]
            if places:
                both, ids = dialogue.kind == "label", [numbers[place] for place in places]
                pairs = [pair(self.world, self.split, i, mixed_from=self.mixed_from, pairwise=both) for i in ids]
                examples, _ = tokenise(pairs, dialogue, self.max_length, strict=True)
                for place, number, row in zip(places, ids, examples.rows, strict=True):
                    rows[place] = dataclasses.replace(row, pair_id=number)
        return rows

    def _number(self, index: int) -> int:
        distinct = self.world.rules.distinct
        return index % distinct if distinct and self.split == "train" else index

    def _dialogue(self, index: int) -> Dialogue | None:
        drawn = self.pairwise_share and np.random.default_rng([self.world.seed, 4, index]).random()
        return self.pairwise if drawn < self.pairwise_share else self.dialogue
