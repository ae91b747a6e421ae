# python: venv
"""Group sampling with the prefix computed and kept once per prompt."""

import common
import dwrl
import jax


def main():
    a = common.arguments("sample", "dwrl")
    judge, params = dwrl.load(a)
    sampler, batch, key = dwrl.make_sampler(a, judge), dwrl.batch_of(common.prompts(a)), jax.random.key(a.seed)

    def step():
        nonlocal key
        key, now = jax.random.split(key)
        thoughts = jax.block_until_ready(sampler(params, batch, now))
        assert thoughts.thought.size == a.seqs * a.new and int(thoughts.thought_len.min()) == a.new

    common.emit(a, common.run_steps(a, step), tokens=a.seqs * a.new)


if __name__ == "__main__":
    main()
