"""The same works by Hugging Face transformers with PyTorch: `generate`, and an update as TRL's GRPO trainer makes it.

Every sequence of a group passes whole through the model, its prompt included, because nothing there shares prefixes.
"""

import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from studies.accelerator.work import REPEATS, Work, median
from studies.speed.run import SHAPES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model_of(work: Work, dtype: torch.dtype):
    layers = {"num_hidden_layers": work.layers} if work.layers else {}
    values = SHAPES[work.shape] | layers
    config = AutoConfig.for_model(**values)
    config._attn_implementation = "sdpa"
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def seconds_of(call: Callable, repeats: int) -> list[float]:
    taken = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def peak_bytes() -> int | None:
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None


def generate(work: Work) -> Callable[[], dict]:
    """Sampling with key/value caches of bfloat16 weights; `num_return_sequences` makes the groups."""

    def measure() -> dict:
        torch.manual_seed(0)
        model = model_of(work, torch.bfloat16).eval()
        model.generation_config.eos_token_id = None
        ids = torch.randint(0, model.config.vocab_size, (work.prompts, work.plen), device=DEVICE)
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        options |= {"max_new_tokens": work.new, "num_return_sequences": work.group}

        def call():
            with torch.no_grad():
                model.generate(ids, attention_mask=torch.ones_like(ids), **options)

        taken = seconds_of(call, 2)
        tokens = work.prompts * work.group * work.new
        return {"sample_s": taken, "tokens_per_second": tokens / median(taken), "peak_bytes": peak_bytes()}

    return measure


def policy_update(work: Work) -> Callable[[], dict]:
    """Two updates of the clipped surrogate: float32 weights under bfloat16 autocast, checkpointed layers, fused AdamW.

    `work.micro_batches` parts of the sequences give summed gradients. Only thought tokens pass through the lm-head.
    """

    def measure() -> dict:
        torch.manual_seed(0)
        model = model_of(work, torch.float32).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.config.use_cache = False
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.0, fused=DEVICE == "cuda")
        sequences, length = work.prompts * work.group, work.plen + work.new
        ids = torch.randint(0, model.config.vocab_size, (sequences, length), device=DEVICE)
        advantage = torch.randn(sequences, 1, device=DEVICE)

        def one_update():
            for part, weight in zip(ids.chunk(work.micro_batches), advantage.chunk(work.micro_batches)):
                with torch.autocast(DEVICE, torch.bfloat16):
                    logits = model(part, logits_to_keep=work.new + 1).logits[:, :-1].float()
                thought = part[:, -work.new :]
                logp = -torch.nn.functional.cross_entropy(logits.transpose(1, 2), thought, reduction="none")
                ratio = torch.exp(logp - logp.detach())
                loss = -torch.minimum(ratio * weight, ratio.clamp(0.8, 1.2) * weight).mean() / work.micro_batches
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        taken = [2 * seconds for seconds in seconds_of(one_update, min(2, REPEATS))]
        return {"update_s": taken, "peak_bytes": peak_bytes()}

    return measure


KINDS = {"peer_generate": generate, "peer_update": policy_update}
