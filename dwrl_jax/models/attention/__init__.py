"""Attention of new tokens over themselves and over regions of earlier keys and values; `backends` picks the program."""

from dwrl_jax.models.attention.regions import KEPT, Region, as_region, attend_at_once, attend_in_blocks

__all__ = ["KEPT", "Region", "as_region", "attend_at_once", "attend_in_blocks"]
