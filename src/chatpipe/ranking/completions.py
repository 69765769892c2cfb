"""Completions files: what models answer to prompts, one JSON object a line, to be ranked; and those prompts.

    make_completions(Path("completions.jsonl"), ["runs/pocket/sft"], prompts, Sampling(k=4, seed=0))

Several processes can share the prompts: each calls `sample_share`, and afterwards one of them calls `join_shares`.

A share is written line by line to a `.partial` file, so a killed command continues after the last whole line. Every
line holds in `made` the fingerprint of what decides its content: lines of another command are never continued.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from chatpipe import console
from chatpipe.data.datasets import Conversation, stream_rows
from chatpipe.data.durable import PARTIAL, file_lock, fingerprint, fsync, replace_text
from chatpipe.data.messages import Id, prompt_key
from chatpipe.data.row_files import Row
from chatpipe.data.sources import Report, source_rows
from chatpipe.data.worlds import WORLDS, Worlds, is_world
from chatpipe.errors import UsageError
from chatpipe.models.manifest import checkpoint_id, manifest_of_model
from chatpipe.recipe.loading import load_recipe
from chatpipe.recipe.schema import Data, DataBlock, Recipe

if TYPE_CHECKING:
    from chatpipe.ranking.sample_answers import Answers, ChatModel

DEFAULT_MAX_NEW_TOKENS = 512
NO_IDS: Mapping[str, Id] = {}


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: `k` different ones a prompt, each the best of `best_of` by the reward model `reward`.

    Without `max_new_tokens` a completion has at most 512 tokens, or half of the model's context where that is less.
    """

    k: int
    seed: int
    max_new_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    best_of: int = 1
    reward: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A finished completions file: how many prompts it has, and how many were left out for too few completions."""

    prompts: int
    left_out: int


def made_from(
    models: Sequence[str],
    prompts: Sequence[Conversation],
    sampling: Sampling,
    round: int | None = None,
    ids: Mapping[str, Id] = NO_IDS,
) -> str:
    """The fingerprint of everything that decides the content of a completions file."""
    parts = {
        **asdict(sampling),
        "models": [checkpoint_id(model) for model in models],
        "reward": checkpoint_id(sampling.reward) if sampling.reward else None,
        "prompts": [prompt_key(prompt) for prompt in prompts],
        "round": round,
        **({"ids": sorted((key, str(id)) for key, id in ids.items())} if ids else {}),
    }
    return fingerprint(parts)


def make_completions(
    path: Path,
    models: Sequence[str],
    prompts: Sequence[Conversation],
    sampling: Sampling,
    overwrite: bool = False,
    ids: Mapping[str, Id] = NO_IDS,
) -> Written | None:
    """Write the completions file `path` in this process, or what is missing of it; None if it is already complete.

    `ids` are the user's own ids of prompts by their keys. With `overwrite`, an existing
    completions file is replaced once the new one is complete. Raises `UsageError` if another process writes the file,
    if `path` holds something else, if a model cannot be used, or if no prompt has completions to rank.
    """
    made = made_from(models, prompts, sampling, ids=ids)
    with file_lock(path):
        if path.exists():
            _check_replaceable(path)
            if not overwrite:
                _check_same(path, made)
                return None
        sample_share(path, models, prompts, sampling, ids=ids)
        return join_shares(path, sampling)


def sample_share(
    path: Path,
    models: Sequence[str],
    prompts: Sequence[Conversation],
    sampling: Sampling,
    round: int | None = None,
    share: int = 0,
    shares: int = 1,
    names: Sequence[str] | None = None,
    ids: Mapping[str, Id] = NO_IDS,
) -> None:
    """Sample completions for every prompt i with i % shares == share; continue a share that was interrupted.

    The completions of a prompt do not depend on the number of shares. The rows have the `names` of the models; by
    default their folders or hub ids. Raises `UsageError` if a model cannot be used.
    """
    made = made_from(models, prompts, sampling, round, ids)
    partial = _partial(path, share, shares)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _whole_lines(partial, made)
    mine = prompts[share::shares]
    if done == len(mine):
        return
    rows = _sampled_rows(models, names or models, prompts, mine[done:], sampling)
    with partial.open("a", encoding="utf-8") as file, console.progress("sample", len(mine)) as bar:
        for row, answered in rows:
            bar.update(done + answered)
            if row is not None:
                id = ids.get(prompt_key(row["prompt"]))
                row = row if id is None else {"id": id, **row}
                row |= {"made": made} if round is None else {"round": round, "made": made}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()


def join_shares(path: Path, sampling: Sampling, shares: int = 1) -> Written:
    """Write the completions file from its shares, in the order of the prompts, and delete these.

    A prompt with fewer than two different completions (of `k` > 1) is left out. Raises `UsageError` if all are.
    """
    partials = [_partial(path, share, shares) for share in range(shares)]
    of_share = [_lines(partial) for partial in partials]
    lines = [lines[i] for i in range(len(of_share[0])) for lines in of_share if i < len(lines)]
    kept = [line for line in lines if len(json.loads(line)["responses"]) >= min(sampling.k, 2)]
    if not kept:
        raise UsageError(
            "sample: no prompt has completions to rank: they are empty, the same, or cut off.",
            "Look at the verdict of sft; train it longer, raise max_new_tokens or the temperature.",
        )
    replace_text(path, "".join(kept))
    for partial in partials:
        partial.unlink()
    fsync(path.parent)
    return Written(len(kept), len(lines) - len(kept))


def made_of(path: Path) -> str | None:
    """The fingerprint in a completions file; None if the file is not ours."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return _made(file.readline())


