"""Models and tokenizers: loading them, making new ones, and reading what a model folder holds."""
