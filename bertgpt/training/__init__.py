"""The training loop, the train step, objectives, optimizers, evaluation and what is logged."""
