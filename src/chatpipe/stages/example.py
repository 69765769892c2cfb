"""The same held-out question, put to the model of every stage, so that a person sees what each stage changed."""

from collections.abc import Iterable
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import decode_answer, encode_prompt
from chatpipe.data.datasets import Conversation, load_prompts, stream_conversations
from chatpipe.data.report import Report
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.context import longest_sequence
from chatpipe.stages.step import Step, stage_data

MAX_NEW_TOKENS = 40


def example_prompt(step: Step) -> Conversation:
    """A held-out question of the recipe, of middling length, the same for all stages.

    Other stages' data may be missing when a stage runs alone; the question is then a general one.
    """
    try:
        single = list(islice((prompt for prompt in _held_out_prompts(step) if len(prompt) == 1), 11))
    except UsageError:
        single = []
    if not single:
        return [{"role": "user", "content": "Who are you?"}]
    return sorted(single, key=lambda prompt: len(prompt[-1]["content"]))[len(single) // 2]


def _held_out_prompts(step: Step) -> Iterable[Conversation]:
    recipe = step.recipe
    blocks = stage_data(recipe, "ppo")["ppo.data"]
    if blocks:
        return load_prompts(blocks, recipe.worlds, "ppo.data").validation
    stream = stream_conversations(recipe.sft.data or [], recipe.worlds, "sft.data", Report())
    return (conversation[:-1] for conversation, split in stream if split == "validation")


def complete_example(step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """How a base model goes on after the question as running text."""
    question = example_prompt(step)[-1]["content"]
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    return {"question": question, "answer": _greedy(model, tokenizer, ids)}


def answer_example(step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """How a chat model answers the question."""
    prompt = example_prompt(step)
    return {
        "question": prompt[-1]["content"],
        "answer": _greedy(model, tokenizer, encode_prompt(tokenizer, prompt)),
    }


def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    context = longest_sequence(model, decodes=True)
    params = SamplingParams(max_new_tokens=min(MAX_NEW_TOKENS, context // 2), temperature=0.0)
    completion = generate(model, [ids[params.max_new_tokens - context :]], params, tokenizer.eos_token_id, seed=0)[0]
    return " ".join(decode_answer(tokenizer, completion.ids).split())
