"""The trainer: configuration, update loop, teacher, checkpoints, metrics, evaluation."""
