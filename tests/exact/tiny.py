"""Tiny models and a PPOTrainer of them, for tests that need the real thing."""

import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import GENERATION, Experience, seed_for
from chatpipe.ppo.metrics import UpdateStatistics
from chatpipe.ppo.rollout import advantages
from chatpipe.ppo.trainer import PPOTrainer

PAD, EOS, FAVOURITE, VOCABULARY, WIDTH = 0, 1, 2, 12, 16
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10, 11, 3], [5], [4, EOS, 4]]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )


def config(**overrides) -> GPT2Config:
    """Dropout is GPT-2's default of 0.1: PPO must turn it off by itself."""
    shape = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return GPT2Config(**shape, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD, **overrides)


def policy(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config(initializer_range=0.2))


def random_reward_model(offset: float = 0.0, seed: int = 1) -> GPT2ForSequenceClassification:
    torch.manual_seed(seed)
    model = GPT2ForSequenceClassification(config(initializer_range=0.2, num_labels=1))
    model.config.chatpipe_reward_offset = offset
    return model


@torch.no_grad()
def favourite_reward_model() -> GPT2ForSequenceClassification:
    """Built by hand: the score grows with the share of FAVOURITE among all tokens so far.

    The first layer attends to all tokens alike and adds 20 times their mean embedding to the last one's. A constant of
    the same size in other coordinates keeps the final norm from leaving only its sign; the second layer does nothing.
    """
    model = GPT2ForSequenceClassification(config(num_labels=1))
    for name, parameter in model.named_parameters():
        parameter.fill_(1 if "ln_" in name and name.endswith("weight") else 0)
    direction = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)
    embeddings, layer = model.transformer.wte.weight, model.transformer.h[0]
    embeddings.copy_(-direction.expand_as(embeddings))
    embeddings[FAVOURITE] = direction
    layer.attn.c_attn.weight[:, 2 * WIDTH :] = torch.eye(WIDTH)  # queries and keys stay 0: equal weights
    layer.attn.c_proj.weight.copy_(20 * torch.eye(WIDTH))
    layer.mlp.c_proj.bias.copy_(20 * torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(WIDTH // 4))
    model.score.weight.copy_(direction[None] * 2 / WIDTH)
    return model


def trainer(folder, *, model=None, reward_model=None, callbacks=None, train_prompts=PROMPTS, **overrides) -> PPOTrainer:
    settings = {
        "output_dir": str(folder),
        "total_episodes": 32,
        "batch_size": 8,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 4,
        "response_length": 6,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return PPOTrainer(
        args=PPOConfig(**settings | overrides),
        processing_class=tokenizer(),
        model=model or policy(),
        reward_model=reward_model or random_reward_model(),
        train_prompts=train_prompts,
        callbacks=callbacks,
    )


def logged_iterations(ppo: PPOTrainer) -> list[dict[str, float]]:
    return [line for line in ppo.state.log_history if "objective/kl" in line]


def make_experience(ppo: PPOTrainer) -> Experience:
    """The experience of the trainer's iteration, as its loop makes it."""
    rollout = ppo.rollout(ppo.next_prompts(), seed_for(GENERATION, ppo.args.seed, ppo.iteration, ppo.rank))
    experience = advantages(rollout, ppo.kl_coef, ppo.args, ppo.sum_over_ranks)
    ppo.metrics = ppo.rollout_metrics(rollout, experience)
    return experience


def recorded_experience(ppo: PPOTrainer) -> list[Experience]:
    """A list that gets the experience of each iteration when `ppo` trains."""
    made, metrics = [], ppo.rollout_metrics

    def record(rollout, experience):
        made.append(experience)
        return metrics(rollout, experience)

    ppo.rollout_metrics = record
    return made


def backward(ppo: PPOTrainer, experience: Experience) -> torch.Tensor:
    """The loss of a minibatch, whose gradient is added; its statistics are those of the update."""
    ppo.update = UpdateStatistics()
    loss, statistics = ppo.backward(experience)
    ppo.update.add(statistics)
    return loss
