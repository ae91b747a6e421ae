"""A plan as a page of text."""

GIB = 2**30
TERMS = {
    "parameters": "parameters",
    "adapters": "adapters",
    "optimizer": "optimizer's moments",
    "starting_model": "starting model, for the KL term",
    "decode_weights": "weights laid out for decoding",
    "kv_regions": "keys and values, prefixes and thoughts",
    "temporaries": "activations and other temporaries",
}
TITLES = {"sample": "sampling", "evaluation": "evaluation", "update": "update"}


def table(plan: dict) -> str:
    """The plan as a page for a terminal; `plan` is the result of make_plan."""
    chip, mesh = plan["chip"], " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items())
    lines = [
        f"{plan['devices']} x {chip['name']} ({plan['topology']}), mesh {mesh}",
        f"{plan['pairs']} pairs per step, sampled {plan['pairs_sampled_at_once']} at a time and learnt from in "
        f"{plan['micro_batches']} micro-batches; chip: {chip['source']}",
        *_evaluation(plan),
        *(f"assumed: {what}" for what in plan["assumed"]),
        "",
        *_memory(plan),
        "",
        *_work(plan),
        "",
        *_collectives(plan),
        "",
        *_largest(plan),
        _verdict(plan),
    ]
    return "\n".join(line.rstrip() for line in lines)


def _memory(plan: dict) -> list[str]:
    names = list(plan["programs"])
    lines = [f"{'GiB per device':42}" + "".join(f"{TITLES[name]:>12}" for name in names)]
    for term, title in TERMS.items():
        values = [plan["per_device"][name].get(term) for name in names]
        if any(value is not None for value in values):
            lines.append(f"{title:42}" + "".join(f"{'' if v is None else f'{v / GIB:.3g}':>12}" for v in values))
    totals = [plan["programs"][name]["total_bytes"] for name in names]
    lines.append(f"{'total':42}" + "".join(f"{total / GIB:>12.3g}" for total in totals))
    return [*lines, f"{'of':42}" + "".join(f"{plan['hbm_bytes'] / GIB:>12.3g}" for _ in names)]


def _work(plan: dict) -> list[str]:
    lines = [f"{'per device':12}{'TFLOP':>10}{'memory GB':>12}{'sent GB':>10}{'seconds':>10}  bound by"]
    for name, phase in plan["phases"].items():
        sent = "" if phase["sent_bytes"] is None else f"{phase['sent_bytes'] / 1e9:.3g}"
        seconds = "" if phase["seconds"] is None else f"{phase['seconds']:.3g}"
        lines.append(
            f"{name:12}{phase['flops'] / 1e12:>10.3g}{phase['memory_bytes'] / 1e9:>12.3g}{sent:>10}{seconds:>10}"
            f"  {phase['bound'] or ''}"
        )
    total = f"a step: {plan['step_flops'] / 1e15:.3g} PFLOP on all devices"
    if plan["step_seconds"] is None:
        return [*lines, f"{total}; no published speed for this device, so no time"]
    return [*lines, f"{total}, at least {plan['step_seconds']:.1f} s at the chip's published speeds"]


def _collectives(plan: dict) -> list[str]:
    lines = []
    for name, program in plan["programs"].items():
        for key, unit in (("collective_bytes", "once"), ("collective_bytes_per_token", "per generated token")):
            if program[key]:
                sent = ", ".join(f"{kind} {sent / 1e6:.4g}" for kind, sent in sorted(program[key].items()))
                lines.append(f"{TITLES[name]} sends, MB per device {unit}: {sent}")
    return lines or ["nothing is sent between devices"]


def _evaluation(plan: dict) -> list[str]:
    evaluation = plan["evaluation"]
    if evaluation is None:
        return ["no evaluation"]
    alike = "" if "evaluation" in plan["programs"] else ", by the program that samples in training"
    return [
        f"evaluation of {evaluation['pairs']} pairs, {evaluation['pairs_at_once']} at a time, with "
        f"{evaluation['votes']} votes{alike}"
    ]


def _largest(plan: dict) -> list[str]:
    def at_once(name):
        key = "eval.batch_size" if "decode_weights" not in plan["per_device"][name] else "sampler.batch_size"
        bound = "at most" if plan["programs"][name]["total_bytes"] > plan["hbm_bytes"] else "at least"
        where = " in evaluation" if name == "evaluation" else ""
        return f"largest {key}{where}: {bound} {{}} pairs, if all but weights grew with it"

    sizes = {"batch_pairs": "sample", "evaluation_pairs": "evaluation"}
    texts = {key: at_once(name) for key, name in sizes.items() if name in plan["programs"]}
    texts["micro_batch_pairs"] = "largest micro-batch of an update: {} pairs, from two compiled sizes"
    return [text.format(plan["largest"][key]) for key, text in texts.items() if plan["largest"].get(key) is not None]


def _verdict(plan: dict) -> str:
    over = plan["per_device"]["total"] - plan["hbm_bytes"]
    if over <= 0:
        return f"fits, with {-over / GIB:.2f} GiB to spare"
    worst = max(plan["programs"], key=lambda name: plan["programs"][name]["total_bytes"])
    terms = plan["per_device"][worst]
    term = max(terms, key=terms.get)
    return (
        f"does not fit: {over / GIB:.2f} GiB too much in {TITLES[worst]}, where the largest part is "
        f"{TERMS[term]} ({terms[term] / GIB:.2f} GiB)"
    )