def _partial(path: Path, share: int, shares: int) -> Path:
    return path.with_name(f"{path.name}.{share}-of-{shares}{PARTIAL}")


def _sampled_rows(
    models: Sequence[str],
    names: Sequence[str],
    prompts: Sequence[Conversation],
    asked: Sequence[Conversation],
    sampling: Sampling,
) -> Iterator[tuple[dict[str, Any] | None, float]]:
    """A row for each prompt of `asked`, and between the rows None; each with the number of prompts answered so far."""
    from chatpipe.generation import SamplingParams
    from chatpipe.ranking.raters import model_scorer
    from chatpipe.ranking.sample_answers import ChatModel, sample_answers

    settings = sampling.chat_template_kwargs
    loaded = [ChatModel.load(model, name, settings) for model, name in zip(models, names, strict=True)]
    score = model_scorer(sampling.reward, "--reward") if sampling.reward else None
    # At most half of the context, so that prompts have the other half.
    longest = sampling.max_new_tokens or min([DEFAULT_MAX_NEW_TOKENS, *(model.context // 2 for model in loaded)])
    for model in loaded:
        _check_readable(model, prompts)
    if not any(model.has_room(prompt, longest) for model in loaded for prompt in prompts):
        raise UsageError(
            f"sample: no prompt leaves room for max_new_tokens = {longest} in the context of {' and '.join(models)} "
            f"({', '.join(str(model.context) for model in loaded)} tokens).",
            "Lower max_new_tokens, or give shorter prompts.",
        )
    params, ended = SamplingParams(longest, sampling.temperature, top_p=sampling.top_p), Counter[bool]()
    sampled = sample_answers(
        loaded, asked, params, k=sampling.k, seed=sampling.seed, best_of=sampling.best_of, score=score, ended=ended
    )

    def rows() -> Iterator[tuple[dict[str, Any] | None, float]]:
        for answers, answered in sampled:
            yield _row(answers), answered
        if ended[False]:
            share = ended[False] / ended.total()
            console.note(f"sample: {share:.0%} of the answers were cut at {longest} tokens (max_new_tokens)")

    return rows()


def _check_readable(model: "ChatModel", prompts: Sequence[Conversation]) -> None:
    """Prints how many prompts the model's chat template cannot write. Raises `UsageError` where these are all."""
    from chatpipe.data.rendering import unreadable

    reasons = Counter(filter(None, (unreadable(model.tokenizer, prompt) for prompt in prompts)))
    for reason, count in reasons.items():
        what = f"{count} of {len(prompts)} prompts left out for {model.name}: {reason}"
        if count == len(prompts):
            raise UsageError(f"sample: {what}.", "Give prompts that the model's chat template can write.")
        console.warn(f"sample: {what}")


def _row(answers: "Answers | None") -> dict[str, Any] | None:
    if answers is None:
        return None
    return {"prompt": answers.prompt, "responses": answers.texts, "models": answers.models}


def _check_replaceable(path: Path) -> None:
    """Raises `UsageError` unless `path` is a completions file of ours."""
    if not path.is_file():
        raise UsageError(f"{path} is a folder or a device.", "Name a file with -o.")
    with path.open(encoding="utf-8", errors="replace") as file:
        is_ours = all(_made(line) is not None for line in file)
    if not is_ours:
        raise UsageError(
            f"{path} exists, and chatpipe sample did not make it.", "Choose another file with -o; this one is kept."
        )


def _check_same(path: Path, made: str) -> None:
    if made_of(path) != made:
        raise UsageError(
            f"{path} exists, and another command made it.", "Choose another file with -o, or replace it with --fresh."
        )


def _whole_lines(partial: Path, made: str) -> int:
    """How many lines the partial file has from the same command; whatever follows them is cut off."""
    if not partial.exists():
        return 0
    whole, size = 0, 0
    with partial.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _made(line.decode("utf-8", errors="replace")) != made:
                break
            whole, size = whole + 1, size + len(line)
    os.truncate(partial, size)
    return whole


def _lines(path: Path) -> list[str]:
    if not path.exists():  # a share without prompts
        return []
    with path.open(encoding="utf-8") as file:  # splitlines() would also split at U+2028 inside a text
        return list(file)


def _made(line: str) -> str | None:
    """The fingerprint in a line; None if the line is not ours."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row["made"] if isinstance(row, dict) and row.keys() >= {"prompt", "responses", "made"} else None


# ---- the prompts, and the built-in worlds that their models were made for ----


def read_prompts(source: str, model: str) -> tuple[list[Conversation], dict[str, Id]]:
    """The prompts of the option --prompts, and the ids of the user's own by key.

    Those of a built-in world are about the world that `model` was made for.
    """
    return prompts_to_rank(TypeAdapter(Data).validate_python(source), worlds_of(model), "--prompts")


def prompts_to_rank(blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> tuple[list[Conversation], dict[str, Id]]:
    """Different prompts in order, and the ids of the user's own by key.

    They are of both splits: the reward model validates on some of what was ranked. Only the validation prompts of
    built-in worlds are left out. Prints what else is. Raises `UsageError` naming `key` where there are none.
    """
    report = Report()
    prompts: dict[str, Conversation] = {}
    for block in blocks:
        for prompt, split in stream_rows("prompts", [block], worlds, key, report):
            if not (split == "validation" and is_world(block.source)):
                prompts.setdefault(prompt_key(prompt), prompt)
    report.say()
    if not prompts:
        sources = ", ".join(block.source for block in blocks)
        raise UsageError(f"{key}: no row of {sources} can be used.", 'Give rows like {"prompt": "..."}.')
    return list(prompts.values()), report.ids


def worlds_of_answers(completions: Path) -> Worlds | None:
    """The settings of the built-in worlds that the first model of a completions file was made for.

    In a run the file names that model by its place relative to the file. None where the worlds are unknown.
    """
    rows = source_rows(DataBlock(source=str(completions)), "rank")
    models = next((row.values.get("models") for row in rows if isinstance(row, Row)), None)
    if not (isinstance(models, list) and models and isinstance(models[0], str)):
        return None
    return _noted_worlds(str(completions.parent / models[0])) or _noted_worlds(models[0])


def worlds_of(model: str) -> Worlds:
    """The settings of the built-in worlds that a model of ours was made for; the defaults for others."""
    return _noted_worlds(model) or Recipe().worlds


def _noted_worlds(model: str) -> Worlds | None:
    manifest = manifest_of_model(model)
    noted = manifest.settings if manifest else {}
    known = {key: value for key, value in noted.items() if key.partition(".")[0] in WORLDS}
    return load_recipe(None, flags=known).recipe.worlds if known else None
