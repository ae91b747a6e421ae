"""The loop of the sampler, as compiled on a CPU: what a turn must not do again for every token."""

import re

import jax
import pytest

from dwrl_jax.generation.sampler import SamplerOptions, room
from dwrl_jax.judge.thoughts import sample
from tests.small import make_batch, make_judge

GROUP, THOUGHT = 3, 70


@pytest.fixture(scope="module")
def program():
    """The text of a compiled program that samples thoughts in a region that grows once."""
    judge, params = make_judge()
    options = SamplerOptions(GROUP, THOUGHT)
    drawn = jax.jit(lambda params, batch, key: sample(judge, options, params, batch, key)[0])
    assert len(room(THOUGHT)) == 2
    return drawn.lower(params, make_batch(pairs=2), jax.random.key(0)).compile().as_text()


def test_keys_and_values_are_written_in_place(program):
    """A turn writes a token's keys and values into the region of all thoughts, and copies it at no size."""
    bodies = set(re.findall(r" while\(.*?body=%([\w.\-]+)", program))
    loops = [part for part in re.split(r"\n(?=%|ENTRY)", program) if part.lstrip("%").split(" ", 1)[0] in bodies]
    region = re.compile(rf"= f32\[4,{GROUP},\d+,(?:\d+,(?:35|70)|(?:35|70),\d+)\]\S* ([\w\-]+)\(")
    found = {operation for body in loops for operation in region.findall(body)}
    assert found & {"fusion", "dynamic-update-slice"}, "the region is not in the loops"
    assert "copy" not in found


def test_rotations_are_not_made_in_the_loop(program):
    """Cosines of the thoughts' positions are made before the loop. XLA would make them for each head of each layer."""
    made = re.findall(r' cosine\(.*op_name="([^"]*)"', program)
    assert made and not any("while/body" in name for name in made), made
