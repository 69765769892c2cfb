"""Data: sources become rows, rows become documents, conversations, rankings and prompts, and these become tokens."""
