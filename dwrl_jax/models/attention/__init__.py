"""Attention of new tokens to themselves and to regions of earlier keys and values. `backends` chooses the program."""

from dwrl_jax.models.attention.regions import KEPT, Region, Window, as_region, attend_at_once, attend_in_blocks

__all__ = ["KEPT", "Region", "Window", "as_region", "attend_at_once", "attend_in_blocks"]
