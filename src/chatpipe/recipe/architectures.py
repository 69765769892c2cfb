"""The shape of a new model: its family, its sizes, presets of them, and its parameters in closed form.

Nothing here imports torch. `chatpipe.models.new_model` makes the model, `tests/models` compare the counts.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from chatpipe.recipe.section import Section

Family = Literal["gpt2", "qwen3", "llama", "modernbert"]

ROWS_OF_EMBEDDINGS = 64
"""Where chatpipe chooses the rows of an embedding, they are a multiple of this: fast on GPUs, easy to shard."""

GPT2_VOCABULARY = 50257
PADDED_VOCABULARY = 50304
"""GPT-2's tokens, rounded up to a multiple of 128: GPUs multiply such matrices faster, and chat tokens find room."""


def _shape(n_layer: int, n_head: int, n_embd: int, n_positions: int, **more: Any) -> dict[str, Any]:
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": n_positions, **more}


_SMALL = {"1m": _shape(4, 4, 128, 128), "10m": _shape(6, 6, 384, 256), "20m": _shape(6, 8, 512, 256)}

# The sizes of GPT-2 are those of its paper (table 2; 124 M is the released one that the paper calls 117 M).
PRESETS: dict[str, dict[str, Any]] = {
    **{f"gpt2-{size}": {"family": "gpt2", **shape} for size, shape in _SMALL.items()},
    "gpt2-124m": {"family": "gpt2", "vocab_size": GPT2_VOCABULARY, **_shape(12, 12, 768, 1024)},
    "gpt2-355m": {"family": "gpt2", "vocab_size": GPT2_VOCABULARY, **_shape(24, 16, 1024, 1024)},
    "gpt2-774m": {"family": "gpt2", "vocab_size": GPT2_VOCABULARY, **_shape(36, 20, 1280, 1024)},
    "gpt2-1.5b": {"family": "gpt2", "vocab_size": GPT2_VOCABULARY, **_shape(48, 25, 1600, 1024)},
    **{f"modern-{size}": {"family": "qwen3", **shape} for size, shape in _SMALL.items()},
    "modern-124m": {"family": "qwen3", "vocab_size": PADDED_VOCABULARY, **_shape(12, 12, 768, 1024)},
    "modern-355m": {"family": "qwen3", "vocab_size": PADDED_VOCABULARY, **_shape(24, 16, 1024, 1024)},
    "modern-760m": {"family": "qwen3", "vocab_size": PADDED_VOCABULARY, **_shape(24, 12, 1536, 2048)},
    "modern-1.5b": {"family": "qwen3", "vocab_size": PADDED_VOCABULARY, **_shape(28, 16, 2048, 2048)},
    **{f"encoder-{size}": {"family": "modernbert", **shape} for size, shape in _SMALL.items()},
    "encoder-124m": {"family": "modernbert", "vocab_size": PADDED_VOCABULARY, **_shape(12, 12, 768, 1024)},
}


