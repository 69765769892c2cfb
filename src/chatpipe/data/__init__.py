"""Data for every stage: sources become rows, rows become documents, conversations, rankings and prompts."""
