"""sample: the answers of a model to the prompts of a round, for rank. All processes share the prompts."""

import gc
import os

from transformers import AutoConfig

from chatpipe import console
from chatpipe.data.datasets import Conversation
from chatpipe.data.durable import PARTIAL
from chatpipe.data.messages import Id
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.models.properties import longest_sequence
from chatpipe.ranking.completions import Sampling, join_shares, prompts_to_rank, sample_share
from chatpipe.stages.ranking_steps import COMPLETIONS_FILE
from chatpipe.stages.shared import longest_answer
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.ranks import heeding_parent, wait_for_all


def run(step: Step) -> Outcome | None:
    """Writes the completions file of the round; the main process returns what came out."""
    settings, path = step.recipe.sample, step.folder / COMPLETIONS_FILE
    prompts, ids = _prompts(step)
    model = step.models["model"]
    context = longest_sequence(AutoConfig.from_pretrained(model))
    new_tokens = longest_answer(step, settings.max_new_tokens, load_tokenizer(model), context)
    sampling = Sampling(
        settings.k,
        step.recipe.seed,
        new_tokens,
        settings.temperature,
        chat_template_kwargs=step.recipe.chat_template_kwargs,
    )
    # A model of the run is named by its place relative to the file, which stays the same where the run is moved.
    name = os.path.relpath(model, step.folder) if "model" in step.makers else model
    with heeding_parent(step.folder):
        sample_share(path, [model], prompts, sampling, step.round, step.process_index, step.processes, [name], ids)
        gc.collect()  # the model
        wait_for_all()
    if not step.is_main:
        return None

    written = join_shares(path, sampling, step.processes)
    for left in step.folder.glob(f"{COMPLETIONS_FILE}*{PARTIAL}"):  # of another number of processes
        left.unlink()
    metrics = {"prompts": written.prompts, "left_out_prompts": written.left_out, "k": settings.k}
    reason = f"{written.prompts} prompts are answered, each at most {settings.k} times; {written.left_out} are left out"
    if written.left_out:
        reason += f": too few different answers end within {new_tokens} tokens (sample.max_new_tokens)"
    return Outcome(metrics, {"status": "pass", "reasons": [reason]})


def _prompts(step: Step) -> tuple[list[Conversation], dict[str, Id]]:
    """As many prompts as a round samples, by default all, and the user's own ids by key.

    Each round takes those behind the ones of the round before, in a circle.
    """
    prompts, ids = prompts_to_rank(step.data["sample.data"], step.recipe.worlds, "sample.data")
    count = min(step.recipe.sample.prompts or len(prompts), len(prompts))
    first = (step.round - 1) * count
    if first + count > len(prompts) and step.is_main:
        console.note(f"sample: round {step.round} asks prompts of earlier rounds again: there are {len(prompts)}")
    return [prompts[i % len(prompts)] for i in range(first, first + count)], ids
