"""Every key of a run, with its default and its meaning. An experiment is a few assignments on top of this."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from dwrl_jax import objectives
from dwrl_jax.core.errors import UserError


def base_config() -> ConfigDict:
    """The locked base: an unknown key is an error. Lengths are in tokens, batch sizes in pairs."""
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.path = ""  # Hugging Face folder or hub id; empty where `base` or `model.preset` makes the model
    config.model.preset = (
        ""  # random weights of this architecture in small (models/families/presets.py), for trying out
    )
    config.model.tokenizer = ""  # folder or hub id, if not the model's own; a preset's own is the built-in world's
    config.model.dtype = "float32"  # computation; "bfloat16" on accelerators
    config.model.param_dtype = "float32"  # weights and the optimizer's second moment
    config.model.remat = (
        "dots"  # what the backward pass keeps: all ("none"), products and attention ("dots") or layers ("full")
    )
    # "xla", "blocks" (for CPUs), "splash" (TPUs), "cudnn" (NVIDIA GPUs, bfloat16), or the one for the machine: "auto"
    config.model.attention = "auto"

    config.mesh = ConfigDict()  # devices along each axis; -1 for the rest
    config.mesh.data = 1  # copies of the model
    config.mesh.fsdp = -1  # parts of weights and optimizer, gathered where they are used
    config.mesh.tensor = 1  # parts of heads, feed-forward and vocabulary

    config.dialogue = ConfigDict()
    config.dialogue.system = ""  # system message; empty for none of our own
    config.dialogue.judge_question = "Judge the response."  # asks for the thought
    config.dialogue.answer_question = "Is this a good response? A: Yes, B: No"  # asks for the answer
    config.dialogue.answers = ("A", "B")  # good, bad: one token each in their place
    # pairwise objectives: shows the conversation and both responses, and asks for the thought
    config.dialogue.pair_question = (
        "Here is a conversation.\n\n{conversation}\n\nResponse A:\n{first}\n\nResponse B:\n{second}\n\n"
        "Compare the two responses to the last message."
    )
    config.dialogue.turn = "{role}: {content}"  # pairwise: a turn of that conversation; blank lines stand between them
    config.dialogue.label_question = "Which response is better, A or B?"  # pairwise: asks for the label
    config.dialogue.labels = ("A", "B")  # pairwise: the first, the second is better: one token each in their place
    config.dialogue.score_question = "How good is the response, from 1 to 9?"  # oprm: asks for the score
    # oprm: the scores, the lowest first: one token each in their place
    config.dialogue.scores = tuple("123456789")
    config.dialogue.date = "26 Jul 2024"  # for templates that print today's date: training equals evaluation

    config.data = ConfigDict()
    config.data.train = ""  # pairs: .jsonl, .jsonl.gz, .parquet, a `datasets` name, or "world"
    config.data.eval = ""  # held-out pairs, likewise
    config.data.train_split = "train"  # of a `datasets` name
    config.data.eval_split = "test"  # of a `datasets` name
    config.data.pairs = 0  # training pairs drawn from a file or data set, always the same for a seed; 0 for all
    config.data.strict = False  # a malformed row is an error instead of being skipped and counted
    config.data.buckets = (256, 512, 1024)  # prefix lengths that programs are compiled for; the last is the limit
    config.data.batch_size = 16  # pairs per step
    config.data.window = 16  # batches among which pairs are grouped by length; 1 for none

    config.world = ConfigDict()
    config.world.seed = 0  # of the built-in world, where data.train or data.eval is "world"
    config.world.clean_share = 0.67  # of the demonstrations: clean chains first, thoughts of mixed quality after
    config.world.pairwise_share = 0.0  # of the demonstrations: dialogues that compare both responses, in both orders

    config.sampler = ConfigDict()
    config.sampler.group_size = 8  # thoughts per response, the paper's n
    config.sampler.max_thought = 512  # longest thought
    config.sampler.temperature = 1.0  # part of the density that is sampled and differentiated
    config.sampler.top_k = 0  # 0: off. Truncation samples another density than the one that is differentiated
    config.sampler.top_p = 1.0  # 1: off
    config.sampler.batch_size = 0  # pairs sampled at a time, 0 for all: fewer need less memory, thoughts are the same

    config.objective = ConfigDict()
    config.objective.name = "dwrl"  # a module of dwrl_jax/objectives
    config.objective.updates = "alternating"  # dwrl and its ablation: "alternating" (the paper's) or "joint"
    config.objective.baseline = "mean"  # likewise, and bvpo: "none" (the paper's), "mean" or "leave_one_out"
    config.objective.clip = (0.2, 0.2)  # all that learn from their thoughts: how far below and above 1 ratios go
    config.objective.dual_clip = 3.0  # likewise: bound of the loss of negative advantages, in advantages
    config.objective.token_aggregation = "sum"  # likewise: "sum" (exact) or "mean" over a thought's tokens
    config.objective.kl = 0.0  # likewise: coefficient of the KL term to the starting model
    # dwrl, bt*, preference_embedding: what is made of the margins of pairs: "regular" (nothing), "margin", "scaled"
    config.objective.bradley_terry = "regular"
    config.objective.alpha = 0.5  # bvpo: weight of the gradient with thoughts; the rest is that without
    config.objective.label_smoothing = 0.0  # gram: share of the target that goes to the other label
    config.objective.policy_updates = 1  # grpo_*, rm_r1: on the same thoughts; clipping acts from the second on
    config.objective.format_weight = 0.2  # rm_r1: reward of the format, where a right label earns 1
    config.objective.strength = "same"  # irpm: of a preference, the "same" for all pairs, or their margins: "data"
    config.objective.answer_weight = 1.0  # sft: weight of the answer's log-likelihood
    config.objective.centring = 0.0  # bt: coefficient of (r+ + r-)^2, which holds rewards near zero
    config.objective.planes = 4  # preference_embedding: its dimensions in pairs, the paper's k
    config.objective.beta = 0.1  # preference_embedding: log-odds are its score, which is from -1 to 1, over beta
    config.objective.head_init = 1.0  # with a value head: standard deviation of a fresh one, times 1 / sqrt(width + 1)

    config.score = ConfigDict()
    config.score.judge = ""  # kind of judge: "verdict", "label", "score", ...; empty for the objective's usual one
    config.score.readout = "vocab"  # probability over the full vocabulary, or over the two answers: "choices"
    config.score.chunk = 1024  # tokens that meet the lm-head at once

    config.optim = ConfigDict()
    config.optim.steps = 1000
    config.optim.learning_rate = 1e-6
    config.optim.warmup = 10  # steps
    config.optim.schedule = "cosine"  # "constant", "linear" or "cosine"
    config.optim.final_share = 0.1  # of the learning rate, at the end
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.95
    config.optim.epsilon = 1e-8
    config.optim.weight_decay = 0.0  # on matrices only
    config.optim.clip_norm = 1.0
    config.optim.value_head_rate = 10.0  # learning rate of a value head, in those of the rest
    config.optim.moment_dtype = "float32"  # of Adam's first moment; "bfloat16" saves 2 bytes per parameter
    config.optim.moments = "shared"  # by the phases of a step (dwrl: Eq. 14, Eq. 15), or "separate": twice as many
    config.optim.micro_batches = 1  # parts of the batch whose gradients are summed; exact, saves memory
    config.optim.packing = True  # short thoughts share lanes: at most two more programs per bucket, fewer positions

    config.eval = ConfigDict()
    config.eval.votes = (1, 8)  # thoughts per response whose mean is the score; the largest are sampled
    config.eval.pairs = 1000  # held-out pairs at most; 0 for no evaluation
    config.eval.batch_size = 16
    config.eval.every = 50  # steps between evaluations for the curve and for keeping the best; 0 for none
    config.eval.curve_pairs = 256  # of the held-out pairs, for the curve

    config.log = ConfigDict()
    config.log.thoughts_every = 25  # steps between thoughts written down
    config.log.thought_pairs = 4  # pairs whose thoughts are written down

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 50  # steps

    config.profile = False  # a trace of a few steps, in workdir/profile; may be changed in a run that has begun

    # A whole config of its own that first makes the model this run starts from; None for none
    config.base = placeholder(ConfigDict)
    return config.lock()


def accelerator_run(hub_id: str, *, tensor: int, micro_batches: int, sampled: int = 0) -> ConfigDict:
    """Full fine-tuning of a published model on HH-RLHF with the paper's numbers of pairs (20,000 and 1,000).

    Learning rate, group size and lengths are (ours): the paper's are not known. `tensor` parts of heads,
    `micro_batches` and `sampled` pairs at a time are those of the plan in the config's docstring; a machine with
    fewer devices needs others.
    """
    config = base_config()
    config.model.path = hub_id
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.train = config.data.eval = "Anthropic/hh-rlhf"
    config.data.pairs = 20_000
    config.data.batch_size = 64
    config.optim.steps = 312  # one pass over them
    config.optim.micro_batches = micro_batches
    config.sampler.batch_size = sampled
    config.mesh.tensor = tensor
    config.eval.every = 52
    return config


# What an objective needs to differ in, whatever the model and the data: applied last by `with_objective`
_NO_THOUGHT = {"sampler.group_size": 1, "sampler.max_thought": 1, "eval.votes": (1,)}
_COMPARES = {"score.readout": "choices"}
OBJECTIVES: dict[str, dict[str, object]] = {
    "bt": _NO_THOUGHT,
    "bt_token": _NO_THOUGHT,
    "preference_embedding": _NO_THOUGHT,
    "oprm": _NO_THOUGHT,
    "gram": _NO_THOUGHT | _COMPARES,
    "grpo_pair": _COMPARES,
    "rm_r1": _COMPARES,
}
PAIRWISE = ("gram", "grpo_pair", "rm_r1")  # those that judge both responses at once


def read_variant(variant: str) -> tuple[str, bool]:
    """The objective, and whether it is the quick trial, of --config=FILE:VARIANT, [OBJECTIVE][,smoke].

    Without an objective it is dwrl. UserError for a variant that does not exist.
    """
    *words, last = variant.split(",")
    quick = last == "smoke"
    name = ",".join(words if quick else [*words, last]) or "dwrl"
    known = objectives.names()
    if name not in known:
        raise UserError(f"--config=...:{variant}: no such variant; give one of {', '.join(known)}, or NAME,smoke")
    return name, quick


def with_objective(config: ConfigDict, name: str) -> ConfigDict:
    """The config for the objective `name`, with what that one needs, of its base too if it makes one."""
    needed = {"objective.name": name} | OBJECTIVES.get(name, {})
    if config.base is None:
        needed = {key: value for key, value in needed.items() if not key.startswith("base.")}
    config.update_from_flattened_dict(needed)
    return config


def smoke(config: ConfigDict, preset: str) -> ConfigDict:
    """The same run in under two minutes on two cores: a small random model, the built-in world, few steps.

    model.path, model.tokenizer and the data may be named again on the command line.
    """
    config.model.path, config.model.preset = "", preset
    config.model.dtype, config.model.remat = "float32", "none"
    config.mesh.tensor, config.sampler.batch_size = 1, 0
    config.data.train = config.data.eval = "world"
    config.data.buckets = (64, 128, 256)
    config.data.batch_size = 4
    # the built-in world's tokenizer knows only the words of that world
    config.dialogue.judge_question = "judge"
    config.dialogue.answer_question = config.dialogue.label_question = config.dialogue.score_question = "good?"
    config.dialogue.pair_question, config.dialogue.turn = "{conversation} A {first} B {second} judge", "{content}"
    config.dialogue.scores = ("a", "B", "A")
    config.sampler.group_size = 2
    config.sampler.max_thought = 8
    config.score.chunk = 128
    config.optim.steps = 2
    config.optim.micro_batches = 2
    config.eval.votes = (1, 2)
    config.eval.pairs = 16
    config.eval.curve_pairs = 8
    config.eval.batch_size = 4
    config.eval.every = 2
    return config


CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "xla", "blocks", "splash", "cudnn"),
    "objective.updates": ("alternating", "joint"),
    "objective.baseline": ("none", "mean", "leave_one_out"),
    "objective.token_aggregation": ("sum", "mean"),
    "objective.bradley_terry": ("regular", "margin", "scaled"),
    "objective.strength": ("same", "data"),
    "score.readout": ("vocab", "choices"),
    "optim.moment_dtype": ("float32", "bfloat16"),
    "optim.moments": ("shared", "separate"),
    "optim.schedule": ("constant", "linear", "cosine"),
}
AT_LEAST_ONE = [
    "data.batch_size",
    "data.window",
    "sampler.group_size",
    "sampler.max_thought",
    "score.chunk",
    "objective.policy_updates",
    "objective.planes",
    "optim.steps",
    "optim.micro_batches",
    "eval.batch_size",
    "log.thoughts_every",
    "checkpoint.every",
]
NOT_NEGATIVE = [
    "data.pairs",
    "sampler.top_k",
    "sampler.batch_size",
    "objective.kl",
    "objective.centring",
    "objective.head_init",
    "objective.format_weight",
    "optim.value_head_rate",
    "optim.learning_rate",
    "optim.warmup",
    "optim.weight_decay",
    "eval.pairs",
    "eval.every",
    "eval.curve_pairs",
    "log.thought_pairs",
]


def check(config: ConfigDict) -> None:
    """UserError naming the first key whose value cannot be meant."""
    value = {key: _get(config, key) for key in [*CHOICES, *AT_LEAST_ONE, *NOT_NEGATIVE]}
    for key, choices in CHOICES.items():
        if value[key] not in choices:
            raise UserError(f"{key}={value[key]!r}: choose one of {', '.join(choices)}")
    for key in AT_LEAST_ONE:
        if value[key] < 1:
            raise UserError(f"{key}={value[key]}: must be at least 1")
    for key in NOT_NEGATIVE:
        if value[key] < 0:
            raise UserError(f"{key}={value[key]}: must not be negative")
    if config.sampler.temperature <= 0:
        raise UserError(f"sampler.temperature={config.sampler.temperature}: must be above 0")
    if config.objective.beta <= 0:
        raise UserError(f"objective.beta={config.objective.beta}: must be above 0")
    if not 0 < config.sampler.top_p <= 1:
        raise UserError(f"sampler.top_p={config.sampler.top_p}: must be above 0 and at most 1 (off)")
    if config.data.batch_size % config.optim.micro_batches:
        raise UserError(
            f"optim.micro_batches={config.optim.micro_batches} does not divide data.batch_size={config.data.batch_size}"
        )
    for key in ("data.batch_size", "eval.batch_size"):
        pairs, size = _get(config, key), config.sampler.batch_size
        if size and pairs > size and pairs % size:
            raise UserError(f"sampler.batch_size={size} does not divide {key}={pairs}")
    if config.profile and config.optim.steps < 2:
        raise UserError("profile=True: the first step compiles and is not traced; give optim.steps at least 2")
    if config.objective.dual_clip <= 1:
        raise UserError(f"objective.dual_clip={config.objective.dual_clip}: must be above 1")
    if not 0 <= config.objective.label_smoothing < 0.5:
        raise UserError(f"objective.label_smoothing={config.objective.label_smoothing}: must be from 0 to below 0.5")
    for key in ("world.pairwise_share", "objective.alpha"):
        if not 0 <= _get(config, key) <= 1:
            raise UserError(f"{key}={_get(config, key)}: must be from 0 to 1")
    for key, size in (("dialogue.answers", 2), ("dialogue.labels", 2), ("objective.clip", 2)):
        if len(_get(config, key)) != size:
            raise UserError(f"{key}={_get(config, key)!r}: give {size} values")
    if len(config.dialogue.scores) < 2:
        raise UserError(f"dialogue.scores={config.dialogue.scores!r}: give at least 2 values")
    if not config.eval.votes or min(config.eval.votes) < 1:
        raise UserError(f"eval.votes={config.eval.votes!r}: give numbers of thoughts, each at least 1")
    if not config.model.path and not config.model.preset and config.base is None:
        raise UserError("model.path is missing: give a Hugging Face folder or hub id")
    if not config.data.train:
        raise UserError("data.train is missing: give a file of pairs, a `datasets` name, or 'world'")
    if config.eval.pairs and not config.data.eval:
        raise UserError("data.eval is missing: give held-out pairs, or --config.eval.pairs=0 for no evaluation")


def _get(config: ConfigDict, key: str):
    section, name = key.split(".")
    return config[section][name]


def flat(nested: dict, prefix: str = "") -> dict:
    """{"section.key": value} of a nested dictionary."""
    found = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
