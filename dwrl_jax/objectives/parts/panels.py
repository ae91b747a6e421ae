"""The pictures of an objective's metrics in a report, and the pictures that several objectives share.

Metrics have the same names as in metrics.jsonl. The report draws the metrics that every run has (accuracy, NLL, losses
and gradient norms, speed) without a panel from here.
"""

import dataclasses

LEARNING, RESPONSES, WEIGHTS = "Does it learn?", "Scores of the responses", "The two weights"
THOUGHTS, OPTIMISATION, SPEED = "Its thoughts", "Optimisation", "Speed"
SUBJECTS = (LEARNING, RESPONSES, WEIGHTS, THOUGHTS, OPTIMISATION, SPEED)  # in the order of the page


@dataclasses.dataclass(frozen=True)
class Panel:
    """A small picture under the heading `subject`.

    `series` maps metrics to labels. `scale` multiplies all values. `lines` maps labels of horizontal lines to their
    heights; if a height is a string, it is the config key that holds the height. `log` makes the axis logarithmic.
    """

    subject: str
    title: str
    unit: str
    series: dict[str, str]
    scale: float = 1.0
    lines: dict[str, float | str] = dataclasses.field(default_factory=dict)
    log: bool = False


def both_scores(title: str, unit: str) -> Panel:
    """A panel of log p of both responses; for a judge with a value head these are the rewards."""
    metric = "train/log_preference_score"
    return Panel(RESPONSES, title, unit, {f"{metric}_chosen": "chosen", f"{metric}_rejected": "rejected"})


LOG_ODDS = Panel(RESPONSES, "Log-odds of the preferred response", "nats", {"train/log_odds": "mean over pairs"})
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

# metrics of `dwrl.preference_metrics`
PREFERENCE = (
    both_scores("Preference scores", "log p, nats"),
    LOG_ODDS,
    ANSWER_MASS,
    MISALIGNMENT,
    EFFECTIVE_THOUGHTS,
)
# metrics of `bt.reward_metrics`
REWARDS = (both_scores("Rewards", "r"), LOG_ODDS, MISALIGNMENT)
HALF_LOG_ODDS = (both_scores("Half the log-odds of either order", "nats"), LOG_ODDS, MISALIGNMENT)
# metrics of `pairwise.pairwise_metrics`
LABELS = (LOG_ODDS, ANSWER_MASS)
# metrics of `policy.policy_loss` and `policy.sampler_gap`
POLICY = (
    Panel(THOUGHTS, "Length", "tokens", {"train/thought_length": "mean"}),
    Panel(THOUGHTS, "Entropy", "nats per token", {"train/entropy": "mean"}),
    Panel(OPTIMISATION, "Largest policy ratio", "new / old", {"train/ratio_max": "largest"}),
    Panel(OPTIMISATION, "Clipped", "% of tokens", {"train/clip_share": "share"}, 100),
    Panel(OPTIMISATION, "KL to the starting model", "nats", {"train/kl": "mean over thoughts"}),
    SAMPLER_GAP,
)
# metrics of `grpo_point.group_loss`
GROUP_REWARDS = (
    Panel(LEARNING, "Reward of a thought", "reward", {"train/reward": "mean"}),
    Panel(LEARNING, "Groups of equal rewards", "% of groups", {"train/equal_rewards": "share"}, 100),
)
VERDICTS = Panel(LEARNING, "Drawn verdicts", "% that are right", {"train/verdict_accuracy": "share"}, 100)
WELL_FORMED = Panel(LEARNING, "Well-formed thoughts", "% of thoughts", {"train/well_formed": "share"}, 100)
