"""A pretrained model on a task: the loop, the objectives, the results, the tasks."""
