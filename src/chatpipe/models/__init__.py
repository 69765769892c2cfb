"""Models and tokenizers: new ones, and what kind of model a folder holds."""
