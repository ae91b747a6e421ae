"""Attention by fused kernels for TPUs and for NVIDIA GPUs, which never hold all scores.

Letters as in regions.py: P prefixes (rows), G branches per prefix, T new tokens, S earlier tokens, N query heads,
K key/value heads, H head size. Both functions compute the same as `attend_at_once`. They call it in the cases that a
kernel does not support; their docstrings list these cases.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from dwrl_jax.core.sharding import ROWS, TENSOR
from dwrl_jax.models.attention.regions import KEPT, Region, Window, attend_at_once, in_window

LANES = 128  # lanes of a TPU's vector unit; block sizes are multiples of it
BLOCKS = (512, 384, 256)  # possible numbers of tokens in a block
STEP = 64  # cuDNN's causal pass failed at 11 tokens on an H200 (JAX 0.11.2); it runs at multiples of this number


@dataclasses.dataclass(frozen=True)
class Tree(pallas.Mask):
    """The keys that each query of a row sees: all shared keys, and the keys of its own branch up to itself.

    The order of the keys is: the `shared` keys of shared regions; then for each branch the `own` keys of the regions
    that the branch has for itself, and its `new` keys of new tokens. So after the shared keys each query sees a single
    run of keys, which ends with its own key. A query's id holds the number of the run's last key and, in the lower
    `bits`, the length of the run minus 1. The kernel receives ids as data, so a run may be shorter than in this mask.
    The mask alone decides which blocks are skipped.

    The kernel compares masks, reuses the results for an equal mask, and calls `mask_function` on blocks of ids.
    """

    queries: int  # number of queries with padding
    keys: int  # number of keys with padding
    shared: int
    own: int
    new: int
    branches: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.queries, self.keys

    @property
    def bits(self) -> int:
        return (self.own + self.new - 1).bit_length()

    @property
    def fits(self) -> bool:
        """Whether ids fit into 32 bits."""
        return self.branches * (self.own + self.new) << self.bits <= 2**31

    @property
    def q_sequence(self) -> Int[np.ndarray, " queries"]:
        branch, token = np.divmod(np.arange(self.branches * self.new), self.new)
        ids = (branch * (self.own + self.new) << self.bits) + (self.own + token) * (2**self.bits + 1)
        return np.pad(ids, (0, self.queries - len(ids)), mode="edge").astype(np.int32)

    @property
    def mask_function(self):
        return _Sees(self.shared, self.bits)

    def __getitem__(self, index) -> Bool[np.ndarray, "queries keys"]:
        queries, keys = index
        return self.mask_function(self.q_sequence[queries][:, None], np.arange(self.keys)[keys][None])


@dataclasses.dataclass(frozen=True)
class _Sees:
    """The rule of `Tree` for blocks of query ids and key numbers. Two equal rules compare equal and share programs."""

    shared: int
    bits: int

    def __call__(self, ids, keys):
        back = (ids >> self.bits) - (keys - self.shared)
        return (keys < self.shared) | ((back >= 0) & (back <= (ids & (2**self.bits - 1))))


def splash(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
    window: Window | None = None,
    *,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh | None = None,
    interpret: bool = False,
) -> Float[Array, "P G T N H"]:
    """`attend_at_once` on TPUs by splash attention. Each row is a call with the keys of all its regions and branches.

    A shared region is never copied, and blocks in which no query sees a key are skipped. Lengths of regions become
    segment ids of the kernel. The tokens of each of our `segments` must be contiguous, as `pack` puts them.

    XLA cannot split a kernel, so this function splits it. On a `mesh` with the axes data, fsdp and tensor, rows are
    split over the first two and heads over the last.

    The function calls `attend_at_once` in these cases: segments together with regions that differ by branch, because
    a query then sees three runs of keys and its id holds a single run; a region with neither 1 nor G branches; ids
    that do not fit into 32 bits (8 branches of more than 16,384 tokens, including the branch's regions); a sliding
    window, for the same reason as segments; a mesh that does not divide the rows or the heads.
    """
    P, G, T, N, _ = q.shape
    shared = [r for r in regions if r.k.shape[1] == 1]
    private = [r for r in regions if r.k.shape[1] == G != 1]
    tree = _tree(shared, private, G, T)
    three_runs = segments is not None and private
    if len(shared) + len(private) < len(regions) or three_runs or window is not None or not tree.fits:
        return attend_at_once(q, k, v, regions, segments, window=window)[0]
    shared, private = ([r._replace(length=_lengths(r)) for r in x] for x in (shared, private))
    call = functools.partial(_splash, tree=tree, interpret=interpret)
    if mesh is None:
        return call(q, k, v, shared, private, segments)
    rows, tensor = math.prod(mesh.shape[axis] for axis in ROWS), mesh.shape[TENSOR]
    if P % rows or k.shape[3] % tensor:
        return attend_at_once(q, k, v, regions, segments, window=window)[0]
    token, earlier = PartitionSpec(ROWS, None, None, TENSOR), PartitionSpec(ROWS, None, TENSOR)
    row = PartitionSpec(ROWS)
    specs = [[Region(earlier, earlier, row) for _ in x] for x in (shared, private)]
    call = jax.shard_map(call, mesh=mesh, in_specs=(token, token, token, *specs, row), out_specs=token, check_vma=False)
    return call(q, k, v, shared, private, segments)


def _splash(q, k, v, shared, private, segments, *, tree: Tree, interpret: bool) -> Float[Array, "P G T N H"]:
    """A kernel call for each row, on a single device."""
    P, G, T, N, H = q.shape
    fused = pallas.make_splash_mha(
        pallas.MultiHeadMask([tree] * N),
        block_sizes=_block_sizes(tree),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )
    queries = (q * H**-0.5).reshape(P, G * T, N, H).transpose(0, 2, 1, 3)
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, tree.queries - G * T), (0, 0)))
    keys = _row([r.k.swapaxes(3, 4) for r in shared], [r.k.swapaxes(3, 4) for r in private], k, tree)
    values = _row([r.v for r in shared], [r.v for r in private], v, tree)
    seen = _seen(shared, private, tree, P)
    ids = None if segments is None else _runs(segments, tree)

    def one_row(queries, keys, values, seen, ids):
        visible = seen if seen is None else pallas.SegmentIds(jnp.ones(tree.queries, jnp.int32), seen)
        # the query ids are the only array of the kernel with a single axis
        kernel = fused if ids is None else jax.tree.map(lambda x: ids if x.ndim == 1 else x, fused)
        return kernel(queries, keys, values, visible)

    out = jax.vmap(one_row)(queries, keys, values, seen, ids)
    return out[:, :, : G * T].transpose(0, 2, 1, 3).reshape(P, G, T, N, H)


def _tree(shared: list[Region], private: list[Region], branches: int, new: int) -> Tree:
    """The mask for these shapes, padded to whole blocks. A query of the padding sees the same as the last query."""
    before, beside = (sum(r.v.shape[3] for r in x) for x in (shared, private))
    queries, keys = branches * new, before + branches * (beside + new)
    queries, keys = (-(-count // _block(count)) * _block(count) for count in (queries, keys))
    return Tree(queries, keys, before, beside, new, branches)


def _block(count: int) -> int:
    """Number of tokens in a block: a single block for few tokens, else the size in `BLOCKS` with the least padding."""
    if count <= BLOCKS[0]:
        return -(-count // LANES) * LANES
    return min(BLOCKS, key=lambda block: -count % block)


def _block_sizes(tree: Tree) -> pallas.BlockSizes:
    queries, keys = map(_block, tree.shape)
    return pallas.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )


def _row(shared, private, new: Float[Array, "P G T K H"], tree: Tree) -> Float[Array, "P K keys H"]:
    """A row's keys or values in the order of `Tree`. Regions are [P Gr K S H]."""
    P, _, _, K, H = new.shape
    branches = jnp.concatenate([*private, new.swapaxes(2, 3)], 3).swapaxes(1, 2).reshape(P, K, -1, H)
    row = jnp.concatenate([*(x[:, 0] for x in shared), branches], 2)
    return jnp.pad(row, ((0, 0), (0, 0), (0, tree.keys - row.shape[2]), (0, 0)))


def _seen(shared: list[Region], private: list[Region], tree: Tree, rows: int) -> Int[Array, "P keys"] | None:
    """1 for keys inside their region's length and 0 for others, in the order of `Tree`. None if no region is masked."""
    if all(r.length is None for r in (*shared, *private)):
        return None
    before = [_inside(r, rows)[:, 0] for r in shared]
    beside = [_inside(r, rows) for r in private]
    branches = jnp.concatenate([*beside, jnp.ones((rows, tree.branches, tree.new), bool)], 2)
    row = jnp.concatenate([*before, branches.reshape(rows, -1)], 1)
    return jnp.pad(row, ((0, 0), (0, tree.keys - row.shape[1]))).astype(jnp.int32)


def _runs(segments: Int[Array, "P G T"], tree: Tree) -> Int[Array, "P queries"]:
    """Ids of `Tree` for queries that see no further back than the first token of their segment."""
    at = jnp.arange(tree.new)
    opens = jnp.pad(segments[..., 1:] != segments[..., :-1], ((0, 0), (0, 0), (1, 0)))
    back = at - jax.lax.cummax(jnp.where(opens, at, 0), axis=2)
    last = jnp.arange(tree.branches)[:, None] * tree.new + at
    ids = ((last << tree.bits) + back).reshape(segments.shape[0], -1).astype(jnp.int32)
    return jnp.pad(ids, ((0, 0), (0, tree.queries - ids.shape[1])), mode="edge")


def _lengths(region: Region) -> Int[Array, "P Gr"] | None:
    """A region's lengths, with an entry for each of its branches."""
    return region.length if region.length is None else jnp.broadcast_to(region.length, region.k.shape[:2])


def _inside(region: Region, rows: int) -> Bool[Array, "P Gr S"]:
    """True for the keys of a region inside its length."""
    _, branches, _, size, _ = region.v.shape
    if region.length is None:
        return jnp.ones((rows, branches, size), bool)
    return jnp.arange(size) < _lengths(region)[..., None]


def cudnn(
    q: Float[Array, "P G T N H"],
    k: Float[Array, "P G T K H"],
    v: Float[Array, "P G T K H"],
    regions: tuple[Region, ...],
    segments: Int[Array, "P G T"] | None = None,
    window: Window | None = None,
    *,
    implementation: str = "cudnn",
) -> Float[Array, "P G T N H"]:
    """`attend_at_once` on NVIDIA GPUs by cuDNN's fused attention. Each branch is an item of the batch.

    A shared region is copied for each of its branches while a layer runs. All heads share a boolean mask of the keys
    that each query sees. The mask costs P G T S values of q's type. The gradient costs the same again, because cuDNN
    always computes a gradient of the mask. A plain causal pass has no mask and skips half of the work.

    The function calls `attend_at_once` for inputs that cuDNN does not support: types other than bfloat16 and float16,
    head sizes that are not multiples of 8, and head sizes above 128, which need Hopper GPUs. For tests,
    `implementation` "xla" makes the same call without cuDNN, for any type.
    """
    P, G, T, N, H = q.shape
    if implementation == "cudnn" and (q.dtype not in (jnp.bfloat16, jnp.float16) or H % 8 or H > 128):
        return attend_at_once(q, k, v, regions, segments, window=window)[0]
    call = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
    q, k, v = (x.reshape(P * G, T, -1, H) for x in (q, k, v))
    if not regions and segments is None and window is None:
        q, k, v = (jnp.pad(x, ((0, 0), (0, -T % STEP), (0, 0), (0, 0))) for x in (q, k, v))
        return call(q, k, v, is_causal=True)[:, :T].reshape(P, G, T, N, H)
    keys = [*(_per_branch(r.k.transpose(0, 1, 4, 2, 3), G) for r in regions), k]
    values = [*(_per_branch(r.v.transpose(0, 1, 3, 2, 4), G) for r in regions), v]
    seen = jnp.broadcast_to(jnp.tri(T, dtype=bool), (P, G, T, T))
    if segments is not None:
        seen = seen & (segments[..., None] == segments[:, :, None])
    if window is not None:
        seen = seen & (window.positions[:, :, None] > window.positions[..., None] - window.size)
    inside = [_per_branch(_inside(r, P), G)[:, None] for r in regions]
    inside = [jnp.broadcast_to(x, (P * G, T, x.shape[2])) for x in inside]
    if window is not None:
        inside = [x & near.reshape(x.shape) for x, near in zip(inside, in_window(window, regions))]
    mask = jnp.concatenate([*inside, seen.reshape(P * G, T, T)], 2)[:, None]
    # with a mask, cuDNN's gradient supports only even lengths; an added query sees the same as the last query
    queries, others = T % 2, mask.shape[3] % 2
    q = jnp.pad(q, ((0, 0), (0, queries), (0, 0), (0, 0)))
    keys, values = (jnp.pad(jnp.concatenate(x, 1), ((0, 0), (0, others), (0, 0), (0, 0))) for x in (keys, values))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, queries), (0, 0)), mode="edge")
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, others)))
    return call(q, keys, values, mask=mask)[:, :T].reshape(P, G, T, N, H)


def _per_branch(x: Array, branches: int) -> Array:
    """A region's array [P Gr ...] as [P * G ...]. The branches that share an entry are next to each other."""
    return jnp.repeat(x, branches // x.shape[1], 1).reshape(-1, *x.shape[2:])
