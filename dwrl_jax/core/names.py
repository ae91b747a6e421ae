"""Names in a workdir that several rooms read."""

ARCHITECTURE = "architecture"  # folder with the config.json, tokenizer and judge.json of the trained model
CARD = "judge.json"  # describes how the weights are used as a judge; an export contains it too
CHECKPOINTS = "checkpoints"  # folder with one folder for each saved step
UNREADABLE = "unreadable_checkpoints"  # folder with checkpoints that a run could not go on from
BEST = "accuracy"  # the metric of held-out pairs that decides which checkpoint is the best
