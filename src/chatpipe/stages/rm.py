"""rm: a reward model from rankings."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from chatpipe import console
from chatpipe.checks.by_stage import rm_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.datasets import Splits, load_rankings
from chatpipe.data.rankings import Ranking
from chatpipe.data.sequences import padding_id
from chatpipe.data.worlds import Oracle, only_world, world_named
from chatpipe.errors import UsageError
from chatpipe.evaluation.baselines import WordCounts
from chatpipe.evaluation.budget import Stopwatch
from chatpipe.evaluation.pair_accuracy import (
    Scores,
    evaluate_ranker,
    is_ordered,
    oracle_scores,
    ranking_scores,
    rankings_that_fit,
)
from chatpipe.evaluation.preference_verdicts import rm_verdict
from chatpipe.models.pretrained import load_reward_model, load_tokenizer, match_embeddings, saved_dtype
from chatpipe.models.properties import longest_sequence
from chatpipe.reward.reward_model import (
    centre_rewards,
    new_reward_model,
    outside_body,
    reads_left_to_right,
    reward_offset,
    score_sequences,
)
from chatpipe.reward.reward_trainer import RewardTrainer
from chatpipe.reward.training_data import (
    MAX_DEMONSTRATIONS,
    EncodedRanking,
    EncodedRankings,
    conversations_to_draw_from,
    demonstrations,
    encode_rankings,
)
from chatpipe.stages.shared import (
    Rehearsal,
    Work,
    affordable_tokens,
    example_prompt,
    keep_adapter,
    longest_row,
    micro_batch_of,
    rehearsal_arguments,
    rehearsed_rows,
    save_checkpoint,
    stage_adapter,
    stage_arguments,
    with_batches_of,
)
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.arguments import Reading
from chatpipe.training.callbacks import closing_log
from chatpipe.training.machine import release_memory
from chatpipe.training.ranks import main_process_first
from chatpipe.training.run_trainer import run_trainer


@dataclass(frozen=True)
class Prepared:
    """What the stage begins with: rankings, those to train on as token ids, and a model with a new score head."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    rankings: Splits[Ranking]
    train: EncodedRankings
    max_length: int

    def checks(self) -> Checks:
        """The checks of the stage."""
        return rm_checks(self.tokenizer, self.model, self.rankings, self.train, self.max_length)


def prepare(step: Step) -> Prepared:
    """Reads the rankings and makes the model; every process has the same."""
    recipe = step.recipe
    rankings = load_rankings(step.data["rm.data"], recipe.worlds, "rm.data")
    tokenizer = load_tokenizer(step.models["model"])
    add_chat_template(tokenizer, recipe.chat_template_kwargs)
    model = new_reward_model(step.models["model"], padding_id(tokenizer), recipe.seed)
    match_embeddings(model, tokenizer)  # may unset the pad token
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):  # `batch_scores` then reads the score before EOS
        config = model.config.get_text_config()
        config.eos_token_id = tokenizer.eos_token_id
        if reads_left_to_right(model):
            config.pad_token_id = padding_id(tokenizer)
    max_length = longest_row(step, longest_sequence(model, tokenizer))
    train = encode_rankings(tokenizer, rankings.train, max_length)
    return Prepared(tokenizer, model, rankings, train, max_length)


def checks(step: Step) -> Iterator[Checks]:
    """The checks before the first step, for `chatpipe check`."""
    yield prepare(step).checks()


def run(step: Step) -> Outcome | None:
    """Trains the stage's model, saves and evaluates it; the main process returns what came out."""
    recipe, evaluating = step.recipe, Stopwatch()
    prepared = prepare(step)
    rankings, tokenizer = prepared.rankings, prepared.tokenizer
    train, max_length = prepared.train, prepared.max_length
    if step.is_main:
        rankings.report.say()
    enforce(step.stage, prepared.checks(), recipe.checks)
    validation = rankings_that_fit(tokenizer, rankings.validation, max_length)
    oracle = _true_order(step, validation, max_length)
    trained, log = _train(step, prepared)
    del prepared
    release_memory()

    if step.is_main:
        console.log_line(f"rm: evaluating {len(validation):,} rankings")
    with evaluating:
        model = load_reward_model(step.folder, frozen=True)
        # Needs no model, so one process is enough: only its metrics count.
        words = WordCounts.learn(rankings.train).scores(validation) if step.is_main else None
        metrics = {
            **evaluate_ranker(model, tokenizer, validation, max_length, recipe.seed, oracle, words),
            "reward_offset": reward_offset(model),
            "train_rankings": len(train),
            "train_prompts": len(train.rankings),
            "left_out_rankings": dict(train.skipped),
            "skipped_rows": rankings.skipped,
            "example": _example(step, model, tokenizer, validation, max_length),
            **trained,
        }
    metrics["evaluation_seconds"] += evaluating.seconds
    if not step.is_main:
        return None
    log({name: value for name, value in metrics.items() if isinstance(value, float)})
    return Outcome(metrics, rm_verdict(metrics).to_dict())


def rankings_oracle(step: Step) -> Oracle | None:
    """The oracle of the built-in world whose prompts alone the run itself ranks; None where there is none."""
    world = only_world(step.recipe.sample.data)
    return None if step.recipe.rm.data is not None or world is None else world_named(world, step.recipe.worlds).oracle()


