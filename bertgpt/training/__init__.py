"""The training loop, the train step, objectives, optimizers, evaluation, metrics and logs."""
