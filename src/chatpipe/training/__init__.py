"""What the trainers share: arguments, resume points, skipped steps, metrics; the trainers of pretraining and sft."""
