"""The model of a plan, from a config alone. No weights are read and nothing is downloaded."""

from pathlib import Path

from ml_collections import ConfigDict

from dwrl_jax.judge.judge import question_kind
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, with_value_head
from dwrl_jax.models.families.presets import published
from dwrl_jax.models.transformer import ModelConfig
from dwrl_jax.planning import chips
from dwrl_jax.training import assemble as build
from dwrl_jax.training import sources

QUESTION = 24  # tokens of the second question where no tokenizer is at hand; our default questions have about as many


def model_of(config: ConfigDict, topology: str) -> tuple[ModelConfig, tuple, list[str]]:
    """The model's shape, the ids of the second question, the answers, padding and stops, and a list of assumptions."""
    kind = build.judge_kind(config)
    hf_config, tokenizer, assumed = _architecture(config)
    if outputs := build.value_outputs(config):
        hf_config = with_value_head(hf_config, 0, outputs)
    numerics = build.numerics(config)
    if numerics["attention"] == "auto" and topology.partition(":")[0] in chips.TPUS:
        numerics["attention"] = "splash"  # "auto" means this where a TPU is attached
    shape = model_config(hf_config, **numerics)
    if tokenizer is None:
        answers = tuple(range(1, 1 + len(config.dialogue.scores))) if kind == "score" else (1, 2)
        return shape, (tuple(range(QUESTION)), answers, 0, ()), [*assumed, f"the second question has {QUESTION} tokens"]
    talk = sources.make_talk(config, tokenizer, question_kind(kind))
    build.check_lengths(config, shape, talk)
    return shape, (talk.question_ids, talk.answer_ids, talk.pad_id, talk.stop_ids), assumed


def _architecture(config: ConfigDict):
    """config.json, the tokenizer where it is on this machine, and a list of assumptions."""
    if config.model.path:
        folder = Path(config.model.path).expanduser()
        local = folder.is_dir()
        hf_config = hf.describe(folder, weights=False).hf_config if local else published(config.model.path)
        tokenizer = Path(config.model.tokenizer or folder).expanduser()
        at_hand = (tokenizer / "tokenizer.json").is_file()
        assumed = [] if local else [f"{config.model.path} has the shape published for it (models/families/presets.py)"]
        return hf_config, build.load_tokenizer(config, folder) if at_hand else None, assumed
    if config.base is not None:
        return _architecture(config.base)
    tokenizer = build.load_tokenizer(config, Path())
    return build.small_config(config, tokenizer), tokenizer, []
