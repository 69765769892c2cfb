"""How much arithmetic a model takes. No torch here: a dry run counts it too."""


def flops_per_token(parameters: int, n_layer: int, n_embd: int, context: int) -> float:
    """Forward and backward FLOPs for one token: 6N + 12 * layers * width * context (PaLM, arXiv 2204.02311, app. B)."""
    return 6 * parameters + 12 * n_layer * n_embd * context
