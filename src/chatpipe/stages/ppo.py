"""ppo: a better chat model, from prompts and rewards."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from chatpipe import console
from chatpipe.checks.by_stage import FEW, ppo_checks
from chatpipe.checks.data_checks import prompts_with_room
from chatpipe.checks.gate import Checks, enforce
from chatpipe.checks.model_checks import policy_is_not_reference
from chatpipe.data.chat_template import add_chat_template, encode_prompt
from chatpipe.data.datasets import Conversation, Splits, load_prompts
from chatpipe.data.rendering import unreadable
from chatpipe.data.sequences import Sequences
from chatpipe.data.text_blocks import TrainingText
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import answer_example
from chatpipe.evaluation.budget import Stopwatch, policy_prompts
from chatpipe.evaluation.policy import PolicyEvaluation, evaluate_policy
from chatpipe.evaluation.preference_verdicts import ppo_verdict
from chatpipe.generation import SamplingParams
from chatpipe.models.pretrained import load_causal_model, load_tokenizer
from chatpipe.models.properties import shared_context, unnamed_ids
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.model import MAX_TOKENS_ON_CPU
from chatpipe.ppo.trainer import PPOTrainer
from chatpipe.recipe.ppo_settings import PpoSettings
from chatpipe.reward.rewards import Rewards
from chatpipe.stages.language_steps import PpoStep
from chatpipe.stages.ppo_rewards import answer_rewards, load_rewards
from chatpipe.stages.shared import (
    REHEARSED_STEPS,
    Rehearsal,
    Work,
    affordable_tokens,
    answering,
    check_completes,
    example_prompt,
    keep_adapter,
    longest_answer,
    lora_settings,
    micro_batch_of,
    oracle_of,
    save_checkpoint,
    stage_arguments,
    stage_texts,
    training_text,
    validation_prompts,
    with_batches_of,
)
from chatpipe.stages.step import Outcome, Step
from chatpipe.training.arguments import Reading, use_bf16
from chatpipe.training.machine import release_memory
from chatpipe.training.ranks import main_process_first
from chatpipe.training.run_trainer import run_trainer

START_TOKENS = 16
"""Tokens of the completions that policy and reference read before the first step."""

# Keys of the recipe's section that have the same name and meaning in PPOConfig.
PPO_KEYS = (*PpoSettings.model_fields, "batch_size", "torch_compile")


@dataclass(frozen=True)
class Prepared:
    """What ppo begins with; `reference` is None with LoRA."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Splits[Conversation]
    policy: PreTrainedModel
    reference: PreTrainedModel | None
    rewards: Rewards
    scorers: Mapping[str, PreTrainedModel]
    """The reward models by recipe key."""
    context: int
    """Tokens that all models can read."""
    response_length: int
    total_episodes: int

    def checks(self) -> Checks:
        """The checks that need no trainer."""
        return ppo_checks(self.tokenizer, self.policy, self.scorers, self.prompts, self.context, self.response_length)


def prepare(step: Step) -> Prepared:
    """Reads the prompts and loads the models; every process has the same."""
    recipe = step.recipe
    prompts = load_prompts(step.data["ppo.data"], recipe.worlds, "ppo.data")
    set_seed(recipe.seed)
    tokenizer = load_tokenizer(step.models["model"])
    add_chat_template(tokenizer, recipe.chat_template_kwargs)
    prompts = _readable(step, tokenizer, prompts)
    policy = load_causal_model(step.models["model"])
    check_completes(step, policy)
    # In bfloat16 only where the policy computes in it too: the KL between them is 0 before the first step.
    in_bf16 = use_bf16(recipe.ppo.bf16, policy.device)
    reference = None if recipe.ppo.lora else load_causal_model(step.models["model"], frozen=in_bf16, half=in_bf16)
    rewards = load_rewards(step, tokenizer, half=in_bf16)
    _try_functions(rewards, prompts.train[:FEW])
    scorers = dict(zip([f"ppo.{key}" for key in step.models if key != "model"], rewards.all_models, strict=True))
    context = shared_context(policy, rewards.all_models, tokenizer)
    length = longest_answer(step, recipe.ppo.response_length, tokenizer, context)
    episodes = recipe.ppo.episodes(len(prompts.train), recipe.ppo.batch_size)
    return Prepared(tokenizer, prompts, policy, reference, rewards, scorers, context, length, episodes)


