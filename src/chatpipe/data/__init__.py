"""Data: sources are read as documents, conversations, rankings and prompts, and these become tokens and batches."""
