"""Models and tokenizers: loaded in one way, so that kind, dtype and device are right everywhere, or made new."""
