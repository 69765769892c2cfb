"""Fine-tuning on conversations: rows of tokens on the disk, packing, the trainer, and what it measures on the way."""
