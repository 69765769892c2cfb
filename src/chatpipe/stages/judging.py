"""How sft and ppo are evaluated: their models answer validation prompts; an oracle scores them where there is one."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.checks.room import prompts_with_room
from chatpipe.data.datasets import Conversation, load_prompts
from chatpipe.data.worlds import world_named
from chatpipe.evaluation.judging import Judged, judge_answers
from chatpipe.recipe.schema import DataBlock
from chatpipe.stages.step import Step


def judged_prompts(
    step: Step, tokenizer: PreTrainedTokenizerBase, held_out: list[Conversation], context: int
) -> list[Conversation]:
    """The prompts to judge by: the built-in world's test questions where the stage reads it, else those held out.

    Prompts that leave no room for an answer in a `context` of so many tokens are left out.
    """
    settings = step.recipe.evaluation
    world = step.world()
    if world is not None:
        held_out = load_prompts([DataBlock(source=world)], step.recipe.worlds, f"{step.stage}.data").validation
    new_tokens = settings.max_new_tokens
    fitting = prompts_with_room(tokenizer, held_out, context, "evaluation.max_new_tokens", new_tokens)
    return fitting[: settings.prompts]


def judge(
    step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation]
) -> Judged:
    """Has the model answer `prompts`, and the oracle of the stage's world, if it reads one, score the answers."""
    world = step.world()
    oracle = None if world is None else world_named(world, step.recipe.worlds).oracle()
    return judge_answers(model, tokenizer, prompts, step.recipe.evaluation, step.recipe.seed, oracle)
