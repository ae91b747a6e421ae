"""A shortcut that holds in training alone: nine times in ten the style tells how far the claim is off.

A warm claim is then true, a plain one is off by 1, and a curt one by 2 or more. Labels follow from the quality as
ever. Held-out pairs have no such hint; the split "alike" has it as training does.
"""

from dwrl_jax.data.worlds import Rules

RULES = Rules(telling=0.9, thinks_in="plain")
