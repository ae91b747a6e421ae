"""The built-in world: preference pairs made from a seed, their tokenizer, and an endless source of examples."""

from dwrl_jax.data.world.source import WorldSource
from dwrl_jax.data.world.tokenizer import ANSWERS, ASK, JUDGE, make_tokenizer
from dwrl_jax.data.world.world import (
    DISTANCE_WEIGHT,
    OPERATIONS,
    STATES,
    STYLE_WEIGHT,
    STYLES,
    World,
    make_world,
    pair,
    references,
)

__all__ = [
    "ANSWERS",
    "ASK",
    "DISTANCE_WEIGHT",
    "JUDGE",
    "OPERATIONS",
    "STATES",
    "STYLES",
    "STYLE_WEIGHT",
    "World",
    "WorldSource",
    "make_tokenizer",
    "make_world",
    "pair",
    "references",
]