def _true_order(step: Step, validation: list[Ranking], max_length: int) -> Scores | None:
    """The oracle's scores of the validation rankings where an oracle knows their prompts.

    Raises `UsageError` where the true order (else that of the annotators' ranks) prefers no answer to another: a
    verdict could not be drawn, which would show only after training.
    """
    oracle = rankings_oracle(step)
    scores = None if oracle is None else oracle_scores(oracle, validation)
    if not is_ordered([ranking.ranks for ranking in validation] if scores is None else scores):
        raise UsageError(
            f"rm.data: none of the {len(validation)} validation rankings that fit into {max_length} tokens prefers one "
            "answer to another.",
            "Give more rankings in rm.data (or raise sample.prompts), or raise rm.max_length.",
        )
    return scores


def _train(step: Step, prepared: Prepared) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """Trains the model, centres its scores and saves it into the stage's folder.

    Returns the speed, and the function that logs the metrics of the trained model.
    """
    recipe, section, tokenizer, model = step.recipe, step.recipe.rm, prepared.tokenizer, prepared.model
    rankings, max_length = prepared.train.rankings, prepared.max_length
    centre: list[list[int]] = []
    if step.is_main:  # before training, so that data which cannot be read is reported at once
        conversations = conversations_to_draw_from(recipe.sft.data or [], recipe.worlds)
        centre = demonstrations(tokenizer, conversations, rankings, max_length, recipe.seed)
    trainer = _trainer(step, prepared, rankings)
    speed = run_trainer(trainer, model, step.stage, step.folder, max_length, section.max_nonfinite_steps)
    with main_process_first(step.folder):
        if step.is_main:
            keep_adapter(step, trainer.adapter)
            model = trainer.trained_model()
            model.to(saved_dtype(step.models["model"])).float()  # centred are the scores that it is saved with
            centre_rewards(model, centre)
            save_checkpoint(step, model, tokenizer, step.models["model"])
    return speed, closing_log(trainer)


def _reading(prepared: Prepared) -> Reading:
    return Reading((prepared.model,), max(_tokens(ranking) for ranking in prepared.train.rankings), logits=False)


def _tokens(ranking: EncodedRanking) -> int:
    return sum(map(len, ranking.sequences))


def _trainer(step: Step, prepared: Prepared, rankings: Sequence[EncodedRanking], **more: Any) -> RewardTrainer:
    """The stage's trainer on `rankings`; `more` are further TrainingArguments."""
    section, tokenizer, model = step.recipe.rm, prepared.tokenizer, prepared.model
    others = outside_body(model)
    adapter = stage_adapter(step, model, tokenizer, section.lora, whole=others.values(), without=list(others))
    epochs = {"num_train_epochs": section.num_train_epochs}
    args = stage_arguments(step, TrainingArguments, _reading(prepared), **{**epochs, **more})
    return RewardTrainer(model, args, rankings, adapter, processing_class=tokenizer)


def _example(
    step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, validation: list[Ranking], max_length: int
) -> dict[str, str]:
    """The best and the worst answer of a validation ranking with their scores; a reward model answers nothing."""
    ranking = max(validation, key=lambda r: (max(r.ranks) - min(r.ranks), -len("".join(r.responses))))
    ordered = sorted(range(len(ranking.ranks)), key=ranking.ranks.__getitem__)
    pair = ranking.select([ordered[0], ordered[-1]])
    [scores], (best, worst) = ranking_scores(model, tokenizer, [pair], max_length), pair.texts()
    asked = ranking.prompt[-1]["content"]
    answer = f"(asked {asked!r}) {scores[0]:+.2f} for {best!r}, {scores[1]:+.2f} for {worst!r}"
    return {"question": example_prompt(step)[-1]["content"], "answer": answer}


# ---- the dry run ----

FEW_ANSWERS = 2
"""How many answers a rehearsal reads without gradients."""


def rehearse(step: Step, processes: int, amounts: Mapping[str, Any]) -> Rehearsal:
    """The stage on a few rankings, for its dry run; `amounts` are those of all."""
    prepared = prepare(step)
    enforce(step.stage, prepared.checks(), step.recipe.checks)
    fitting = rankings_that_fit(prepared.tokenizer, prepared.rankings.validation, prepared.max_length)
    _true_order(step, fitting, prepared.max_length)
    section, rankings, reading = step.recipe.rm, prepared.train.rankings, _reading(prepared)
    lengths = np.array([_tokens(ranking) for ranking in rankings])
    micro = micro_batch_of(step, reading, processes)
    steps = rehearsed_rows(lengths, micro, affordable_tokens(step, reading))
    few = rankings[0].sequences[:FEW_ANSWERS]

    def read() -> int:
        score_sequences(prepared.model, few)
        return sum(map(len, few))

    share = amounts["rankings"] / len(prepared.rankings.train)
    answer = float(lengths.sum()) / sum(len(ranking.sequences) for ranking in rankings)
    work = Work(
        amounts["steps"],
        trained=share * float(lengths.sum()) * section.num_train_epochs,
        validated=share * len(fitting) * float(lengths.mean()) + MAX_DEMONSTRATIONS * answer,
        answered=0,
    )
    small = with_batches_of(step, len(steps[0]))
    return Rehearsal(
        trainer=_trainer(small, prepared, [rankings[row] for row in sum(steps, [])], **rehearsal_arguments()),
        model=prepared.model,
        tokens_of=lambda number: int(lengths[steps[number]].sum()),
        micro_batch=micro,
        largest=micro * int(lengths.max()),
        reading=reading,
        read=read,
        work=lambda _: work,
        eos_token_id=prepared.tokenizer.eos_token_id,
    )
