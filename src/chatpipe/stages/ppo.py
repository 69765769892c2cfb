"""ppo: a better chat model, from prompts and rewards."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from chatpipe import console
from chatpipe.data.load import Conversation, load_prompts
from chatpipe.data.packing import TrainingText
from chatpipe.data.sources import build_world
from chatpipe.data.template import add_chat_template, encode_completion, encode_prompt
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import answer_metrics
from chatpipe.evaluation.compare import gold_comparison, mean_change, win_rate
from chatpipe.evaluation.verdicts import ppo_verdict
from chatpipe.generation import SamplingParams
from chatpipe.generation.engine import context_length
from chatpipe.models.loading import load_causal_model, load_reward_model, load_tokenizer
from chatpipe.pocketworld import GoldRater
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.divergence import sampled_kl
from chatpipe.ppo.lora import lora_config
from chatpipe.ppo.rewards import RewardFunction, Rewards, load_function
from chatpipe.ppo.rollout import reward_model_scores
from chatpipe.ppo.trainer import PPOTrainer
from chatpipe.recipe.schema import POCKETWORLD
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import answer_example
from chatpipe.stages.job import Job, Outcome
from chatpipe.stages.judging import Judged, judge, judged_prompts
from chatpipe.stages.saving import save_checkpoint
from chatpipe.stages.text import stage_texts, training_text
from chatpipe.training.run import run_trainer

EVAL_BATCH_SIZE = 32

# Keys of the recipe's section that have the same name and meaning in PPOConfig.
PPO_KEYS = (
    "batch_size",
    "total_episodes",
    "num_ppo_epochs",
    "num_mini_batches",
    "kl_coef",
    "kl_estimator",
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
    "critic",
    "critic_warmup_iterations",
    "critic_learning_rate",
    "ptx_coef",
    "ptx_batch_size",
)


def run_ppo(job: Job) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = job.recipe, job.recipe.ppo
    prompts = load_prompts(job.data()["ppo.data"], recipe.pocketworld, "ppo.data")
    set_seed(recipe.seed)
    tokenizer = load_tokenizer(job.models["model"])
    add_chat_template(tokenizer)
    policy = load_causal_model(job.models["model"])
    reference = None if section.lora else load_causal_model(job.models["model"])
    rewards = _load_rewards(job, policy, tokenizer)
    context = min(context_length(model) or 2**31 for model in (policy, *rewards.all_models))

    asked = judged_prompts(job, tokenizer, prompts.held_out, policy.config.max_position_embeddings)
    asked_ids = [encode_prompt(tokenizer, prompt) for prompt in _fitting(job, tokenizer, asked, context)]

    args = stage_arguments(
        job,
        PPOConfig,
        **{key: getattr(section, key) for key in PPO_KEYS},
        reward_weights=rewards.weights,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=rewards.models,
        reward_funcs=rewards.functions,
        gold_reward=rewards.gold,
        train_dataset=[{"prompt": prompt} for prompt in _fitting(job, tokenizer, prompts.train, context)],
        ptx_dataset=_text(job, tokenizer, context) if section.ptx_coef else None,
        peft_config=lora_config(**section.lora.model_dump()) if section.lora else None,
    )
    speed = run_trainer(
        trainer,
        policy,
        job.stage,
        job.folder,
        section.response_length,
        section.max_nonfinite_steps,
        resumable=trainer.is_between_iterations,
    )
    if not job.is_main:
        return None

    policy = trainer.trained_policy()
    reference = (reference or load_causal_model(job.models["model"])).to(policy.device)
    before, after = (judge(job, model, tokenizer, asked) for model in (reference, policy))
    scores_before, scores_after = (_scores(rewards, tokenizer, asked, judged) for judged in (before, after))
    params = SamplingParams(max_new_tokens=section.response_length, temperature=section.temperature)
    metrics = {
        **after.metrics(job),
        **_reward_comparison(scores_after, scores_before),
        "objective/kl": sampled_kl(policy, reference, asked_ids, params, tokenizer.eos_token_id, recipe.seed),
        "eos_share_before": answer_metrics(before.answers)["eos_share"],
        "length_before": answer_metrics(before.answers)["answer_length"],
        "length_after": answer_metrics(after.answers)["answer_length"],
        "alarms": trainer.alarms,
        "kl_budget_note": trainer.budget_note,
        "example": answer_example(job, policy, tokenizer),
        **speed,
    }
    if after.ratings is not None and before.ratings is not None:
        metrics.update(gold_comparison(after.ratings, before.ratings, recipe.seed))
    save_checkpoint(job, policy, tokenizer)
    return Outcome(metrics, ppo_verdict(metrics).to_dict())


def _load_rewards(job: Job, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Rewards:
    """What answers are worth: the reward model, or all that `ppo.reward` lists; and who judges along."""
    section = job.recipe.ppo
    _check_vocabulary(policy, tokenizer)
    models, functions, weights = [], [], [1.0]
    if section.reward is None:
        models.append(_load_reward_model(job, "reward_model", tokenizer))
    else:
        of_models, of_functions = [], []
        for i, source in enumerate(section.reward):
            if source.function is None:
                models.append(_load_reward_model(job, f"reward.{i}", tokenizer))
                of_models.append(source.weight)
            else:
                functions.append(load_function(source.function, f"ppo.reward.{i}.function"))
                of_functions.append(source.weight)
        weights = [*of_models, *of_functions]
    gold: PreTrainedModel | RewardFunction | None = _gold_rater(job)
    if section.gold_reward_model is not None:
        gold = _load_reward_model(job, "gold_reward_model", tokenizer)
    return Rewards.of(models, functions, weights, gold)


def _load_reward_model(job: Job, key: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """It reads the policy's token ids: both must have the same tokenizer (trl #1674, #1979)."""
    folder = job.models[key]
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"The reward model {folder} (ppo.{key}) has another tokenizer than the policy.",
            "Train it on the policy's own model: chatpipe rm --model " + job.models["model"],
        )
    model = load_reward_model(folder)
    _check_vocabulary(model, tokenizer)
    return model


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        raise UsageError(
            f"{model.name_or_path} has fewer embeddings than its tokenizer has tokens ({len(tokenizer)}).",
            "Fine-tune it with chatpipe sft first, which adds what is missing.",
        )


