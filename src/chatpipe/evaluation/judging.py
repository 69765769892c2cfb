"""A model's answers to prompts, and their metrics; the oracle of a built-in world scores answers about it."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.datasets import Conversation
from chatpipe.data.worlds import Oracle, Rating
from chatpipe.evaluation.answers import Answer, answer_metrics, answer_prompts, gold_metrics, rate_answers
from chatpipe.generation import SamplingParams
from chatpipe.recipe.schema import Evaluation


@dataclass
class Judged:
    """A model's answers; `ratings` are those of `oracle`, None where no oracle knows the prompts."""

    answers: list[Answer]
    temperature: float
    oracle: Oracle | None = None
    ratings: list[Rating] | None = None

    def metrics(self) -> dict[str, Any]:
        """What the answers come to."""
        metrics: dict[str, Any] = {**answer_metrics(self.answers), "eval_prompts": len(self.answers)}
        metrics["eval_temperature"] = self.temperature
        if self.ratings is not None and self.oracle is not None:
            metrics.update(gold_metrics(self.ratings))
            metrics["chance"] = self.oracle.chance()
        return metrics


def judge_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Conversation],
    settings: Evaluation,
    seed: int,
    oracle: Oracle | None,
) -> Judged:
    """Has the model answer all `prompts`, and the oracle, if there is one, score the answers."""
    params = SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    with console.progress("answering", len(prompts)) as bar:
        answers = answer_prompts(model, tokenizer, prompts, params, seed, on_finished=bar.update)
    ratings = None if oracle is None else rate_answers(oracle, prompts, answers)
    return Judged(answers, settings.temperature, oracle, ratings)
