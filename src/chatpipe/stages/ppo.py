"""ppo: a better chat model, from prompts and rewards."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from chatpipe import console
from chatpipe.checks.by_stage import ppo_checks, start_checks
from chatpipe.checks.gate import Checks, enforce
from chatpipe.checks.room import prompts_with_room
from chatpipe.data.chat_template import add_chat_template, encode_prompt
from chatpipe.data.datasets import Conversation, Loaded, load_prompts
from chatpipe.data.text_blocks import TrainingText
from chatpipe.evaluation.answers import answer_metrics
from chatpipe.evaluation.compare import gold_comparison, win_rate
from chatpipe.evaluation.judging import Judged
from chatpipe.evaluation.policy_kl import sampled_kl
from chatpipe.evaluation.verdicts import ppo_verdict
from chatpipe.generation import SamplingParams
from chatpipe.models.context import longest_sequence
from chatpipe.models.pretrained import load_causal_model, load_tokenizer
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.trainer import PPOTrainer
from chatpipe.reward.rewards import Rewards
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import answer_example
from chatpipe.stages.judging import judge, judged_prompts
from chatpipe.stages.raw_text import stage_texts, training_text
from chatpipe.stages.rewards_of_step import load_rewards, reward_comparison, reward_scores
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.lora import lora_config
from chatpipe.training.run_trainer import run_trainer

# Keys of the recipe's section that have the same name and meaning in PPOConfig.
PPO_KEYS = (
    "batch_size",
    "total_episodes",
    "num_ppo_epochs",
    "num_mini_batches",
    "kl_coef",
    "adaptive_kl_target",
    "adaptive_kl_horizon",
    "kl_loss",
    "kl_loss_coef",
    "target_kl",
    "kl_budget",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "gamma",
    "lam",
    "temperature",
    "response_length",
    "missing_eos_penalty",
    "missing_eos",
    "value_model",
    "value_model_warmup_iterations",
    "value_model_learning_rate",
    "ptx_coef",
    "ptx_batch_size",
    "torch_compile",
)


@dataclass(frozen=True)
class Prepared:
    """What ppo begins with; `reference` is None with LoRA."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Loaded[Conversation]
    policy: PreTrainedModel
    reference: PreTrainedModel | None
    rewards: Rewards
    judges: Mapping[str, PreTrainedModel]
    """The reward models by recipe key."""
    response_length: int

    @property
    def context(self) -> int:
        """Tokens that all models can read."""
        judged = (longest_sequence(model, self.tokenizer) for model in self.rewards.all_models)
        return min([longest_sequence(self.policy, decodes=True), *judged])

    def checks(self) -> Checks:
        """The checks that need no trainer."""
        return ppo_checks(self.tokenizer, self.policy, self.judges, self.prompts, self.context, self.response_length)


def prepare(step: Step) -> Prepared:
    """Reads the prompts and loads the models; every process has the same."""
    recipe = step.recipe
    prompts = load_prompts(step.data()["ppo.data"], recipe.worlds, "ppo.data")
    set_seed(recipe.seed)
    tokenizer = load_tokenizer(step.models["model"])
    add_chat_template(tokenizer)
    policy = load_causal_model(step.models["model"])
    reference = None if recipe.ppo.lora else load_causal_model(step.models["model"], frozen=True)
    rewards = load_rewards(step, tokenizer)
    judges = dict(zip([f"ppo.{key}" for key in step.models if key != "model"], rewards.all_models, strict=True))
    return Prepared(tokenizer, prompts, policy, reference, rewards, judges, recipe.ppo.response_length)


def new_trainer(step: Step, prepared: Prepared) -> PPOTrainer:
    """The stage's trainer on the prompts that leave room for a completion."""
    section, tokenizer, context = step.recipe.ppo, prepared.tokenizer, prepared.context
    args = stage_arguments(
        step,
        PPOConfig,
        **{key: getattr(section, key) for key in PPO_KEYS},
        reward_weights=prepared.rewards.weights,
    )
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=prepared.policy,
        ref_model=prepared.reference,
        reward_model=prepared.rewards.models,
        reward_funcs=prepared.rewards.functions,
        oracle_reward=prepared.rewards.oracle,
        train_dataset=[{"prompt": prompt} for prompt in _fitting(step, tokenizer, prepared.prompts.train, context)],
        ptx_dataset=_text(step, tokenizer, context) if section.ptx_coef else None,
        peft_config=lora_config(**section.lora.model_dump()) if section.lora else None,
    )


