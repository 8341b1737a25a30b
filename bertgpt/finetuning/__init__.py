"""Fine-tuning a pretrained model on a task: the loop, the objectives, the results, the tasks."""