def _gold_rater(job: Job) -> RewardFunction | None:
    """The built-in world's own judge, where all prompts come from it."""
    if any(block.source != POCKETWORLD for block in job.data()["ppo.data"]):
        return None
    rater = GoldRater(build_world(job.recipe.pocketworld))

    def gold(prompts: list[Any], completions: list[str]) -> list[float]:
        return [rater.rate(prompt, text).score for prompt, text in zip(prompts, completions, strict=True)]

    return gold


def _fitting(
    job: Job, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], context: int
) -> list[Conversation]:
    """The prompts that leave room for a completion in `context` tokens; how many do not is said."""
    room = context - job.recipe.ppo.response_length
    fitting = [prompt for prompt in prompts if len(encode_prompt(tokenizer, prompt)) <= room]
    if not fitting:
        raise UsageError(
            f"ppo.data: no prompt leaves room for {job.recipe.ppo.response_length} new tokens in {context}.",
            "Lower ppo.response_length, or use a model with more positions.",
        )
    if len(fitting) < len(prompts) and job.is_main:
        console.note(
            f"ppo: {len(prompts) - len(fitting)} of {len(prompts)} prompts left out: longer than {room} tokens"
        )
    return fitting


def _text(job: Job, tokenizer: PreTrainedTokenizerBase, context: int) -> TrainingText:
    """Raw text to mix in, an epoch of it in blocks as pretraining reads them."""
    block_size = min(job.recipe.pretrain.block_size, context)
    return training_text(job, stage_texts(job, "ppo.ptx_data"), tokenizer, block_size)


@torch.no_grad()
def _scores(
    rewards: Rewards, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], judged: Judged
) -> list[float]:
    """What the rewards say of a model's answers."""
    texts = [answer.text for answer in judged.answers]
    encoded = [encode_completion(tokenizer, prompt, text)[0] for prompt, text in zip(prompts, texts, strict=True)]
    of_models = reward_model_scores(rewards.all_models, encoded, EVAL_BATCH_SIZE)
    return rewards.judge(of_models, list(prompts), texts)[0].tolist()


def _reward_comparison(after: list[float], before: list[float]) -> dict[str, float]:
    """The rewards' own opinion of the change; `ppo_verdict` trusts it where there is no gold rater."""
    change, wins = mean_change(after, before), win_rate(after, before)
    return {
        "reward_score": sum(after) / len(after),
        "reward_score_before": sum(before) / len(before),
        "reward_change_low": change.low,
        "reward_change_high": change.high,
        "reward_win_rate": wins.rate,
    }