def new_trainer(step: Step, prepared: Prepared, cls: type[PPOTrainer] = PPOTrainer, **more: Any) -> PPOTrainer:
    """The stage's trainer on the prompts that leave room for a completion; `more` are arguments of PPOConfig."""
    section, tokenizer = step.recipe.ppo, prepared.tokenizer
    prompts = _fitting(step, prepared, prepared.prompts.train)
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    args = stage_arguments(
        step,
        PPOConfig,
        _reading(prepared, ids),
        **{
            **{key: getattr(section, key) for key in PPO_KEYS},
            "response_length": prepared.response_length,
            "total_episodes": prepared.total_episodes,
            **more,
        },
        reward_weights=prepared.rewards.weights,
    )
    return cls(
        args=args,
        processing_class=tokenizer,
        model=prepared.policy,
        ref_model=prepared.reference,
        reward_model=prepared.rewards.models,
        reward_funcs=prepared.rewards.functions,
        oracle_reward=prepared.rewards.oracle,
        train_dataset=[{"prompt": prompt, "input_ids": of} for prompt, of in zip(prompts, ids, strict=True)],
        ptx_dataset=_text(step, tokenizer, prepared.context) if section.ptx_coef else None,
        peft_config=lora_settings(section.lora) if section.lora else None,
    )


def _try_functions(rewards: Rewards, prompts: list[Conversation]) -> None:
    """Raises `UsageError` where a reward function fails: here, and not after the first rollout.

    The questions take the place of the answers.
    """
    texts = [str(prompt[-1]["content"]) for prompt in prompts]
    for function in rewards.functions:
        function([list(prompt) for prompt in prompts], texts, [True] * len(prompts))


def _reading(prepared: Prepared, prompts: Sequence[list[int]]) -> Reading:
    """The value model is about as large as the policy; logits are computed in parts."""
    longest = max(map(len, prompts)) + prepared.response_length
    return Reading((prepared.policy, prepared.policy), longest, logits=False)


def start_checks(trainer: PPOTrainer) -> Checks:
    """What only ppo's models together show, as its trainer has put them together."""
    args, adapter = trainer.args, trainer.adapter
    policy = trainer.model.policy
    params = trainer.model.sampling(min(START_TOKENS, args.response_length))
    return {
        "policy_is_not_reference": lambda: policy_is_not_reference(
            policy,
            policy if trainer.ref_model is None else trainer.ref_model,
            [prompt.ids for prompt in trainer.prompts[:FEW]],
            params,
            trainer.end_tokens,
            as_reference=nullcontext if adapter is None or trainer.ref_model is not None else adapter.off,
            autocast=trainer.accelerator.autocast,
            bf16=args.bf16 or args.fp16,
        )
    }


def checks(step: Step) -> Iterator[Checks]:
    """The checks before the first step, for `chatpipe check`: first those that need no trainer."""
    prepared = prepare(step)
    yield prepared.checks()
    yield start_checks(new_trainer(step, prepared))


def run(step: PpoStep) -> Outcome | None:
    """Trains the stage's model, saves and evaluates it; the main process returns what came out."""
    recipe, evaluating = step.recipe, Stopwatch()
    prepared = prepare(step)
    tokenizer, rewards = prepared.tokenizer, prepared.rewards
    if step.is_main:
        prepared.prompts.report.say()
    enforce(step.stage, prepared.checks(), recipe.checks)
    data = _validation(step, prepared)
    trained = _train(step, prepared)
    del prepared
    release_memory()

    if step.is_main:
        console.log_line(f"ppo: evaluating answers to {len(data.prompts):,} prompts, before and after")
    with evaluating:
        policy, reference = (load_causal_model(model, frozen=True) for model in (step.folder, step.models["model"]))
        first = partial(load_causal_model, step.first_policy, frozen=True) if step.first_policy else None
        metrics = {
            **evaluate_policy(data, policy, reference, first),
            "reward_sources": ["model"] * len(rewards.models) + ["function"] * len(rewards.functions),
            "example": answer_example(policy, tokenizer, example_prompt(step)),
            **trained,
        }
    if step.round > 1:
        metrics["round"] = step.round
    metrics["evaluation_seconds"] += evaluating.seconds
    return Outcome(metrics, ppo_verdict(metrics).to_dict()) if step.is_main else None


