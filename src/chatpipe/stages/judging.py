"""How sft and ppo are judged: their models answer held-out prompts, and the gold rater, where there is one, rates them."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.load import Conversation, build_world, load_prompts
from chatpipe.data.template import encode_prompt
from chatpipe.evaluation.answers import Answer, answer_prompts, gold_metrics
from chatpipe.generation import SamplingParams
from chatpipe.pocketworld import GoldRater, chance_of_guessing
from chatpipe.recipe.schema import POCKETWORLD, DataBlock
from chatpipe.stages.job import Job


@dataclass
class Judged:
    """Held-out prompts, a model's answers to them, and what was measured."""

    prompts: list[Conversation]
    answers: list[Answer]
    metrics: dict[str, Any]
    gold_scores: list[float] | None


def judge_answers(
    job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation]
) -> Judged:
    """Answers to the held-out prompts: the built-in world's test questions where the stage reads it, else `prompts`."""
    settings = job.recipe.evaluation
    gold = job.uses_pocketworld()
    if gold:
        blocks = [DataBlock(source=POCKETWORLD)]
        prompts = load_prompts(blocks, job.recipe.pocketworld, f"{job.stage}.data").held_out
    room = model.config.max_position_embeddings - settings.max_new_tokens
    prompts = [prompt for prompt in prompts if _fits(tokenizer, prompt, room)][: settings.prompts]
    params = SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    answers = answer_prompts(model, tokenizer, prompts, params, seed=job.recipe.seed)
    metrics = {
        "eos_share": sum(answer.ended for answer in answers) / len(answers),
        "answer_length": sum(answer.length for answer in answers) / len(answers),
        "eval_prompts": len(prompts),
    }
    if not gold:
        return Judged(prompts, answers, metrics, None)
    world = build_world(job.recipe.pocketworld)
    rater = GoldRater(world)
    scores = [rater.rate(p, a.text, a.ended).score for p, a in zip(prompts, answers, strict=True)]
    metrics.update(gold_metrics(rater, prompts, answers), chance=chance_of_guessing(world))
    return Judged(prompts, answers, metrics, scores)


def _fits(tokenizer: PreTrainedTokenizerBase, prompt: Conversation, room: int) -> bool:
    return len(encode_prompt(tokenizer, prompt)) <= room
