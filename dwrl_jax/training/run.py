"""A run, from its config to results.json and report.html. A stopped run goes on where it was."""

import json
import shutil
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from dwrl_jax.core import faults, files, hosts, lock, sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE, CARD
from dwrl_jax.core.terminal import say
from dwrl_jax.data import world
from dwrl_jax.dialogue import tokenizers
from dwrl_jax.evaluation.summary import summarise
from dwrl_jax.judge import card
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.reporting.page import write_report
from dwrl_jax.settings.commandline import at_home
from dwrl_jax.settings.config import as_json
from dwrl_jax.training import loop
from dwrl_jax.training.assemble import (
    Start,
    architecture,
    build,
    check_weights,
    judge_card,
    judge_kind,
    keep_architecture,
    load_objective,
    load_tokenizer,
    small_config,
)
from dwrl_jax.training.config import changes, check
from dwrl_jax.training.sources import Held
from dwrl_jax.training.starting import keep_lora
from dwrl_jax.workdir import model as export
from dwrl_jax.workdir import records


def fit(config: ConfigDict, workdir: Path) -> dict | None:
    """Make a run in `workdir`, from its config to report.html. Returns the content of results.json.

    None without held-out pairs, and on processes that do not write.
    """
    check(config)
    load_objective(config)  # bad input ends the run before a base model is made
    check_weights(config)
    sharding.make_mesh(config.mesh)
    with lock.held(workdir / lock.NAME, "choose another --workdir"):
        hosts.attempt(files.sweep, workdir)
        return _fit(config, workdir)


def _fit(config: ConfigDict, workdir: Path) -> dict | None:
    begun = hosts.of_first(is_begun(config, workdir))
    start = kept_start(config, workdir) if begun else new_start(config, workdir)
    run, held, notes = build(config, workdir, start)
    kept = workdir / ARCHITECTURE
    if not begun:
        keep_architecture(kept, start.hf_config, start.folder(), start.tokenizer)
        keep_lora(config, workdir, start.folder())
    faults.point("architecture")
    records.write_json(kept / CARD, card.as_json(judge_card(config, start.tokenizer)))
    records.write_json(workdir / "config.json", as_json(config))
    if run.thoughts.source == "policy" and (config.sampler.top_k or config.sampler.top_p < 1):
        say("warning: with sampler.top_k or top_p the density that is sampled is not the one that is trained")
    few_bits = config.sampler.cache or config.sampler.weights
    if run.thoughts.source == "policy" and few_bits and not config.objective.get("importance"):
        say(
            "warning: with sampler.cache or sampler.weights the density that is sampled is not the one that is "
            "trained: see train/logp_gap_mean and, for objectives that have it, objective.importance"
        )
    if run.thoughts.source == "policy" and config.lora.dropout:
        say("warning: with lora.dropout the density that is sampled is not the one that is trained")
    for name, note in notes.items():
        say(f"{name} data: {note}")
    state, scores = loop.train(run)
    if held is None or not hosts.first():
        return None
    results = results_of(config, held, scores) | {
        "steps": int(state.step),
        "seconds": records.total(workdir, "time/step_seconds"),
        "data": notes,
    }
    records.write_results(workdir, results)
    faults.point("results")
    write_report(workdir)
    return results


def is_begun(config: ConfigDict, workdir: Path) -> bool:
    """Whether the workdir has a run that may go on with this config. UserError where it has another run."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "config.json"
    if not path.exists():
        return False
    kept = as_json(at_home(ConfigDict(json.loads(path.read_text()))))
    for key, (old, new) in changes(kept, as_json(config)).items():
        raise UserError(f"{path}: this run has {key}={old!r}, not {new!r}; choose another --workdir")
    return True


def new_start(config: ConfigDict, workdir: Path) -> Start:
    """The starting model of a run that begins. It is made first where the config says how."""
    folder = starting_folder(config, workdir)
    if not config.model.path and config.base is None:
        make_random(config, folder)
    model = hf.describe(folder, low_rank=not config.lora.rank)
    for note in model.notes:
        say(f"note: {note}")
    tokenizer = load_tokenizer(config, folder)
    ends = tokenizers.end_ids(folder)
    return Start(architecture(config, folder, model.hf_config, tokenizer), tokenizer, lambda: folder, ends)


def kept_start(config: ConfigDict, workdir: Path) -> Start:
    """The starting model of a run that goes on: the workdir has all that it needs, apart from the parameters."""
    kept = workdir / ARCHITECTURE
    tokenizer, ends = tokenizers.load_tokenizer(kept), tokenizers.end_ids(kept)
    return Start(read_config(kept), tokenizer, lambda: starting_folder(config, workdir), ends)


def starting_folder(config: ConfigDict, workdir: Path) -> Path:
    """The Hugging Face folder of the starting model: the given folder, the base run's, or that of random parameters."""
    if config.model.path:
        return hf.resolve(config.model.path)
    if config.base is None:
        return workdir / "random"
    folder = workdir / "base" / "model"
    finished = is_begun(config.base, workdir / "base") and folder.exists()
    if not hosts.of_first(finished):
        say("making the base model")
        fit(config.base, workdir / "base")
        faults.point("base")
        export.export(workdir / "base", folder)
    return folder


def make_random(config: ConfigDict, folder: Path) -> None:
    """Write the small model that model.preset names, with random parameters."""
    hosts.by_first(shutil.rmtree)(folder, ignore_errors=True)
    tokenizer = load_tokenizer(config, folder)
    hf_config = small_config(config, tokenizer)
    shape = model_config(hf_config)
    params = hf.random_params(shape, config.seed)
    hosts.attempt(hf.save_model, folder, params, shape, hf_config, tokenizer=tokenizer)


def results_of(config: ConfigDict, held: Held, scores: dict[str, np.ndarray]) -> dict:
    """The part of results.json that follows from the held-out log scores [N S K] of "base" and "trained"."""
    judge = judge_kind(config)
    summary = summarise(
        scores,
        config.eval.votes,
        pairwise=judge == "label",
        sources=[pair.source for pair in held.pairs],
        references=world.references(held.world, held.pairs) if held.world is not None else {},
    )
    return {"judge": judge, **summary, "config": as_json(config)}
