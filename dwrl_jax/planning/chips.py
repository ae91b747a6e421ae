"""Published figures of accelerators, and the devices of a topology, which need not be attached."""

import contextlib
import dataclasses
import math
import os
import re

import jax
from jax.experimental import topologies

from dwrl_jax.core.errors import UserError

GB, TERA = 10**9, 10**12


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device: memory in bytes, dense bfloat16 FLOP/s, bytes/s of memory and of its links.

    Links are all links of a chip, one direction. A figure that is not published is None, and so is all that would
    follow from it.
    """

    name: str
    memory: int
    flops: float | None
    memory_speed: float | None
    link_speed: float | None
    source: str


# Published gigabytes count as 10^9 bytes: the runtime keeps the few per cent of difference for itself.
# Links: Google's pages give both directions together (400, 1200 and 800 GB/s for v5e, v5p and v6e); half of it is one
# direction. The figure of v4 is from the paper on it: six links of 50 GB/s.
_TPU = "https://docs.cloud.google.com/tpu/docs/"
TPUS = {
    "v4": Chip("TPU v4", 32 * GB, 275 * TERA, 1200 * GB, 300 * GB, _TPU + "v4 and arXiv 2304.01433"),
    "v5e": Chip("TPU v5e", 16 * GB, 197 * TERA, 819 * GB, 200 * GB, _TPU + "v5e"),
    "v5p": Chip("TPU v5p", 95 * GB, 459 * TERA, 2765 * GB, 600 * GB, _TPU + "v5p"),
    "v6e": Chip("TPU v6e", 32 * GB, 918 * TERA, 1638 * GB, 400 * GB, _TPU + "v6e"),
}
# without these libtpu looks for an attached TPU, warns that there is none, and serves a single process
LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology(name: str) -> tuple[Chip, list]:
    """The chip and the devices of "v5e:4x4", of "cpu" or "cpu:8", or of "gpu" (the attached ones).

    "cpu:8" works only before JAX has been used in this process. UserError for a name that JAX does not know here.
    """
    kind, _, sizes = name.partition(":")
    if kind in TPUS and re.fullmatch(r"\d+(x\d+){1,2}", sizes):
        return TPUS[kind], _tpu_devices(name)
    if kind == "cpu" and (not sizes or sizes.isdecimal()):
        return _cpu(int(sizes or 1))
    if kind == "gpu" and not sizes:
        return _gpu()
    known = ", ".join(f"{kind}:4x4" if len(kind) == 3 and kind[2] == "e" else f"{kind}:2x2x1" for kind in TPUS)
    raise UserError(f"--topology={name}: give a TPU's kind and shape ({known}), cpu, cpu:8 or gpu")


def _tpu_devices(name: str) -> list:
    for key, value in LIBTPU.items():
        os.environ.setdefault(key, value)
    both_cores = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}  # as one device, like JAX on a v4
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **both_cores).devices
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if "not installed" in reason:
            raise UserError(f"--topology={name}: needs libtpu, but no TPU: pip install 'dwrl_jax[tpu]'") from error
        raise UserError(f"--topology={name}: libtpu does not know it ({reason})") from error
    chips = math.prod(map(int, name.partition(":")[2].split("x")))
    if len(devices) != chips:
        raise UserError(f"--topology={name}: {len(devices)} devices for {chips} chips, of which plan has no figures")
    return devices


def _cpu(count: int) -> tuple[Chip, list]:
    with contextlib.suppress(RuntimeError):  # JAX has been used already: its number of devices stays
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--topology=cpu:{count}: this process has {len(devices)} CPU devices already")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // count
    return Chip("CPU", memory, None, None, None, f"this machine's memory, over {count} devices"), devices[:count]


def _gpu() -> tuple[Chip, list]:
    """Only memory is known, from the driver: published figures differ too much between cards of the same name."""
    try:
        devices = jax.devices("gpu")
    except RuntimeError as error:
        raise UserError(
            "--topology=gpu: JAX compiles for GPUs only where one is attached, with jax[cuda12] or [cuda13]; "
            "plan a TPU topology, or cpu"
        ) from error
    memory = devices[0].memory_stats()["bytes_limit"]
    return Chip(devices[0].device_kind, memory, None, None, None, "what JAX may use of the attached device"), devices
