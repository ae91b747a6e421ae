"""Time of an evaluation beside that of its sampling alone, and beside `generate` of Hugging Face doing the same work.

python -m studies.speed.evaluating --model=FOLDER --judge=judge.json --benchmark=llmbar --data=LLMBar \\
    --rows=4 --votes=4 --batch_size=8 --hf

Evaluation and sampling alone are done on the same rows once for their programs and then `--repeats` times in turn; the
medians count. The evaluation writes the thoughts, asks for the verdict with and without them, and makes rows of the
scores. Sampling alone writes the thoughts. `generate` compiles nothing and is done once: it writes as many thoughts of
the same length limit about the same prefixes, and then reads the verdict in one forward pass over each whole sequence.
Nothing else should run on the machine meanwhile.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from dwrl_jax.core.errors import exit_cleanly
from dwrl_jax.evaluation import benchmarks
from dwrl_jax.generation.keys import content_keys, content_seed
from dwrl_jax.generation.sampler import SamplerOptions, write
from dwrl_jax.judge.batching import answered
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.load import LoadedJudge, load
from dwrl_jax.judge.rows import bucket_of, questions_of, read_row
from dwrl_jax.judge.score import Work, longest_prefix, score


def seconds(what: str, work: Callable) -> float:
    """Seconds of a call, which are printed too."""
    begun = time.perf_counter()
    work()
    took = time.perf_counter() - begun
    print(f"{what}: {took:.2f} s", flush=True)
    return took


def questions(loaded: LoadedJudge, rows: list[dict]) -> list[list]:
    """The questions of each row with their padded lengths."""
    limit, kind = longest_prefix(loaded), loaded.card.kind
    asked = (questions_of(read_row(row, kind), kind, loaded.dialogue, limit)[0] for row in rows)
    return [[(bucket_of(len(each.prefix), loaded.card, limit), each) for each in row] for row in asked]


def sample_alone(loaded: LoadedJudge, asked: list[list], votes: int, batch_size: int) -> None:
    """The thoughts of an evaluation, in the same batches."""
    card = loaded.card
    options = SamplerOptions(votes, card.max_thought, card.top_k, card.top_p)

    def ask(batch, length, votes, first):
        padded = batch + batch[:1] * (batch_size - len(batch))
        prefix = np.full((batch_size, length), loaded.judge.pad, np.int32)
        for row, question in zip(prefix, padded):
            row[: len(question.prefix)] = question.prefix
        lengths = np.array([len(question.prefix) for question in padded], np.int32)
        content = np.stack([content_seed(question.prefix) for question in padded])
        with jax.set_mesh(loaded.mesh):
            drawn = _written(loaded.judge.writer, options, loaded.params, prefix, lengths, content)
        return lambda: jax.device_get(drawn) and [Answer(np.zeros(votes)) for _ in batch]

    list(answered(asked, ask, batch_size, (votes,), None))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _written(writer, options, params, prefix, prefix_len, content):
    drawn, _ = write(writer, options, params, prefix, prefix_len, content_keys(0, content, options.group_size))
    return drawn.thought, drawn.length


def generate(folder: str, loaded: LoadedJudge, asked: list[list], votes: int, batch_size: int) -> None:
    """The same thoughts and verdicts by transformers, in batches of equal numbers of questions, sorted by length."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    prefixes = sorted((question.prefix.tolist() for row in asked for _, question in row), key=len)
    tail = list(loaded.judge.question)
    pad = loaded.judge.pad

    def padded(rows, left):
        longest = max(map(len, rows))
        fill = [[pad] * (longest - len(row)) for row in rows]
        ids = [extra + row if left else row + extra for row, extra in zip(rows, fill)]
        mask = [[0] * len(e) + [1] * len(r) if left else [1] * len(r) + [0] * len(e) for r, e in zip(rows, fill)]
        return torch.tensor(ids, device=model.device), torch.tensor(mask, device=model.device)

    with torch.inference_mode():
        for start in range(0, len(prefixes), batch_size):
            batch = prefixes[start : start + batch_size]
            ids, mask = padded(batch, left=True)
            limits = {"max_new_tokens": loaded.card.max_thought, "eos_token_id": tail[0], "pad_token_id": pad}
            made = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=loaded.card.temperature, top_k=0, top_p=1.0,
                num_return_sequences=votes, **limits,
            )  # fmt: skip
            thoughts = made[:, ids.shape[1] :].tolist()
            whole = [batch[i // votes] + _until(thought, tail[0]) + tail for i, thought in enumerate(thoughts)]
            for part in range(0, len(whole), batch_size):
                model(*padded(whole[part : part + batch_size], left=False)).logits[:, -1].cpu()


def _until(thought: list[int], end: int) -> list[int]:
    return thought[: thought.index(end)] if end in thought else thought


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--benchmark", default="world")
    parser.add_argument("--data", default="")
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--votes", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--hf", action="store_true", help="time transformers too; the model is then a folder of it")
    given = parser.parse_args(arguments)
    loaded = load(given.model, card=read_card(given.judge) if given.judge else None)
    rows = [row for row in benchmarks.read(given.benchmark, given.data) if "error" not in row][: given.rows]
    rows = [{key: row[key] for key in ("prompt", "responses")} for row in rows]
    asked, work = questions(loaded, rows), Work()
    parts = {
        "evaluation": lambda: list(score(loaded, rows, given.votes, batch_size=given.batch_size, work=work)),
        "sampling alone": lambda: sample_alone(loaded, asked, given.votes, given.batch_size),
    }
    for name, part in parts.items():
        seconds(f"{name}, with compilation", part)
    times = [[seconds(name, part) for name, part in parts.items()] for _ in range(given.repeats)]
    whole, alone = np.median(times, 0)
    print(f"{jax.devices()[0].device_kind}, {len(rows)} rows, {given.votes} votes, batches of {given.batch_size}")
    print(f"evaluation {whole:.2f} s, {len(rows) / whole:.2f} rows/s, padding {100 * work.padding:.0f} %")
    print(f"sampling alone {alone:.2f} s; the evaluation takes {whole / alone:.2f} times that")
    if given.hf:
        theirs = seconds("transformers", lambda: generate(given.model, loaded, asked, given.votes, given.batch_size))
        times = f"the evaluation is {theirs / whole:.1f} times as fast"
        print(f"transformers {theirs:.2f} s, {len(rows) / theirs:.2f} rows/s; {times}")


if __name__ == "__main__":
    main()