def _validation(step: Step, prepared: Prepared) -> PolicyEvaluation:
    """What the policies are evaluated on: as many prompts as the evaluation may cost (`evaluation.budget`)."""
    recipe, section, tokenizer = step.recipe, step.recipe.ppo, prepared.tokenizer
    params = answering(step, tokenizer, prepared.context)
    found = prepared.prompts.validation
    prompts = validation_prompts(step, tokenizer, found, prepared.context, params.max_new_tokens)
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    most = _affordable(step, prepared, params, sum(lengths) / len(lengths), prepared.total_episodes)
    prompts = prompts[:most]
    return PolicyEvaluation(
        tokenizer,
        prompts,
        params,
        recipe.seed,
        oracle_of(step),
        partial(answer_rewards, step, prepared.rewards, tokenizer),
        [encode_prompt(tokenizer, prompt) for prompt in _fitting(step, prepared, prompts)],
        SamplingParams(prepared.response_length, section.temperature, excluded=unnamed_ids(tokenizer)),
    )


def _affordable(step: Step, prepared: Prepared, params: SamplingParams, prompt_tokens: float, episodes: int) -> int:
    """How many prompts of `prompt_tokens` the evaluation of so many episodes may answer (`evaluation.budget`)."""
    return policy_prompts(
        prepared.policy.num_parameters(),
        episodes,
        step.recipe.ppo.num_ppo_epochs,
        prompt_tokens,
        prepared.response_length,
        params.max_new_tokens,
        models=2 if step.round == 1 else 3,
    )


def _train(step: Step, prepared: Prepared) -> dict[str, Any]:
    """Trains the policy, saves it into the stage's folder and returns the speed and what training reported."""
    section = step.recipe.ppo
    trainer = new_trainer(step, prepared)
    enforce(step.stage, start_checks(trainer), step.recipe.checks)
    speed = run_trainer(
        trainer,
        prepared.policy,
        step.stage,
        step.folder,
        prepared.response_length,
        section.max_nonfinite_steps,
        resumable=trainer.is_between_iterations,
    )
    with main_process_first(step.folder):
        if step.is_main:
            keep_adapter(step, trainer.adapter)
            save_checkpoint(step, trainer.trained_policy(), prepared.tokenizer, step.models["model"])
    return {"alarms": trainer.alarms, "kl_budget_note": trainer.budget_note, **speed}


def _readable(step: Step, tokenizer: PreTrainedTokenizerBase, prompts: Splits[Conversation]) -> Splits[Conversation]:
    """The prompts that the chat template can write; the number of others is printed. Raises if it can write none."""
    reasons = Counter(filter(None, (unreadable(tokenizer, prompt) for prompt in [*prompts.train, *prompts.validation])))
    if not reasons:
        return prompts
    train, validation = (
        [prompt for prompt in some if unreadable(tokenizer, prompt) is None]
        for some in (prompts.train, prompts.validation)
    )
    what = "; ".join(f"{count} prompts left out: {reason}" for reason, count in reasons.items())
    if not train or not validation:
        raise UsageError(
            f"ppo.data holds too little: {what}.", "Give prompts that the model's chat template can write."
        )
    if step.is_main:
        console.warn(f"ppo: {what}")
    return Splits(train, validation, prompts.report)


def _fitting(step: Step, prepared: Prepared, prompts: list[Conversation]) -> list[Conversation]:
    """The prompts that leave room for a completion in the context; the number of others is printed."""
    new_tokens, context = prepared.response_length, prepared.context
    fitting = prompts_with_room(prepared.tokenizer, prompts, context, "ppo.response_length", new_tokens)
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


