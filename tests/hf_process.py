"""What each process does for test_hf_hosts: python -m tests.hf_process FOLDER [WORKDIR].

It loads the checkpoint in FOLDER onto a mesh whose "fsdp" axis takes all devices, or with the sizes in $MESH. It
exports it beside its place where there are several processes, and keeps it as the run's in WORKDIR where one is named.
Figures go to standard error.
"""

import json
import os
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


def spread(config):
    """Where the parameters go on a mesh of the devices of all processes."""
    sizes = {"data": 1, "fsdp": -1, "tensor": 1} | json.loads(os.environ.get("MESH", "{}"))
    return sharding.shardings(sharding.make_mesh(sizes), axis_names(config))


def load_and_count(folder, config):
    """Every shard against the whole load; bytes of the pieces read, and what they needed beyond the result."""
    whole, sizes, read = hf.load_params(folder, config), [], load._read_piece

    def counted(*args):
        piece = read(*args)
        sizes.append(piece.nbytes)
        return piece

    load._read_piece = counted
    tracemalloc.start()
    ours = hf.load_params(folder, config, shardings=spread(config))
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


def main(folder: Path, *workdirs: Path) -> None:
    hf_config = read_config(folder)
    config = model_config(hf_config)
    params, figures = load_and_count(folder, config)
    if jax.process_count() > 1:
        options = {"max_shard_bytes": 2**20}
        hf.save_model(folder.with_name("out"), params, config, hf_config, **options)
        figures["taken"] = refused(lambda: hf.save_model(folder, params, config, hf_config, **options))
        save.save_file = full_disk if hosts.first() else None
        full = folder.with_name("full")
        figures["full"] = refused(lambda: hf.save_model(full, params, config, hf_config, **options))
    for workdir in workdirs:
        keep(workdir, params)
    print("FIGURES", json.dumps(figures), file=sys.stderr)


if __name__ == "__main__":
    hosts.start()
    main(*map(Path, sys.argv[1:]))
