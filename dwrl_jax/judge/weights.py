"""The weights of DWRL that are stored with thoughts."""

from jaxtyping import Array, Float

from dwrl_jax.objectives import dwrl


def weigh(log_scores: Float[Array, "B S G"], pairwise: bool = False) -> dict[str, Array]:
    """w_i of each thought [B S G], w_mis of each pair [B] and the dual weight of each thought [B S G].

    For a pairwise judge only w_i is given: the sides are orders, and between orders the other two have no meaning.
    """
    weights = {"thought_weight": dwrl.thought_weight(log_scores)}
    if not pairwise:
        weights["dual_weight"] = dwrl.dual_weight(log_scores)
        weights["misalignment_weight"] = dwrl.misalignment_weight(dwrl.log_preference_score(log_scores))
    return weights
