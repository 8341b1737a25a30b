"""Fine-tuning a pretrained model on a task: the loop, objectives, predictions, results, tasks."""
