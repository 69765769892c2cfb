"""ppo: a better chat model, from prompts and a reward model."""

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from chatpipe import console
from chatpipe.data.load import Conversation, load_prompts
from chatpipe.data.template import add_chat_template, encode_completion, encode_prompt
from chatpipe.errors import UsageError
from chatpipe.evaluation.answers import answer_metrics
from chatpipe.evaluation.compare import gold_comparison, mean_change, win_rate
from chatpipe.evaluation.verdicts import ppo_verdict
from chatpipe.generation import SamplingParams
from chatpipe.models.loading import load_causal_model, load_reward_model, load_tokenizer
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.divergence import sampled_kl
from chatpipe.ppo.trainer import PPOTrainer
from chatpipe.reward.model import sequence_scores
from chatpipe.stages.arguments import stage_arguments
from chatpipe.stages.example import answer_example
from chatpipe.stages.job import Job, Outcome
from chatpipe.stages.judging import Judged, judge, judged_prompts
from chatpipe.stages.saving import save_checkpoint
from chatpipe.training.run import run_trainer

EVAL_BATCH_SIZE = 32

# Keys of the recipe's section that have the same name and meaning in PPOConfig.
PPO_KEYS = (
    "batch_size",
    "total_episodes",
    "num_ppo_epochs",
    "num_mini_batches",
    "kl_coef",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "gamma",
    "lam",
    "temperature",
    "response_length",
    "missing_eos_penalty",
)


def run_ppo(job: Job) -> Outcome | None:
    """Trains the stage's model; the main process evaluates it, saves it and returns what came out."""
    recipe, section = job.recipe, job.recipe.ppo
    prompts = load_prompts(job.data()["ppo.data"], recipe.pocketworld, "ppo.data")
    set_seed(recipe.seed)
    tokenizer = load_tokenizer(job.models["model"])
    add_chat_template(tokenizer)
    policy, reference = (load_causal_model(job.models["model"]) for _ in range(2))
    reward_model, critic = (load_reward_model(job.models["reward_model"]) for _ in range(2))
    _check_vocabularies(job, policy, reward_model, tokenizer)

    asked = judged_prompts(job, tokenizer, prompts.held_out, policy.config.max_position_embeddings)

    args = stage_arguments(
        job,
        PPOConfig,
        **{key: getattr(section, key) for key in PPO_KEYS},
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=critic,
        train_prompts=_encode_prompts(job, tokenizer, prompts.train, policy.config.max_position_embeddings),
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

    before, after = (judge(job, model, tokenizer, asked) for model in (reference, policy))
    scores_before, scores_after = (_reward_scores(reward_model, tokenizer, asked, judged) for judged in (before, after))
    params = SamplingParams(max_new_tokens=section.response_length, temperature=section.temperature)
    asked_ids = _encode_prompts(job, tokenizer, asked, policy.config.max_position_embeddings)
    metrics = {
        **after.metrics(job),
        **_reward_comparison(scores_after, scores_before),
        "objective/kl": sampled_kl(policy, reference, asked_ids, params, tokenizer.eos_token_id, recipe.seed),
        "eos_share_before": answer_metrics(before.answers)["eos_share"],
        "length_before": answer_metrics(before.answers)["answer_length"],
        "length_after": answer_metrics(after.answers)["answer_length"],
        "example": answer_example(job, policy, tokenizer),
        **speed,
    }
    if after.ratings is not None and before.ratings is not None:
        metrics.update(gold_comparison(after.ratings, before.ratings, recipe.seed))
    save_checkpoint(job, policy, tokenizer)
    return Outcome(metrics, ppo_verdict(metrics).to_dict())


def _check_vocabularies(
    job: Job, policy: PreTrainedModel, reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The reward model reads the policy's token ids: both must have the same tokenizer (trl #1674, #1979)."""
    other = load_tokenizer(job.models["reward_model"])
    if other.get_vocab() != tokenizer.get_vocab():
        raise UsageError(
            f"The reward model {job.models['reward_model']} has another tokenizer than the policy.",
            "Train it on the policy's own model: chatpipe rm --model " + job.models["model"],
        )
    for model in (policy, reward_model):
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            raise UsageError(
                f"{model.name_or_path} has fewer embeddings than its tokenizer has tokens ({len(tokenizer)}).",
                "Fine-tune it with chatpipe sft first, which adds what is missing.",
            )


def _encode_prompts(
    job: Job, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], context: int
) -> list[list[int]]:
    """Token ids of the prompts that leave room for a completion; how many do not is said."""
    room = context - job.recipe.ppo.response_length
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    fitting = [ids for ids in encoded if len(ids) <= room]
    if not fitting:
        raise UsageError(
            f"ppo.data: no prompt leaves room for {job.recipe.ppo.response_length} new tokens in {context}.",
            "Lower ppo.response_length, or use a model with more positions.",
        )
    if len(fitting) < len(encoded) and job.is_main:
        console.note(
            f"ppo: {len(encoded) - len(fitting)} of {len(encoded)} prompts left out: longer than {room} tokens"
        )
    return fitting


def _reward_scores(
    reward_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Conversation], judged: Judged
) -> list[float]:
    sequences = [
        encode_completion(tokenizer, prompt, answer.text)[0]
        for prompt, answer in zip(prompts, judged.answers, strict=True)
    ]
    limit = reward_model.config.max_position_embeddings
    cut = [ids[max(0, len(ids) - limit) :] for ids in sequences]
    return sequence_scores(reward_model, cut, tokenizer.pad_token_id, EVAL_BATCH_SIZE).tolist()


def _reward_comparison(after: list[float], before: list[float]) -> dict[str, float]:
    """The reward model's own opinion of the change; `ppo_verdict` trusts it where there is no gold rater."""
    change, wins = mean_change(after, before), win_rate(after, before)
    return {
        "reward_score": sum(after) / len(after),
        "reward_score_before": sum(before) / len(before),
        "reward_change_low": change.low,
        "reward_change_high": change.high,
        "reward_win_rate": wins.rate,
    }
