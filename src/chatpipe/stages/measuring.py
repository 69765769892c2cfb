"""What pretraining measures of a model on held-out text: before, at each evaluation, and at the end."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.masking import Masking
from chatpipe.data.text_blocks import ValidationText
from chatpipe.evaluation.language import held_out_loss
from chatpipe.evaluation.masked import masked_score
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.context import longest_sequence
from chatpipe.models.tokenizer_training import tokens_without_text
from chatpipe.training.batches import measured_rows

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 32, 0.8
PROMPT_WORDS = 4


@dataclass(frozen=True)
class HeldOut:
    """Held-out text, and the prompts that samples go on from; `masking` for an encoder, which writes no samples."""

    text: ValidationText
    tokenizer: PreTrainedTokenizerBase
    prompts: list[str]
    masking: Masking | None

    def score(self, model: PreTrainedModel) -> dict[str, float]:
        """`loss` in nats a token; of a causal model `perplexity` and `bits_per_byte`, of a masked one `accuracy`."""
        if self.masking is not None:
            guessed = masked_score(model, self.text, self.masking, self._batch_size)
            return {"loss": guessed.nats_per_token, "accuracy": guessed.accuracy}
        score = held_out_loss(model, self.text, self._batch_size, tokens_without_text(self.tokenizer))
        return {"loss": score.nats_per_token, "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}

    @property
    def _batch_size(self) -> int:
        return measured_rows(self.text.block_size, len(self.tokenizer))

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """The score as `eval_...`, and `samples` of a causal model."""
        metrics: dict[str, Any] = {f"eval_{name}": value for name, value in self.score(model).items()}
        if self.masking is None:
            metrics["samples"] = self._samples(model)
        return metrics

    def _samples(self, model: PreTrainedModel) -> list[str]:
        """What the model makes of each prompt: the same one for the same weights."""
        context = longest_sequence(model, decodes=True)
        params = SamplingParams(max_new_tokens=min(SAMPLE_TOKENS, context // 2), temperature=SAMPLE_TEMPERATURE)
        room = context - params.max_new_tokens
        eos = self.tokenizer.eos_token_id
        encoded = [
            self.tokenizer(prompt, add_special_tokens=False)["input_ids"][:room] or [eos] for prompt in self.prompts
        ]
        completions = generate(model, encoded, params, eos, seed=0)
        return [
            self.tokenizer.decode([*ids, *completion.ids], skip_special_tokens=True)
            for ids, completion in zip(encoded, completions, strict=True)
        ]


def first_words(documents: list[str]) -> list[str]:
    """The beginnings of the first two documents, as prompts for samples."""
    return [" ".join(document[:200].split()[:PROMPT_WORDS]) for document in documents[:2]]
