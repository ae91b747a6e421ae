"""The effect of frozen weights in few bits on a model's logits.

python -m studies.few_bits --model=FOLDER --input=ROWS.jsonl.gz [--rows=8] [--tokens=256]

For each type of `lora.base`: the bytes of all weights, the mean KL divergence from the model in float32 over all next
tokens, in nats, and the share of places with the same most probable token. A row has lists of turns in `prompt` and
`chosen`. The computation is in float32, so the weights alone differ.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core import sharding
from dwrl_jax.dialogue.tokenizers import load_tokenizer
from dwrl_jax.models import frozen
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import Decoder, logits, output_table

BASES = ("float32", "bfloat16", "int8", "nf4")


def conversations(path: Path, rows: int) -> list[list[dict]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        read = [json.loads(line) for line, _ in zip(lines, range(rows))]
    return [row["prompt"] + row["chosen"] for row in read]


def log_probabilities(config):
    """A jitted function from parameters and tokens [T] to log-probabilities [T, V] of the next token."""

    @jax.jit
    def found(params, tokens):
        hidden, _ = Decoder(config).apply(params, tokens[None, None], jnp.arange(len(tokens))[None, None])
        return jax.nn.log_softmax(logits(hidden[0, 0], output_table(params), config.logit_cap))

    return found


def compare(folder: Path, rows: list[jax.Array]):
    """(base, bytes, KL, agreement) for each base. KL = mean over places of sum_v p(v) (log p(v) - log q(v))."""
    config, mesh = model_config(read_config(folder)), sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1})
    expected = None
    for base in BASES:
        settings = LoraSettings(rank=1, base=base)
        params = frozen.load(folder, config, settings, mesh)
        found = [log_probabilities(frozen.shape_of(config, settings))(params, tokens) for tokens in rows]
        expected = expected or found
        pairs = list(zip(expected, found))
        count = sum(len(p) for p in expected)
        divergence = sum(float((jnp.exp(p) * (p - q)).sum()) for p, q in pairs) / count
        agreement = sum(int((p.argmax(-1) == q.argmax(-1)).sum()) for p, q in pairs) / count
        yield base, sum(x.nbytes for x in jax.tree.leaves(params)), divergence, agreement


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256, help="of each row; shorter rows are left out")
    given = parser.parse_args(arguments)
    tokenizer = load_tokenizer(given.model)
    turns = conversations(given.input, given.rows)
    rows = [tokenizer.apply_chat_template(turn, tokenize=True, return_dict=False)[: given.tokens] for turn in turns]
    rows = [jnp.asarray(row) for row in rows if len(row) == given.tokens]
    print(f"{len(rows)} texts of {given.tokens} tokens\n| base | weights, MB | KL, nats | same top token |")
    print("| --- | --- | --- | --- |")
    for base, size, divergence, agreement in compare(given.model, rows):
        print(f"| `{base}` | {size / 1e6:.0f} | {divergence:.2g} | {agreement:.1%} |", flush=True)


if __name__ == "__main__":
    main()
