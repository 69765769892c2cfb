"""The validation prompts that stages evaluate on, the oracle that scores answers to them, and the example question."""

from collections.abc import Iterable
from itertools import islice

from transformers import PreTrainedTokenizerBase

from chatpipe.checks.data_checks import prompts_with_room
from chatpipe.data.datasets import Conversation, load_prompts, stream_conversations
from chatpipe.data.sources import Report
from chatpipe.data.worlds import Oracle, only_world, world_named
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock
from chatpipe.stages.step import Step

EXAMPLE_CANDIDATES = 11


def validation_prompts(
    step: Step, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], context: int
) -> list[Conversation]:
    """The prompts to evaluate on: those of the built-in world that the stage reads, else the validation `prompts`.

    At most `evaluation.prompts`. Prompts that leave no room for an answer in a `context` of so many tokens are left
    out.
    """
    settings = step.recipe.evaluation
    world = step.world()
    if world is not None:
        prompts = load_prompts([DataBlock(source=world)], step.recipe.worlds, f"{step.stage}.data").validation
    new_tokens = settings.max_new_tokens
    fitting = prompts_with_room(tokenizer, prompts, context, "evaluation.max_new_tokens", new_tokens)
    return fitting[: settings.prompts]


def oracle_of(step: Step) -> Oracle | None:
    """The oracle of the built-in world that the stage reads; None where it reads none."""
    world = step.world()
    return None if world is None else world_named(world, step.recipe.worlds).oracle()


def rankings_oracle(step: Step) -> Oracle | None:
    """The oracle of the built-in world whose prompts alone the run itself ranks; None where there is none."""
    world = only_world(step.recipe.sample.data)
    return None if step.recipe.rm.data is not None or world is None else world_named(world, step.recipe.worlds).oracle()


def example_prompt(step: Step) -> Conversation:
    """A validation question of the recipe, of medium length, the same in all stages: a person sees what each changed.

    Other stages' data may be missing when a stage runs alone; the question is then a general one.
    """
    try:
        single = list(islice((prompt for prompt in _prompts(step) if len(prompt) == 1), EXAMPLE_CANDIDATES))
    except UsageError:
        single = []
    if not single:
        return [{"role": "user", "content": "Who are you?"}]
    return sorted(single, key=lambda prompt: len(prompt[-1]["content"]))[len(single) // 2]


def _prompts(step: Step) -> Iterable[Conversation]:
    recipe = step.recipe
    blocks = recipe.ppo.data or recipe.rm.data or recipe.sample.data
    if blocks:
        return load_prompts(blocks, recipe.worlds, "ppo.data").validation
    stream = stream_conversations(recipe.sft.data or [], recipe.worlds, "sft.data", Report())
    return (conversation[:-1] for conversation, split in stream if split == "validation")
