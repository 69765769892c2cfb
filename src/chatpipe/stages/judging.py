"""How sft and ppo are judged: their models answer held-out prompts, and the gold rater, if there is one, rates them."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.load import Conversation, load_prompts
from chatpipe.data.sources import build_world
from chatpipe.data.template import encode_prompt
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import Answer, answer_metrics, answer_prompts, gold_metrics, rate_answers
from chatpipe.generation import SamplingParams
from chatpipe.pocketworld import GoldRater, Rating, chance_of_guessing
from chatpipe.recipe.schema import POCKETWORLD, DataBlock
from chatpipe.stages.job import Job


@dataclass
class Judged:
    """A model's answers to held-out prompts; `ratings` are the gold rater's, None where nobody knows the truth."""

    answers: list[Answer]
    ratings: list[Rating] | None

    def metrics(self, job: Job) -> dict[str, Any]:
        """What the answers come to."""
        metrics: dict[str, Any] = {**answer_metrics(self.answers), "eval_prompts": len(self.answers)}
        metrics["eval_temperature"] = job.recipe.evaluation.temperature
        if self.ratings is not None:
            metrics.update(gold_metrics(self.ratings))
            metrics["chance"] = chance_of_guessing(build_world(job.recipe.pocketworld))
        return metrics


def judged_prompts(
    job: Job, tokenizer: PreTrainedTokenizerBase, held_out: list[Conversation], context: int
) -> list[Conversation]:
    """The prompts to judge by: the built-in world's test questions where the stage reads it, else those held out.

    Prompts that leave no room for an answer in a `context` of so many tokens are left out.
    """
    settings = job.recipe.evaluation
    if job.has_gold_rater():
        held_out = load_prompts([DataBlock(source=POCKETWORLD)], job.recipe.pocketworld, f"{job.stage}.data").held_out
    room = context - settings.max_new_tokens
    chosen = [prompt for prompt in held_out if len(encode_prompt(tokenizer, prompt)) <= room][: settings.prompts]
    if not chosen:
        raise UsageError(
            f"No held-out prompt leaves room for {settings.max_new_tokens} new tokens in a context of {context}.",
            "Lower evaluation.max_new_tokens, or use a model with more positions.",
        )
    return chosen


def judge(job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation]) -> Judged:
    """Has the model answer `prompts`, and the gold rater rate the answers where the stage is about its world."""
    settings = job.recipe.evaluation
    params = SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    with console.progress("answering", len(prompts)) as bar:
        answers = answer_prompts(model, tokenizer, prompts, params, job.recipe.seed, on_finished=bar.update)
    if not job.has_gold_rater():
        return Judged(answers, None)
    return Judged(answers, rate_answers(GoldRater(build_world(job.recipe.pocketworld)), prompts, answers))
