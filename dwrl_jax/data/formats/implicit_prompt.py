"""TRL's implicit prompt in plain strings: chosen and rejected both begin with the prompt, and no column has it alone.

Source: https://huggingface.co/docs/trl/dataset_formats. TRL cuts behind the last common character, here the cut is
behind the last common word. Rows without a common word have no prompt.
"""

from dwrl_jax.data.formats import Format, Malformed, hh_rlhf
from dwrl_jax.data.formats.parts.conversation import make_pair
from dwrl_jax.data.formats.parts.prompt import prompt_of

SIDES = ("chosen", "rejected")


def owns(row) -> bool:
    """Whether both responses are plain strings, and the row has no prompt."""
    plain = all(isinstance(row[side], str) and not row[side].lstrip().startswith(("[", "{")) for side in SIDES)
    return plain and prompt_of(row) is None and not hh_rlhf.owns(row)


def pairs(row):
    """The row's single pair. Raises Malformed."""
    chosen, rejected = (row[side] for side in SIDES)
    parting = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    cut = max(chosen.rfind(blank, 0, parting) for blank in " \n\t")
    if cut <= 0:
        raise Malformed("missing column: prompt")
    yield make_pair(row, prompt=chosen[:cut], chosen=chosen[cut:], rejected=rejected[cut:])


FORMAT = Format(
    columns="chosen, rejected",
    has=lambda columns: set(SIDES) <= set(columns),
    pairs=pairs,
    uses=lambda columns: set(SIDES),
    owns=owns,
)
