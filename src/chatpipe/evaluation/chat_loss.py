"""What fine-tuning measures of a model on held-out conversations: before, at each evaluation, and at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_rows import Encoded
from chatpipe.data.datasets import Conversation
from chatpipe.evaluation.answers import answer_prompts
from chatpipe.evaluation.language import QuestionGain, conversation_loss, question_gain
from chatpipe.generation import SamplingParams
from chatpipe.training.batches import measured_rows

MAX_CONVERSATIONS = 2000
"""Enough for a precise figure; a tenth of a large file would take longer than training."""
SAMPLE_TEMPERATURE = 0.8


@dataclass(frozen=True)
class HeldOutChats:
    """Rows that are held out, and the prompts that samples answer in `sample_tokens` tokens at most."""

    rows: Sequence[Encoded]
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Conversation]
    sample_tokens: int

    def loss(self, model: PreTrainedModel) -> float:
        """Nats per token of the assistant."""
        return conversation_loss(model, self.rows, self.tokenizer.pad_token_id, self._batch_size)

    def gain(self, model: PreTrainedModel) -> QuestionGain:
        """How much likelier answers are under their own questions."""
        return question_gain(model, self.rows, self.tokenizer.pad_token_id, self._batch_size)

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """`eval_loss`, and `samples`: what the model answers, the same for the same weights."""
        params = SamplingParams(max_new_tokens=self.sample_tokens, temperature=SAMPLE_TEMPERATURE)
        answers = answer_prompts(model, self.tokenizer, self.prompts, params, seed=0)
        samples = [
            f"{prompt[-1]['content']} -> {answer.text}" for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        return {"eval_loss": self.loss(model), "samples": samples}

    @property
    def _batch_size(self) -> int:
        return measured_rows(max(len(ids) for ids, _ in self.rows), len(self.tokenizer))
