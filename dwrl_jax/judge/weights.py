"""The two weights of DWRL that are written down beside thoughts."""

from jaxtyping import Array, Float

from dwrl_jax.objectives import dwrl


def weigh(log_scores: Float[Array, "B S G"], pairwise: bool = False) -> dict[str, Array]:
    """w_i of each thought [B S G] and, where the sides are responses, w_mis [B] and the dual weight [B S G].

    Between the two orders of a pairwise judge the last two have no meaning.
    """
    weights = {"thought_weight": dwrl.thought_weight(log_scores)}
    if not pairwise:
        weights["dual_weight"] = dwrl.dual_weight(log_scores)
        weights["misalignment_weight"] = dwrl.misalignment_weight(dwrl.log_preference_score(log_scores))
    return weights
