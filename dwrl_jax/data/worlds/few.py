"""Few pairs: a run sees the same 200 training pairs again and again, so a method can learn them by heart."""

from dwrl_jax.data.worlds import Rules

RULES = Rules(distinct=200, thinks_in="plain")
