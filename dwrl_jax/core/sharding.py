"""The place of every array on the machines: mesh axes, and the mesh axis of each logical axis of a parameter.

The mesh axis "data" copies the model. "fsdp" splits the weights and the optimizer; a weight is gathered where it is
used. It is the axis of experts too, which stay where they are while tokens travel. An axis for experts alone would have
devices that compute all other layers once more, or hold copies of their weights and moments. "tensor" splits heads,
feed-forward and vocabulary. Rows of a batch are split over data and fsdp. Training and decoding have different tables,
because decoding with weights split over fsdp would gather them at every token. Key/value heads that are fewer than the
devices of "tensor" have whole weights on each of them, and their keys and values are repeated, one head on each device.
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
BATCH_ROWS = "the axis of a batch's rows"  # its name in errors

_SPLIT = {"vocab": TENSOR, "heads": TENSOR, "kv_heads": TENSOR, "mlp": TENSOR}
_SPLIT |= {"head_dim": None, "layers": None, "value": None, "rank": None}
_SPLIT |= {"expert": "fsdp", None: None}  # a device computes its experts for all, so nothing is gathered in decoding
TRAIN = _SPLIT | {"embed": "fsdp", "router_embed": "fsdp"}
DECODE = _SPLIT | {"embed": None, "router_embed": None}
REPEATED = ("kv_heads",)  # logical axes that stay whole on a mesh axis that is a multiple of them
SPREAD = (TENSOR, "fsdp")  # mesh axes of the feed-forward where decoding spreads it
DECODE_SPREAD = DECODE | {"mlp": SPREAD}


def make_mesh(sizes: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh of all devices. One size may be -1: it takes the devices that are left.

    UserError if the product of the sizes is not the number of devices.
    """
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
    """NamedSharding of every leaf of `boxed`. A leaf without logical axis names is whole on every device.

    UserError if a dimension cannot be split evenly; it names axis, size and divisor.
    """

    def place(leaf):
        if not _is_box(leaf):
            return NamedSharding(mesh, PartitionSpec())
        axes = _axes(leaf, rules, mesh.shape)
        for name, axis, size in zip(leaf.names, axes, leaf.value.shape):
            check_divides(mesh, axis, size, f"the model's {name} axis")
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(place, boxed, is_leaf=_is_box)


def like_parameters(mesh: Mesh, tree, boxed):
    """NamedSharding of every leaf of `tree`, such as an optimizer's state.

    A leaf belongs to a parameter if the leaf's path ends with the parameter's path and both have the same shape. It
    is then split like the parameter. Every other leaf is whole on every device.
    """
    places = dict(jax.tree_util.tree_leaves_with_path(shardings(mesh, boxed)))
    shapes = {path: box.shape for path, box in jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))}

    def place(path, leaf):
        ends = (path[start:] for start in range(len(path)))
        parameter = next((end for end in ends if end in places), None)
        return places[parameter] if parameter and shapes[parameter] == leaf.shape else whole(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def lay_out(tree, boxed, rules: Mapping[str, str | None]):
    """Arrays of a tree, split over the mesh by `rules`, inside a traced function. `boxed` has their axis names."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return jax.tree.map(lambda box, x: constrain(x, *_axes(box, rules, sizes)), boxed, tree, is_leaf=_is_box)


def _axes(box, rules: Mapping[str, str | None], sizes: Mapping[str, int]) -> list:
    """The mesh axis of each axis of a parameter."""
    axes = [rules[name] for name in box.names]
    whole = [name in REPEATED and copies_of(size, sizes) > 1 for name, size in zip(box.names, box.value.shape)]
    return [None if alone else axis for axis, alone in zip(axes, whole)]


def copies_of(kv_heads: int, sizes: Mapping[str, int] | None = None) -> int:
    """How many devices of "tensor" have the same key/value head: 1 unless their number is a multiple of the heads.

    `sizes` are those of the axes of a mesh, by default of the current one.
    """
    tensor = axis_size(TENSOR) if sizes is None else sizes.get(TENSOR, 1)
    return tensor // kv_heads if tensor % kv_heads == 0 else 1


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_divides(mesh: Mesh, axis: str | tuple[str, ...] | None, size: int, what: str) -> None:
    """UserError if `size` cannot be split evenly over the mesh axis or axes. `what` names the dimension."""
    axes = _as_tuple(axis)
    divisor = math.prod(mesh.shape[name] for name in axes)
    if size % divisor:
        sizes = ", ".join(f"mesh.{name}={mesh.shape[name]}" for name in axes)
        raise UserError(f"{sizes}: {what} has size {size}, which {divisor} does not divide")


def axis_size(*axes: str) -> int:
    """Number of devices along axes of the current mesh, inside a traced function; 1 without a mesh."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def rows_parts(rows: int) -> int:
    """Number of parts into which the current mesh splits `rows` rows; 1 without a mesh.

    UserError if the rows cannot be split evenly.
    """
    mesh = set_mesh()
    if mesh is None:
        return 1
    check_divides(mesh, ROWS, rows, BATCH_ROWS)
    return axis_size(*ROWS)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """`x` with each dimension split over its mesh axis in `axes`; None keeps a dimension whole. Without a mesh, `x`.

    UserError if an axis does not divide its dimension. A silent copy on every device would waste the mesh's memory.
    """
    mesh = set_mesh()
    if mesh is None:
        return x
    for place, (axis, size) in enumerate(zip(axes, x.shape)):
        what = BATCH_ROWS if axis == ROWS else f"dimension {place} of an array {list(x.shape)}"
        check_divides(mesh, axis, size, what)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def by_rows(function, rows: Sequence[bool]):
    """`function`, run by each device on its own rows. Without a mesh, `function` itself.

    An argument is split by rows where `rows` is True, and is whole otherwise. All results are split by rows. The
    compiler does not split the function's work over data and fsdp, and gradients of whole arguments are summed over
    devices once, after it. The compiler still splits over "tensor". UserError if the rows cannot be split evenly.
    """
    if set_mesh() is None:
        return function

    def on_each(*arguments):
        # marked as varying before all loops; otherwise every turn of a loop would sum gradients over devices
        varying = (x if mine else jax.lax.pcast(x, ROWS, to="varying") for x, mine in zip(arguments, rows))
        return function(*varying)

    specs = tuple(PartitionSpec(ROWS) if mine else PartitionSpec() for mine in rows)
    spread = jax.shard_map(on_each, in_specs=specs, out_specs=PartitionSpec(ROWS), axis_names={*ROWS})

    def checked(*arguments):
        for x, mine in zip(arguments, rows):
            if mine:
                rows_parts(len(x))
        return spread(*arguments)

    return checked


def split_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x weight, where rows of `x` lie over "data", and both are split over the mesh axes SPREAD between them.

    The result's rows lie over data and fsdp. The compiler would sum all rows on all devices and leave most of them.
    """
    if set_mesh() is None:
        return x @ weight

    def part(x, weight):
        return jax.lax.psum(jax.lax.psum_scatter(x @ weight, "fsdp", tiled=True), TENSOR)

    between = PartitionSpec("data", SPREAD), PartitionSpec(SPREAD, None)
    return jax.shard_map(part, in_specs=between, out_specs=PartitionSpec(ROWS, None), check_vma=False)(x, weight)


def set_mesh():
    """The current mesh, or None if there is none or it has a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def _is_box(x) -> bool:
    return isinstance(x, nn.Partitioned)


def _as_tuple(axis) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else axis
