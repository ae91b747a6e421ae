"""Attention by the program that serves the machine and the shapes best; all mean the same."""

import jax
from jaxtyping import Array, Float, Int

from dwrl_jax.models.attention import kernels
from dwrl_jax.models.attention.regions import Region, attend_at_once, attend_in_blocks

BLOCK_BYTES = 8 * 2**20  # of scores that are made at a time on a CPU
QUERIES = 128  # of a branch in a block, about; but not more than BLOCKS blocks, each a program of its own
BLOCKS = 8
FEW = 64  # new tokens that are not worth a kernel's launch, its padding and copies of keys: decoding


def attend(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
    *,
    backend: str = "auto",
) -> Float[Array, "P G T N H"]:
    """`attend_at_once` by a backend. "xla" is the thing itself, "blocks" makes scores in blocks where a CPU's
    cache cannot hold them, "splash" and "cudnn" are fused kernels for TPUs and for NVIDIA GPUs; "auto" takes the
    one of the machine at hand. The kernels are for passes over many tokens, not for decoding.
    """
    P, G, T, N, _ = q.shape
    mesh = jax.sharding.get_abstract_mesh()
    mesh = None if mesh.empty or mesh.size == 1 else mesh
    if backend == "auto":
        found = {"cpu": "xla" if mesh else "blocks", "tpu": "splash", "gpu": "cudnn"}
        backend = found.get(jax.default_backend(), "xla")
    if backend == "splash" and T > FEW:
        return kernels.splash(q, k, v, regions, segments, mesh=mesh)
    if backend == "cudnn" and T > FEW:
        return kernels.cudnn(q, k, v, regions, segments)
    per_query = 4 * N * (T + sum(region.v.shape[3] for region in regions))  # bytes of scores
    if backend != "blocks" or P * G * T * per_query <= BLOCK_BYTES:
        return attend_at_once(q, k, v, regions, segments)[0]
    size = max(min(-(-T // max(T // QUERIES, 1)), BLOCK_BYTES // per_query), -(-T // BLOCKS))
    together = max(n for n in range(1, G + 1) if G % n == 0 and (n == 1 or n * T * per_query <= BLOCK_BYTES))
    return attend_in_blocks(q, k, v, regions, segments, size, together)
