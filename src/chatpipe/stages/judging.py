"""How sft and ppo are judged: their models answer held-out prompts, and the gold rater, if there is one, rates them."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.datasets import Conversation, load_prompts
from chatpipe.data.sources import build_world
from chatpipe.evaluation.judging import Judged, judge_answers, prompts_with_room
from chatpipe.recipe.schema import POCKETWORLD, DataBlock
from chatpipe.stages.step import Step


def judged_prompts(
    step: Step, tokenizer: PreTrainedTokenizerBase, held_out: list[Conversation], context: int
) -> list[Conversation]:
    """The prompts to judge by: the built-in world's test questions where the stage reads it, else those held out.

    Prompts that leave no room for an answer in a `context` of so many tokens are left out.
    """
    settings = step.recipe.evaluation
    if step.has_gold_rater():
        held_out = load_prompts([DataBlock(source=POCKETWORLD)], step.recipe.pocketworld, f"{step.stage}.data").held_out
    return prompts_with_room(tokenizer, held_out, context, settings.max_new_tokens)[: settings.prompts]


def judge(
    step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation]
) -> Judged:
    """Has the model answer `prompts`, and the gold rater rate the answers where the stage is about its world."""
    world = build_world(step.recipe.pocketworld) if step.has_gold_rater() else None
    return judge_answers(model, tokenizer, prompts, step.recipe.evaluation, step.recipe.seed, world)