# ---- the dry run ----


class _MadeUp(PPOTrainer):
    """A trainer whose completions are made up, each of `length` tokens."""

    length = 1

    def write(self, prompts: Sequence[Sequence[int]], seed: int) -> Sequences:
        """The tokens of each prompt, again and again."""
        made = [(list(prompt) * self.length)[: self.length] for prompt in prompts]
        return Sequences.of(prompts, made, [False] * len(made))


def rehearse(step: Step, processes: int, amounts: Mapping[str, Any]) -> Rehearsal:
    """The stage on a few prompts, for its dry run; `amounts` are those of all."""
    section, rows = step.recipe.ppo, amounts["prompts"]
    prepared = prepare(step)
    prepared = replace(prepared, total_episodes=section.episodes(rows, section.batch_size))
    enforce(step.stage, prepared.checks(), step.recipe.checks)
    tokenizer, policy, length = prepared.tokenizer, prepared.policy, prepared.response_length
    ids = [encode_prompt(tokenizer, prompt) for prompt in _fitting(step, prepared, prepared.prompts.train)]
    reading, mean = _reading(prepared, ids), sum(map(len, ids)) / len(ids)
    micro, tokens = micro_batch_of(step, reading, processes), affordable_tokens(step, reading)
    few = max(1, min(micro, int(tokens / (mean + length))))
    once = {"num_mini_batches": 1, "num_ppo_epochs": 1, "value_model_warmup_iterations": 0}
    small = with_batches_of(step, few, **once)
    as_rehearsed = {"save_strategy": "no", "lr_scheduler_type": "constant", "lr_scheduler_kwargs": None}
    episodes = few * REHEARSED_STEPS
    trainer = new_trainer(small, prepared, _MadeUp, total_episodes=episodes, torch_compile=False, **as_rehearsed)
    trainer.length = max(1, min(length, int(tokens / few - mean)))
    enforce(step.stage, start_checks(trainer), step.recipe.checks)

    def read() -> int:
        return len(trainer.rollout(trainer.prompts[:few], seed=0).sequences.ids)

    largest = micro * reading.tokens
    return Rehearsal(
        trainer=trainer,
        model=policy,
        tokens_of=lambda _: trainer.update.tokens_read,
        micro_batch=micro,
        largest=min(largest, MAX_TOKENS_ON_CPU) if policy.device.type == "cpu" else largest,
        reading=reading,
        read=read,
        work=partial(_work, step, prepared, mean, rows / len(prepared.prompts.train)),
        eos_token_id=tokenizer.eos_token_id,
        prompts=[prompt.ids for prompt in trainer.prompts[: section.batch_size * section.num_mini_batches]],
        new_tokens=length,
    )


def _work(step: Step, prepared: Prepared, prompt: float, share: float, answer: float) -> Work:
    """What the stage computes with `share` times as many prompts as are prepared, for answers of `answer` tokens."""
    section, recipe = step.recipe.ppo, step.recipe
    params = answering(step, prepared.tokenizer, prepared.context)
    rollout = section.batch_size * section.num_mini_batches
    iterations = math.ceil(prepared.total_episodes / rollout)
    length, completions = prompt + answer, iterations * rollout
    most = _affordable(step, prepared, params, prompt, prepared.total_episodes)
    prompts = min(most, recipe.evaluation.prompts, share * len(prepared.prompts.validation))
    judged = min(answer, params.max_new_tokens)
    # A rollout is read by policy, value model, reference and reward models; an answer by the reward models,
    # those of the KL by policy and reference.
    scorers = len(prepared.rewards.all_models)
    validated = 2 * scorers * (prompt + judged) + 2 * length
    return Work(
        iterations * section.num_ppo_epochs * section.num_mini_batches,
        trained=completions * length * section.num_ppo_epochs,
        read=completions * length,
        written=completions * answer,
        validated=prompts * validated / (3 + scorers),
        answered=prompts * ((2 if step.round == 1 else 3) * judged + answer),
    )
