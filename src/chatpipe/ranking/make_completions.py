"""Making a completions file: which models answer which prompts, in which file, going on where it was broken off."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatpipe import console
from chatpipe.data.datasets import Conversation, prompt_key
from chatpipe.data.locking import alone_with
from chatpipe.errors import UsageError
from chatpipe.models.manifest import checkpoint_id
from chatpipe.ranking.completions import Written, fingerprint, is_ours, made_of, write_completions

DEFAULT_MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; `max_new_tokens` None: 256, or half of what the models read where that is less.

    `k` answers a prompt, each the best of `best_of` by the reward model `reward`.
    """

    k: int
    seed: int
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    best_of: int = 1
    reward: str | None = None


def made_from(
    models: Sequence[str], prompts: Sequence[Conversation], sampling: Sampling, round: int | None = None
) -> str:
    """The fingerprint of all that decides what stands in a completions file."""
    return fingerprint(
        {
            **asdict(sampling),
            "models": [checkpoint_id(model) for model in models],
            "reward": checkpoint_id(sampling.reward) if sampling.reward else None,
            "prompts": [prompt_key(prompt) for prompt in prompts],
            "round": round,
        }
    )


def make_completions(
    path: Path,
    models: Sequence[str],
    prompts: Sequence[Conversation],
    sampling: Sampling,
    round: int | None = None,
    fresh: bool = False,
) -> Written | None:
    """Answers `prompts` into the completions file `path`, or what is missing of it; None where it is complete already.

    `round` is noted in each row. With `fresh`, a completions file that is there is replaced as soon as the new one is
    whole. Raises `UsageError` where another process makes the file, it is another one, a model cannot be used, or
    nothing came of it that can be ranked.
    """
    made = made_from(models, prompts, sampling, round)
    with alone_with(path):
        if path.exists():
            _check_ours(path)
            if not fresh:
                _check_made_alike(path, made)
                return None
        return write_completions(
            path, made, lambda before: _rows(models, prompts, before, sampling, round), fewest=min(sampling.k, 2)
        )


def _check_ours(path: Path) -> None:
    """Raises `UsageError` where something stands there that nobody may replace."""
    if not path.is_file():
        raise UsageError(f"{path} is a folder or a device.", "Name a file with -o.")
    if not is_ours(path):
        raise UsageError(
            f"{path} is there already, and chatpipe sample did not make it.",
            "Choose another file with -o; this one is not replaced.",
        )


def _check_made_alike(path: Path, made: str) -> None:
    if made_of(path) != made:
        raise UsageError(
            f"{path} is there already, and was not made by this command.",
            "Choose another file with -o, or replace it with --fresh.",
        )


def _rows(
    models: Sequence[str], prompts: Sequence[Conversation], before: int, sampling: Sampling, round: int | None
) -> Iterator[dict[str, Any]]:
    """A row for each prompt but the first `before`; the models are loaded at once, and answer as rows are asked for."""
    from chatpipe.generation import SamplingParams
    from chatpipe.ranking.sample_answers import HowToSample, Speaker, sample_answers
    from chatpipe.ranking.scoring import model_scorer

    speakers = [Speaker.load(model) for model in models]
    judge = model_scorer(sampling.reward, "--reward") if sampling.reward else None
    # Half of what they read, so that prompts have the other half.
    limit = sampling.max_new_tokens or min([DEFAULT_MAX_NEW_TOKENS, *(speaker.context // 2 for speaker in speakers)])
    params = SamplingParams(limit, sampling.temperature, top_p=sampling.top_p)
    how = HowToSample(sampling.k, params, sampling.seed, sampling.best_of, judge)
    if not any(speaker.has_room(prompt, limit) for speaker in speakers for prompt in prompts):
        raise UsageError(
            f"sample: no prompt leaves room for max_new_tokens = {limit} in what {' and '.join(models)} can read "
            f"({', '.join(str(speaker.context) for speaker in speakers)} tokens).",
            "Lower max_new_tokens, or give shorter prompts.",
        )

    def answered() -> Iterator[dict[str, Any]]:
        with console.progress("sample", len(prompts)) as bar:
            for answers in sample_answers(speakers, prompts[before:], how, lambda done: bar.update(before + done)):
                row = {"prompt": answers.prompt, "responses": answers.texts, "models": answers.models}
                yield row if round is None else {**row, "round": round}

    return answered()