def run(step: Step) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = step.recipe, step.recipe.ppo
    prepared = prepare(step)
    prompts, tokenizer, rewards, context = prepared.prompts, prepared.tokenizer, prepared.rewards, prepared.context
    policy, reference = prepared.policy, prepared.reference
    if step.is_main:
        prompts.report.say()
    enforce(step.stage, recipe.checks, prepared.checks())
    asked = judged_prompts(step, tokenizer, prompts.validation, context)
    asked_ids = [encode_prompt(tokenizer, prompt) for prompt in _fitting(step, tokenizer, asked, context)]

    trainer = new_trainer(step, prepared)
    enforce(step.stage, recipe.checks, start_checks(trainer))
    speed = run_trainer(
        trainer,
        policy,
        step.stage,
        step.folder,
        section.response_length,
        section.max_nonfinite_steps,
        resumable=trainer.is_between_iterations,
    )
    if not step.is_main:
        return None

    policy = trainer.trained_policy()
    reference = reference or load_causal_model(step.models["model"], frozen=True)
    before, after = (judge(step, model, tokenizer, asked) for model in (reference, policy))
    scores_before, scores_after = (
        reward_scores(step, rewards, tokenizer, asked, judged.answers) for judged in (before, after)
    )
    params = SamplingParams(max_new_tokens=section.response_length, temperature=section.temperature)
    metrics = {
        **after.metrics(),
        **reward_comparison(scores_after, scores_before),
        "reward_sources": ["model"] * len(rewards.models) + ["function"] * len(rewards.functions),
        "objective/kl": sampled_kl(policy, reference, asked_ids, params, tokenizer.eos_token_id, recipe.seed),
        "eos_share_before": answer_metrics(before.answers)["eos_share"],
        "length_before": answer_metrics(before.answers)["answer_length"],
        "length_after": answer_metrics(after.answers)["answer_length"],
        "alarms": trainer.alarms,
        "kl_budget_note": trainer.budget_note,
        "example": answer_example(step, policy, tokenizer),
        **speed,
    }
    if after.ratings is not None and before.ratings is not None:
        metrics.update(gold_comparison(after.ratings, before.ratings, recipe.seed))
    if recipe.round > 1:
        metrics["round"] = recipe.round
        metrics.update(_against_the_first(step, prepared, asked, before, after))
    save_checkpoint(step, policy, tokenizer)
    return Outcome(metrics, ppo_verdict(metrics).to_dict())


def _against_the_first(
    step: Step, prepared: Prepared, asked: list[Conversation], before: Judged, after: Judged
) -> dict[str, float]:
    """How often the policy of this round, and that of the round before, beat the one that the first round began with.

    `win_rate_over_first` and `win_rate_over_first_before`, with their intervals `_low` and `_high`: by the gold rater,
    or where there is none by the rewards of this round.
    """
    first = judge(step, load_causal_model(step.first_policy(), frozen=True), prepared.tokenizer, asked)

    def worth(judged: Judged) -> list[float]:
        if judged.ratings is not None:
            return [rating.score for rating in judged.ratings]
        return reward_scores(step, prepared.rewards, prepared.tokenizer, asked, judged.answers)["reward"]

    metrics: dict[str, float] = {}
    for name, judged in (("win_rate_over_first", after), ("win_rate_over_first_before", before)):
        wins = win_rate(worth(judged), worth(first), step.recipe.seed)
        metrics |= {name: wins.rate, f"{name}_low": wins.low, f"{name}_high": wins.high}
    return metrics


def _fitting(
    step: Step, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], context: int
) -> list[Conversation]:
    """The prompts that leave room for a completion in `context` tokens; how many do not is said."""
    new_tokens = step.recipe.ppo.response_length
    fitting = prompts_with_room(tokenizer, prompts, context, "ppo.response_length", new_tokens)
    if len(fitting) < len(prompts) and step.is_main:
        console.note(
            f"ppo: {len(prompts) - len(fitting)} of {len(prompts)} prompts left out: no room for {new_tokens} "
            f"new tokens in {context}"
        )
    return fitting


def _text(step: Step, tokenizer: PreTrainedTokenizerBase, context: int) -> TrainingText:
    """Raw text to mix in, an epoch of it in blocks as pretraining reads them."""
    block_size = min(step.recipe.pretrain.block_size, context)
    return training_text(step, stage_texts(step, "ppo.ptx_data"), tokenizer, block_size)
