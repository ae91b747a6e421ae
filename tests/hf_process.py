"""What each process does for test_hf_hosts: python -m tests.hf_process FOLDER WORKDIR.

It loads the checkpoint in FOLDER onto a mesh whose "fsdp" axis takes all devices. A single process loads it onto a
second mesh too and keeps it as the checkpoint of the run in WORKDIR. Several processes write what they loaded, and what
they restore from WORKDIR, beside FOLDER. Figures go to standard error.
"""

import json
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dwrl_jax.core import hosts, sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import TrainState
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.hf import load, save
from dwrl_jax.models.transformer import axis_names
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export


def load_and_count(folder, config, data=1):
    """Every shard against the whole load; bytes of the pieces read, and what they needed beyond the result."""
    whole, sizes, read = hf.load_params(folder, config), [], load._read_piece

    def counted(*args):
        piece = read(*args)
        sizes.append(piece.nbytes)
        return piece

    load._read_piece = counted
    places = sharding.shardings(sharding.make_mesh({"data": data, "fsdp": -1, "tensor": 1}), axis_names(config))
    tracemalloc.start()
    ours = hf.load_params(folder, config, shardings=places)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    load._read_piece = read

    def compare(found, expected):
        for shard in found.addressable_shards:
            np.testing.assert_array_equal(shard.data, expected[shard.index])

    jax.tree.map(compare, ours, whole)
    held = sum(s.data.nbytes for leaf in jax.tree.leaves(ours) for s in leaf.addressable_shards)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(whole))
    return ours, {"read": sum(sizes), "held": held, "total": total, "largest": max(sizes), "excess": peak - kept}


def refused(write):
    try:
        write()
    except (OSError, UserError) as error:
        return f"{type(error).__name__}: {error}"


def full_disk(*_, **__):
    raise OSError("No space left on device")


def keep(workdir, params):
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, TrainState(jnp.int32(1), params, {"count": jnp.int32(1)}), None)


def main(folder: Path, workdir: Path) -> None:
    hf_config = read_config(folder)
    config = model_config(hf_config)
    params, figures = load_and_count(folder, config)
    if jax.process_count() > 1:
        options = {"max_shard_bytes": 2**20}
        hf.save_model(folder.with_name("out"), params, config, hf_config, **options)
        export.export(workdir, folder.with_name("restored"))
        figures["taken"] = refused(lambda: hf.save_model(folder, params, config, hf_config, **options))
        save.save_file = full_disk if hosts.first() else None
        full = folder.with_name("full")
        figures["full"] = refused(lambda: hf.save_model(full, params, config, hf_config, **options))
    else:
        keep(workdir, params)
        figures["replicas"] = load_and_count(folder, config, data=4)[1]
    print("FIGURES", json.dumps(figures), file=sys.stderr)


if __name__ == "__main__":
    hosts.start()
    main(*map(Path, sys.argv[1:]))
