"""Names of files in a workdir that more than one room reads."""

ARCHITECTURE = "architecture"  # folder: config.json, tokenizer and judge.json of the model that is trained
CARD = "judge.json"  # all that makes a judge of the weights; it travels with an export
CHECKPOINTS = "checkpoints"  # folder: a folder for each step that was saved
BEST = "accuracy"  # the metric of held-out pairs by which a checkpoint is the best
