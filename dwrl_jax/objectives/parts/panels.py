"""The pictures that a report draws of an objective's metrics, and those of them that several objectives share.

A metric is named as in metrics.jsonl. What every run has (accuracy, NLL, losses and gradient norms, speed) is drawn
without being named here.
"""

import dataclasses

LEARNING, RESPONSES, WEIGHTS = "Does it learn?", "What it says about the responses", "The two weights"
THOUGHTS, OPTIMISATION, SPEED = "Its thoughts", "Optimisation", "Speed"
SUBJECTS = (LEARNING, RESPONSES, WEIGHTS, THOUGHTS, OPTIMISATION, SPEED)  # in their order on the page


@dataclasses.dataclass(frozen=True)
class Panel:
    """One small picture under the heading `subject`.

    `series` maps metrics to labels, and their values are multiplied by `scale`. `lines` maps labels of horizontal
    lines to heights; a string is the config key that holds the height. `log` makes the axis logarithmic.
    """

    subject: str
    title: str
    unit: str
    series: dict[str, str]
    scale: float = 1.0
    lines: dict[str, float | str] = dataclasses.field(default_factory=dict)
    log: bool = False


def both_scores(title: str, unit: str) -> Panel:
    """What stands as log p of both responses: rewards for a judge with a value head."""
    metric = "train/log_preference_score"
    return Panel(RESPONSES, title, unit, {f"{metric}_chosen": "chosen", f"{metric}_rejected": "rejected"})


LOG_ODDS = Panel(RESPONSES, "Log-odds of the preferred response", "nats", {"train/margin": "mean over pairs"})
ANSWER_MASS = Panel(
    RESPONSES, "Mass on the answer tokens", "probability", {"train/answer_mass": "mean"}, lines={"alarm": 0.95}
)
MISALIGNMENT = Panel(WEIGHTS, "Misalignment weight", "p− / (p+ + p−)", {"train/misalignment_weight": "mean over pairs"})
EFFECTIVE_THOUGHTS = Panel(
    WEIGHTS,
    "Effective number of thoughts",
    "thoughts",
    {"train/effective_thoughts": "1 / Σ w²"},
    lines={"all weights equal": "sampler.group_size"},
)
SAMPLER_GAP = Panel(
    OPTIMISATION,
    "Sampler against trainer",
    "|Δ log p|, nats",
    {"train/logp_gap_mean": "mean", "train/logp_gap_max": "largest"},
    lines={"alarm": 0.01},
    log=True,
)

# of `dwrl.preference_metrics`
PREFERENCE = (
    both_scores("Preference scores", "log p, nats"),
    LOG_ODDS,
    ANSWER_MASS,
    MISALIGNMENT,
    EFFECTIVE_THOUGHTS,
)
# of `bt.reward_metrics`
REWARDS = (both_scores("Rewards", "r"), LOG_ODDS, MISALIGNMENT)
HALF_LOG_ODDS = (both_scores("Half the log-odds of either order", "nats"), LOG_ODDS, MISALIGNMENT)
# of `pairwise.pairwise_metrics`
LABELS = (LOG_ODDS, ANSWER_MASS)
# of `policy.policy_loss` and `policy.sampler_gap`
POLICY = (
    Panel(THOUGHTS, "Length", "tokens", {"train/thought_length": "mean"}),
    Panel(THOUGHTS, "Entropy", "nats per token", {"train/entropy": "mean"}),
    Panel(OPTIMISATION, "Largest policy ratio", "new / old", {"train/ratio_max": "largest"}),
    Panel(OPTIMISATION, "Clipped", "% of tokens", {"train/clip_share": "share"}, 100),
    Panel(OPTIMISATION, "KL to the starting model", "nats", {"train/kl": "mean over thoughts"}),
    SAMPLER_GAP,
)
# of `grpo_point.group_loss`
GROUP_REWARDS = (
    Panel(LEARNING, "Reward of a thought", "reward", {"train/reward": "mean"}),
    Panel(LEARNING, "Groups of equal rewards", "% of groups", {"train/equal_rewards": "share"}, 100),
)
VERDICTS = Panel(LEARNING, "Drawn verdicts", "% that are right", {"train/verdict_accuracy": "share"}, 100)
WELL_FORMED = Panel(LEARNING, "Well-formed thoughts", "% of thoughts", {"train/well_formed": "share"}, 100)
