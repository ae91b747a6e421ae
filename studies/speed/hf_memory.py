"""Host memory of loading a Hugging Face checkpoint that lies in parts on several processes:

python -m studies.speed.hf_memory [--processes=4] [--devices=2] [--layers=16] [--bound=MIB] [--folder=DIR]

The study makes a random checkpoint in bfloat16 (197 MB and 94 MB a layer), takes it out of the page cache and loads it
as float32 onto an "fsdp" mesh of forced CPU devices. On the CPU the parameters themselves lie in host memory, so the
peak beyond them counts. --bound limits the memory of each process from the load on, its parameters included
(RLIMIT_DATA): a process that needs more fails. Linux only.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax

from dwrl_jax.core import hosts, sharding
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import axis_names

ROOT = Path(__file__).parents[2]
MIB = 2**20


def proc(file: str, key: str) -> int:
    """A figure of this process in bytes."""
    line = next(line for line in Path("/proc/self", file).read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * (1024 if line.endswith("kB") else 1)


def make(folder: Path, layers: int, width: int) -> None:
    """A random checkpoint with heads of 128, in bfloat16 and in files of at most 400 MiB."""
    shape = {"hidden_size": width, "intermediate_size": width // 6 * 35, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 128, "num_key_value_heads": 2}
    hf_config = shrink(PRESETS["qwen2.5-3b"], 64_000, **shape, **heads)
    config = model_config(hf_config, param_dtype="bfloat16")
    hf.save_model(folder, hf.random_params(config, 0), config, hf_config, dtype="bfloat16", max_shard_bytes=400 * MIB)


def measure(folder: Path, bound: int | None) -> dict:
    """The load of a process: megabytes of its parameters, of the peak beyond them and of the data from the disk."""
    hosts.start()
    config = model_config(read_config(folder))
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
    places = sharding.shardings(mesh, axis_names(config))
    before, disk, done, peak = proc("status", "RssAnon"), proc("io", "read_bytes"), threading.Event(), [0]

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], proc("status", "RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    if bound:
        resource.setrlimit(resource.RLIMIT_DATA, (proc("status", "VmData") + bound * MIB,) * 2)
    began = time.perf_counter()
    params = hf.load_params(folder, config, shardings=places)
    seconds = time.perf_counter() - began
    done.set()
    leaves = [[shard.data.nbytes for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(params)]
    held = sum(map(sum, leaves))
    return {
        "process": jax.process_index(),
        "parameters_mb": held / 1e6,
        "largest_piece_mb": max(map(max, leaves)) / 1e6,
        "peak_beyond_mb": (peak[0] - before - held) / 1e6,
        "from_disk_mb": (proc("io", "read_bytes") - disk) / 1e6,
        "seconds": seconds,
    }


def forget(folder: Path) -> int:
    """Take the files out of the page cache. Returns their size in bytes."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--devices", type=int, default=2, help="of each process")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1536, help="a multiple of 256")
    parser.add_argument("--bound", type=int, help="MiB that a process may allocate")
    parser.add_argument("--folder", type=Path, help="where to make the checkpoint, or one that is there")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, socket.socket() as free:
        folder = (given.folder or Path(temporary) / "model").absolute()
        if not folder.exists():
            make(folder, given.layers, given.width)
        print(f"checkpoint: {forget(folder) / 1e6:.0f} MB, bfloat16")
        free.bind(("localhost", 0))
        env = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={given.devices}",
            hosts.COORDINATOR: f"localhost:{free.getsockname()[1]}",
            hosts.COUNT: str(given.processes),
        }
        free.close()
        code = f"import studies.speed.hf_memory as m; m.child({str(folder)!r}, {given.bound})"
        numbers = ({hosts.NUMBER: str(number)} for number in range(given.processes))
        started = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env | number) for number in numbers]
        while all(process.poll() in (None, 0) for process in started) and any(p.poll() is None for p in started):
            time.sleep(0.1)
        for process in started:
            process.kill()
        sys.exit(max(abs(process.wait()) for process in started))


def child(folder: str, bound: int | None) -> None:
    """A process waits at its end for the others. Where one of them has failed, the parent ends all."""
    print(json.dumps({k: round(v, 1) for k, v in measure(Path(folder), bound).items()}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
