"""Where every array lies on the machines: mesh axes, and what each logical axis of a parameter becomes on them.

Mesh axes: "data" copies the model, "fsdp" shares out its weights and optimizer (each is gathered where it is
used), "tensor" splits heads, feed-forward and vocabulary. Rows of a batch are spread over data and fsdp.
Training and decoding have a table each: decoding from fsdp-sharded weights would gather them at every token.
"""

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dwrl_jax.core.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes of a batch's rows
TENSOR = "tensor"
BATCH_ROWS = "the axis of a batch's rows"  # in errors

_SPLIT = {"vocab": TENSOR, "heads": TENSOR, "kv_heads": TENSOR, "mlp": TENSOR}
_SPLIT |= {"head_dim": None, "layers": None, "value": None}
TRAIN = _SPLIT | {"embed": "fsdp"}
DECODE = _SPLIT | {"embed": None}


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh of all devices; one size may be -1, "the rest". UserError where the sizes do not make up the devices."""
    devices = jax.devices() if devices is None else devices
    given = [sizes[axis] for axis in AXES]
    said = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, given))
    if given.count(-1) > 1 or any(size < 1 and size != -1 for size in given):
        raise UserError(f"{said}: sizes are at least 1, and one of them may be -1 for the rest")
    known = math.prod(size for size in given if size != -1)
    rest = len(devices) // known if -1 in given else 1
    if known * rest != len(devices):
        raise UserError(f"{said}: these do not make up the {len(devices)} devices there are")
    shape = [rest if size == -1 else size for size in given]
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def shardings(mesh: Mesh, boxed, rules: Mapping[str, str | None] = TRAIN):
    """NamedSharding of every leaf of a tree whose arrays or shapes carry logical axis names; others lie whole.

    UserError where a dimension does not divide, naming axis, size and divisor.
    """

    def place(leaf):
        if not _is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        axes = [rules[name] for name in leaf.names]
        for name, axis, size in zip(leaf.names, axes, leaf.value.shape):
            check_divides(mesh, axis, size, f"the model's {name} axis")
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, boxed, is_leaf=_is_box)


def like_parameters(mesh: Mesh, tree, boxed):
    """NamedSharding of every leaf: that of the parameter whose path its own ends with, if they have one shape.

    So an optimizer's moments lie as their parameters do, and everything else whole.
    """
    places = dict(jax.tree_util.tree_leaves_with_path(shardings(mesh, boxed)))
    shapes = {path: box.shape for path, box in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))}

    def place(path, leaf):
        ends = (path[start:] for start in range(len(path)))
        found = next((end for end in ends if end in places), None)
        return places[found] if found and shapes[found] == leaf.shape else whole(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def lay_out(tree, boxed, rules: Mapping[str, str | None]):
    """A tree of arrays laid out by `rules`, in a function that is being traced; `boxed` has their axis names."""
    return jax.tree.map(lambda box, x: constrain(x, *(rules[name] for name in box.names)), boxed, tree, is_leaf=_is_box)


def whole(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divides(mesh: Mesh, axis: str | tuple[str, ...] | None, size: int, what: str) -> None:
    """UserError where `size` cannot be split evenly over a mesh axis, or several."""
    axes = _as_tuple(axis)
    divisor = math.prod(mesh.shape[name] for name in axes)
    if size % divisor:
        sizes = ", ".join(f"mesh.{name}={mesh.shape[name]}" for name in axes)
        raise UserError(f"{sizes}: {what} has size {size}, which {divisor} does not divide")


def axis_size(*axes: str) -> int:
    """Devices along axes of the mesh that is set, in a function that is being traced; 1 without one."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def rows_parts(rows: int) -> int:
    """Parts of `rows` rows that lie on different devices of the mesh that is set; 1 without one.

    UserError where the rows cannot be shared out evenly.
    """
    mesh = _set_mesh()
    if mesh is None:
        return 1
    check_divides(mesh, ROWS, rows, BATCH_ROWS)
    return axis_size(*ROWS)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` spread over mesh axes by dimension, None for whole; unchanged without a mesh.

    UserError where an axis does not divide its dimension: a copy on every device would cost what the mesh is for.
    """
    mesh = _set_mesh()
    if mesh is None:
        return x
    for place, (axis, size) in enumerate(zip(axes, x.shape)):
        what = BATCH_ROWS if axis == ROWS else f"dimension {place} of an array {list(x.shape)}"
        check_divides(mesh, axis, size, what)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def by_rows(function, rows: Sequence[bool]):
    """`function` of each device's own rows: of arguments where `rows` says so and of all results; else whole.

    What it computes is not spread over data and fsdp by the compiler; gradients of whole arguments are added up
    once, behind it. "tensor" is left to the compiler. Unchanged without a mesh. UserError where the rows cannot be
    shared out evenly.
    """
    if _set_mesh() is None:
        return function

    def on_each(*arguments):
        # marked as each device's own in front of all loops, or these would add up gradients at every turn
        own = (x if mine else jax.lax.pcast(x, ROWS, to="varying") for x, mine in zip(arguments, rows))
        return function(*own)

    specs = tuple(PartitionSpec(ROWS) if mine else PartitionSpec() for mine in rows)
    spread = jax.shard_map(on_each, in_specs=specs, out_specs=PartitionSpec(ROWS), axis_names={*ROWS})

    def checked(*arguments):
        for x, mine in zip(arguments, rows):
            if mine:
                rows_parts(len(x))
        return spread(*arguments)

    return checked


def _set_mesh():
    """The mesh that is set, None where there is none or only one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def _is_box(x) -> bool:
    return isinstance(x, nn.Partitioned)


def _as_tuple(axis) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else axis
