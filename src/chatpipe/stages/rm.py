"""rm: a reward model from rankings."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments, set_seed

from chatpipe.checks.by_stage import rm_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.data.chat_template import add_chat_template
from chatpipe.data.datasets import Loaded, load_rankings
from chatpipe.data.rankings import Ranking
from chatpipe.data.worlds import only_world, world_named
from chatpipe.errors import UsageError
from chatpipe.evaluation.pair_accuracy import pair_metrics
from chatpipe.evaluation.ranking_scores import ranking_scores, rankings_that_fit
from chatpipe.evaluation.verdicts import rm_verdict
from chatpipe.evaluation.word_counts import WordCounts
from chatpipe.models.context import longest_sequence
from chatpipe.models.pretrained import load_tokenizer
from chatpipe.reward.demonstrations import conversations_to_draw_from, demonstrations
from chatpipe.reward.ranking_batches import EncodedRankings, encode_answers, encode_rankings
from chatpipe.reward.reward_model import new_reward_model, outside_body
from chatpipe.reward.reward_trainer import RewardTrainer
from chatpipe.reward.scoring import centre_rewards, score_sequences
from chatpipe.stages.adapting import stage_adapter
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import example_prompt
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.run_trainer import run_trainer


@dataclass(frozen=True)
class Prepared:
    """What the stage begins with: rankings, those to train on as token ids, and a model with a new score head."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    rankings: Loaded[Ranking]
    train: EncodedRankings
    max_length: int

    def checks(self) -> Checks:
        """The checks of the stage."""
        return rm_checks(self.tokenizer, self.model, self.rankings, self.train, self.max_length)


def prepare(step: Step) -> Prepared:
    """Reads the rankings and makes the model; every process has the same."""
    recipe = step.recipe
    rankings = load_rankings(step.data()["rm.data"], recipe.worlds, "rm.data")
    tokenizer = load_tokenizer(step.models["model"])
    add_chat_template(tokenizer)
    model = new_reward_model(step.models["model"], tokenizer.pad_token_id, recipe.seed)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        set_seed(recipe.seed)
        model.resize_token_embeddings(len(tokenizer))
    max_length = min(recipe.rm.max_length, longest_sequence(model, tokenizer))
    train = encode_rankings(tokenizer, rankings.train, max_length)
    return Prepared(tokenizer, model, rankings, train, max_length)


def run(step: Step) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = step.recipe, step.recipe.rm
    prepared = prepare(step)
    rankings, tokenizer, model = prepared.rankings, prepared.tokenizer, prepared.model
    train, max_length = prepared.train, prepared.max_length
    if step.is_main:
        rankings.report.say()
    enforce(step.stage, recipe.checks, prepared.checks())
    held_out = rankings_that_fit(tokenizer, rankings.validation, max_length)
    _check_held_out(held_out, max_length)
    centre: list[list[int]] = []
    if step.is_main:  # which alone centres; before training, so that data which cannot be read is told at once
        said = conversations_to_draw_from(recipe.sft.data or [], recipe.worlds)
        centre = demonstrations(tokenizer, said, train.rankings, max_length, recipe.seed)

    args = stage_arguments(
        step,
        TrainingArguments,
        num_train_epochs=section.num_train_epochs,
    )
    others = outside_body(model)
    adapter = stage_adapter(step, model, tokenizer, section.lora, whole=others.values(), without=list(others))
    trainer = RewardTrainer(model, args, train.rankings, adapter, processing_class=tokenizer)
    speed = run_trainer(trainer, model, step.stage, step.folder, max_length, section.max_nonfinite_steps)
    if not step.is_main:
        return None

    model = trainer.trained_model()
    offset = centre_rewards(model, centre)
    metrics = {
        **_evaluate(step, model, tokenizer, rankings.train, held_out, max_length),
        "reward_offset": offset,
        "train_rankings": len(train),
        "train_prompts": len(train.rankings),
        "left_out_rankings": dict(train.skipped),
        "skipped_rows": rankings.skipped,
        "example": _example(step, model, tokenizer, held_out, max_length),
        **speed,
    }
    trainer.log({name: value for name, value in metrics.items() if isinstance(value, float)})
    save_checkpoint(step, model, tokenizer)
    return Outcome(metrics, rm_verdict(metrics).to_dict())


def _check_held_out(held_out: list[Ranking], max_length: int) -> None:
    """Raises `UsageError` where there is nothing to judge by, which would show only after training."""
    if not any(len(set(ranking.ranks)) > 1 for ranking in held_out):
        raise UsageError(
            f"rm.data: none of the held-out rankings that fit into {max_length} tokens ({len(held_out)}) prefers one "
            "answer to another.",
            "Give more rankings in rm.data (or raise sample.prompts), or raise rm.max_length.",
        )


def _evaluate(
    step: Step,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Ranking],
    held_out: list[Ranking],
    max_length: int,
) -> dict[str, Any]:
    """Pair accuracy on held-out prompts: against the gold order where it is known, else against the annotators'."""
    words = WordCounts.learn(train).scores(held_out)
    scores = ranking_scores(model, tokenizer, held_out, max_length)
    gold = None
    world = only_world(step.recipe.sample.data)
    if step.recipe.rm.data is None and world is not None:
        oracle = world_named(world, step.recipe.worlds).oracle()
        gold = [[oracle.rate(r.prompt, text).score for text in r.responses] for r in held_out]
    return pair_metrics(held_out, scores, gold, seed=step.recipe.seed, words=words)


def _example(
    step: Step, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: list[Ranking], max_length: int
) -> dict[str, str]:
    """A held-out ranking's best and worst answer with their scores; a reward model itself answers nothing."""
    ranking = max(held_out, key=lambda r: (max(r.ranks) - min(r.ranks), -len("".join(r.responses))))
    ordered = sorted(zip(ranking.ranks, ranking.responses, strict=True))
    best, worst = ordered[0][1], ordered[-1][1]
    sequences = encode_answers(tokenizer, ranking.prompt, [best, worst], max_length)
    scores = score_sequences(model, sequences).tolist()
    asked = ranking.prompt[-1]["content"]
    told = f"(asked {asked!r}) {scores[0]:+.2f} for {best!r}, {scores[1]:+.2f} for {worst!r}"
    return {"question": example_prompt(step)[-1]["content"], "answer": told}
