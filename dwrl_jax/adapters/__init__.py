"""Clients of `python -m dwrl_jax.serve` for the frameworks that train policies: `trl`, `verl`, `openrlhf`, `nemo_gym`.

They need the standard library alone, and no JAX is imported in the process that calls them; only `trl.in_process`
loads a judge. A failure is never a number: each module says whether it gives None or raises.
"""