class Architecture(Section):
    """A new model's family and sizes. A preset sets all of them; keys given with it override it."""

    preset: str | None = Field(None, description=f"One of {', '.join(PRESETS)}.")
    family: Family = Field(
        "gpt2",
        description="gpt2; qwen3 (RoPE, RMSNorm, SwiGLU, QK-norm); llama (the same without QK-norm); modernbert, an "
        "encoder for objective: masked.",
    )
    n_layer: int = Field(4, ge=1)
    n_head: int = Field(4, ge=1)
    n_kv_head: int | None = Field(
        None, ge=1, description="Heads of keys and values that query heads share (qwen3, llama). Default: n_head."
    )
    n_embd: int = Field(128, ge=8)
    n_inner: int | None = Field(
        None, ge=8, description="Width inside the MLP. Default: 4 n_embd (gpt2), else 8/3 n_embd, rounded up to 64s."
    )
    n_positions: int = Field(128, ge=16, description="The longest sequence the model can read, in tokens.")
    vocab_size: int | None = Field(
        None, ge=1, description="Rows of the embedding. Default: the tokenizer's size, rounded up to a multiple of 64."
    )
    tie_word_embeddings: bool = Field(True, description="One matrix for input and output (gpt2, modernbert: always).")
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary positions (all but gpt2).")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("preset") is None:
            return given
        if given["preset"] not in PRESETS:
            raise ValueError(f"there is no preset {given['preset']!r}; there are {', '.join(PRESETS)}")
        return {**PRESETS[given["preset"]], **given}

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "Architecture":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} cannot be shared by n_head = {self.n_head} heads")
        if self.family != "gpt2" and self.head_width % 2:
            raise ValueError(
                f"n_embd / n_head = {self.head_width} is odd, but rotary positions turn pairs of numbers; "
                "choose n_head so that it is even"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head = {self.n_head} is no multiple of n_kv_head = {self.n_kv_head}")
        if self.kv_heads != self.n_head and self.family not in ("qwen3", "llama"):
            raise ValueError(f"{self.family} cannot share keys and values: leave n_kv_head out, or take qwen3 or llama")
        if not self.tie_word_embeddings and self.family not in ("qwen3", "llama"):
            raise ValueError(f"{self.family} always ties its embeddings: leave tie_word_embeddings out")
        return self

    @property
    def objective(self) -> Literal["causal", "masked"]:
        """What a model of this family can learn."""
        return "masked" if self.family == "modernbert" else "causal"

    @property
    def head_width(self) -> int:
        """Numbers in a head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def inner(self) -> int:
        """Width inside the MLP."""
        if self.n_inner is not None:
            return self.n_inner
        return 4 * self.n_embd if self.family == "gpt2" else -(-8 * self.n_embd // (3 * 64)) * 64

    def rows(self, tokens: int) -> int:
        """Rows of the embedding for a tokenizer of so many tokens."""
        return self.vocab_size or -(-tokens // ROWS_OF_EMBEDDINGS) * ROWS_OF_EMBEDDINGS

    def parameters(self, tokens: int) -> int:
        """The number of parameters, in closed form, for a tokenizer of so many tokens."""
        vocabulary = self.rows(tokens)
        return {
            "gpt2": self._of_gpt2,
            "qwen3": self._of_llama,
            "llama": self._of_llama,
            "modernbert": self._of_modernbert,
        }[self.family](vocabulary)

    def _of_gpt2(self, vocabulary: int) -> int:
        d, inner = self.n_embd, self.inner
        attention, mlp, norms = 4 * d * d + 4 * d, 2 * d * inner + inner + d, 4 * d
        return (vocabulary + self.n_positions) * d + self.n_layer * (attention + mlp + norms) + 2 * d

    def _of_llama(self, vocabulary: int) -> int:
        d, keys = self.n_embd, self.kv_heads * self.head_width
        attention, mlp, norms = 2 * d * d + 2 * d * keys, 3 * d * self.inner, 2 * d
        qk_norms = 2 * self.head_width if self.family == "qwen3" else 0
        embeddings = (1 if self.tie_word_embeddings else 2) * vocabulary * d
        return embeddings + self.n_layer * (attention + mlp + norms + qk_norms) + d

    def _of_modernbert(self, vocabulary: int) -> int:
        d = self.n_embd
        attention, mlp, norms = 4 * d * d, 3 * d * self.inner, 2 * d
        # The first layer reads the embeddings' own norm; the head is a matrix, a norm and a bias for each token.
        head = d * d + d + vocabulary
        return vocabulary * d + d + self.n_layer * (attention + mlp + norms) + head


def flops_per_token(parameters: int, n_layer: int, n_embd: int, context: int) -> float:
    """Forward and backward FLOPs for one token: 6N + 12 * layers * width * context (PaLM, arXiv 2204.02311, app. B)."""
    return 6 * parameters + 12 * n_layer * n_embd * context
