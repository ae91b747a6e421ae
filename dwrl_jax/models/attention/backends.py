"""Attention by the program that suits the machine and the shapes best. All programs compute the same function."""

import jax
from jaxtyping import Array, Float, Int

from dwrl_jax.models.attention import few_bits, kernels
from dwrl_jax.models.attention.regions import Region, Window, attend_at_once, attend_in_blocks

BLOCK_BYTES = 8 * 2**20  # bytes of scores that a CPU computes at a time
QUERIES = 128  # approximate number of a branch's queries in a block
BLOCKS = 8  # largest number of blocks, because each block is compiled separately
FEW = 64  # for so few new tokens (decoding) a kernel's launch, padding and copies of keys cost more than they save


def attend(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
    window: Window | None = None,
    *,
    backend: str = "auto",
) -> Float[Array, "P G T N H"]:
    """softmax(q k^T / sqrt(H)) v as in `attend_at_once`, computed by `backend`.

    "xla" is `attend_at_once` itself. "blocks" computes scores in blocks when a CPU's cache cannot hold them all.
    "splash" and "cudnn" are fused kernels for TPUs and for NVIDIA GPUs. "auto" chooses the backend of this machine.
    The kernels are used for passes over many tokens, not for decoding.
    """
    P, G, T, N, _ = q.shape
    mesh = jax.sharding.get_abstract_mesh()
    mesh = None if mesh.empty or mesh.size == 1 else mesh
    if backend == "auto":
        backends = {"cpu": "xla" if mesh else "blocks", "tpu": "splash", "gpu": "cudnn"}
        backend = backends.get(jax.default_backend(), "xla")
    if backend in ("splash", "cudnn") and T > FEW:
        regions = tuple(Region(*(few_bits.decode(x, q.dtype) for x in r[:2]), r.length) for r in regions)
    if backend == "splash" and T > FEW:
        return kernels.splash(q, k, v, regions, segments, window, mesh=mesh)
    if backend == "cudnn" and T > FEW:
        return kernels.cudnn(q, k, v, regions, segments, window)
    per_query = 4 * N * (T + sum(region.v.shape[3] for region in regions))  # bytes of scores
    if backend != "blocks" or P * G * T * per_query <= BLOCK_BYTES:
        return attend_at_once(q, k, v, regions, segments, window=window)[0]
    size = max(min(-(-T // max(T // QUERIES, 1)), BLOCK_BYTES // per_query), -(-T // BLOCKS))
    together = max(n for n in range(1, G + 1) if G % n == 0 and (n == 1 or n * T * per_query <= BLOCK_BYTES))
    return attend_in_blocks(q, k, v, regions, segments, size, together, window)
