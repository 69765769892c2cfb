"""The rankings of a run: the fine-tuned model answers practice prompts, and simulated annotators rank the answers."""

import json
from collections.abc import Iterable
from pathlib import Path

from chatpipe import console
from chatpipe.data.formats import Ranking
from chatpipe.data.load import load_prompts
from chatpipe.data.template import decode_answer
from chatpipe.durable import replace_text
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams
from chatpipe.models.loading import load_causal_model, load_tokenizer
from chatpipe.ranking.raters import load_rater
from chatpipe.ranking.sampling import sample_completions
from chatpipe.recipe.schema import POCKETWORLD, Recipe


def make_rankings(recipe: Recipe, model_folder: str, path: Path) -> int:
    """Samples, ranks and writes the rankings file, whole or not at all; returns how many rankings it holds."""
    settings = recipe.sample
    tokenizer = load_tokenizer(model_folder)
    model = load_causal_model(model_folder)
    loaded = load_prompts(settings.data or [], recipe.pocketworld, "sample.data")
    loaded.report.say()
    prompts = loaded.train[: settings.prompts]
    params = SamplingParams(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    with console.progress("sample", len(prompts) * settings.k) as bar:
        sampled = sample_completions(model, tokenizer, prompts, settings.k, params, recipe.seed, bar.update)

    asked = []
    for prompt, completions in zip(prompts, sampled, strict=True):
        texts = [(decode_answer(tokenizer, completion.ids), completion.ended) for completion in completions]
        # Nobody can rank what is empty or was cut off in the middle.
        responses = [text for text, ended in texts if text and ended]
        if len(responses) > 1:
            asked.append((prompt, responses))
    rater = load_rater(POCKETWORLD, recipe.seed, recipe.rank.temperature, recipe.pocketworld)
    rankings = [
        Ranking(prompt, responses, ranks, POCKETWORLD)
        for (prompt, responses), ranks in zip(asked, rater.rank(asked), strict=True)
        if ranks is not None
    ]
    if not rankings:
        raise UsageError(
            "sample: the model's answers are empty or do not stop; there is nothing to rank.",
            "Look at the verdict of sft; train it longer.",
        )
    write_rankings(path, rankings)
    return len(rankings)


def write_rankings(path: Path, rankings: Iterable[Ranking]) -> None:
    """Writes a rankings file (one JSON object a line), whole or not at all."""
    lines = (json.dumps(ranking.to_row(), ensure_ascii=False) + "\n" for ranking in rankings)
    replace_text(path, "".join(lines))
