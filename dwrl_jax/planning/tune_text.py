"""The choices of `--tune` as a page of text and as a picture."""

from matplotlib.figure import Figure

GIB = 2**30
COLUMNS = f"{'data':>5}{'fsdp':>6}{'tensor':>8}{'micro':>7}{'remat':>7}{'sampled':>9}{'spread':>8}"


def tuned_table(found: dict) -> str:
    """The frontier of time against memory, the compiled choices, and the flags of the best."""
    room = found["hbm_bytes"] / GIB
    lines = [
        f"{found['devices']} x {found['chip']['name']} ({found['topology']}), {room:.3g} GiB each: "
        f"{found['counted']} choices counted, {found['fitting']} fit",
        *(f"assumed: {what}" for what in found["assumed"]),
        "",
        "counted: no other choice is faster and smaller",
        f"{COLUMNS}{'GiB':>8}{'seconds':>9}{'no overlap':>12}",
        *(_row(each, each["bytes"], each["step_seconds"]) + _lapse(each, room) for each in found["frontier"]),
        "",
        "compiled, with counted figures behind",
        f"{COLUMNS}{'GiB':>8}{'seconds':>9}{'counted':>16}",
        *(_row(each, each["bytes"], each["step_seconds"]) + _counted(each) for each in found["compiled"]),
        "",
    ]
    if not found["best"]:
        return "\n".join([*lines, "none of the compiled choices fits"])
    best = found["best"]
    return "\n".join([*lines, f"a step takes at least {best['step_seconds']:.2f} s with", best["flags"]])


def _row(each: dict, used: float, seconds: float) -> str:
    sampled, spread = each["sampled"] or "all", "yes" if each["spread"] else "no"
    return (
        f"{each['data']:>5}{each['fsdp']:>6}{each['tensor']:>8}{each['micro_batches']:>7}{each['remat']:>7}"
        f"{sampled:>9}{spread:>8}{used / GIB:>8.3g}{seconds:>9.2f}"
    )


def _lapse(each: dict, room: float) -> str:
    return f"{each['seconds_without_overlap']:>12.2f}" + ("  too large" if each["bytes"] / GIB > room else "")


def _counted(each: dict) -> str:
    return f"{each['counted_bytes'] / GIB:>8.3g}{each['counted_seconds']:>8.2f}" + (
        "" if each["fits"] else "  too large"
    )


def picture(found: dict) -> Figure:
    """Time against memory: the counted frontier, the compiled choices, and the memory of a device."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, style in (("frontier", "o-"), ("compiled", "s")):
        points = found[name]
        label = {"frontier": "counted", "compiled": "compiled"}[name]
        axes.plot(*_points(points), style, markersize=5, linewidth=1.2, label=label)
    axes.axvline(found["hbm_bytes"] / GIB, color="grey", linestyle=(0, (4, 3)), linewidth=1, label="memory of a device")
    axes.set(xlabel="GiB per device", ylabel="least seconds of a step", xscale="log")
    axes.set_title(f"{found['devices']} x {found['chip']['name']}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.22, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _points(rows: list[dict]) -> tuple[list[float], list[float]]:
    return [row["bytes"] / GIB for row in rows], [row["step_seconds"] for row in rows]
