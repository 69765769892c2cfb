"""Gold worlds: six letters and EOS, few enough completions to score and weigh every one of them.

`World(longest=6, ends=False)` has 6^6 = 46,656 completions of fixed length: its policy cannot write EOS.
`World(longest=5, ends=True)` has 9,331: up to four letters and EOS, or five letters, where it is cut off.

KL, mean score and objective of a real model are exact sums here, and so is the best that any policy could reach:
J* = beta log sum_y pi_ref(y) exp(r(y) / beta), by pi*(y) ~ pi_ref(y) exp(r(y) / beta).
"""

import copy
import itertools
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
)

from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.trainer import PPOTrainer

LETTERS, EOS, VOCABULARY, WIDTH = 6, 6, 7, 32
PROMPT = [EOS]  # as GPT-2 begins a text; the EOS of a prompt must not count as the end of an answer


class World:
    """All completions: `ids` [n, longest] (EOS behind the end), `lengths` [n] with the EOS, `ended` [n]."""

    def __init__(self, longest: int, ends: bool) -> None:
        self.longest, self.ends = longest, ends
        letters = range(LETTERS)
        words = [(*word, EOS) for k in range(longest) for word in itertools.product(letters, repeat=k)] if ends else []
        words += itertools.product(letters, repeat=longest)
        self.lengths = torch.tensor([len(word) for word in words])
        self.ids = torch.tensor([[*word, *[EOS] * (longest - len(word))] for word in words])
        self.is_token = torch.arange(longest) < self.lengths[:, None]
        self.ended = self.ids[torch.arange(len(words)), self.lengths - 1] == EOS

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.no_grad()
    def logprobs(self, policy: PreTrainedModel, temperature: float = 1.0) -> Tensor:
        """log pi of every completion under softmax(logits / temperature), [n] float64.

        Plain forward passes, read with no code of PPO's.
        """
        rows = []
        for ids, is_token in zip(self.ids.split(8192), self.is_token.split(8192), strict=True):
            inputs = torch.cat([torch.tensor(PROMPT).expand(len(ids), -1), ids], 1)
            logits = policy(inputs).logits[:, len(PROMPT) - 1 : -1].double()
            logprobs = (logits / temperature).log_softmax(-1)
            rows.append((logprobs.gather(-1, ids[..., None])[..., 0] * is_token).sum(1))
        return torch.cat(rows)

    def gold(self, ref_logprobs: Tensor) -> Tensor:
        """The true quality of every completion, [n], with mean 0 and variance 1 under the reference.

        A second 1 is welcome, a third is not; 2 before 3 is good once; variety is good, repeats and 5 are bad. Where
        a completion may end, more than three letters are too many.
        """
        count = torch.stack([(self.ids == letter).sum(1) for letter in range(LETTERS)], 1)
        before, after = self.ids[:, :-1], self.ids[:, 1:]
        good_pair = ((before == 2) & (after == 3)).any(1)
        repeats = ((before == after) & (after != EOS)).sum(1)
        quality = (
            1.2 * count[:, 1].clamp(max=2)
            - 1.0 * (count[:, 1] - 2).clamp(min=0)
            + 0.9 * good_pair
            + 0.5 * (count > 0).sum(1)
            - 0.7 * repeats
            - 0.8 * count[:, 5]
            - 0.8 * self.ends * (count.sum(1) - 3).clamp(min=0)
        ).double()
        return standardised(quality, ref_logprobs)


def standardised(scores: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Scores [n] with mean 0 and variance 1 under the reference."""
    weights = ref_logprobs.exp()
    centred = scores - (weights * scores).sum()
    return centred / (weights * centred.square()).sum().sqrt()


def optimum(ref_logprobs: Tensor, scores: Tensor, beta: float) -> tuple[Tensor, float]:
    """log pi* [n] of the best policy, pi* ~ pi_ref exp(r / beta), and its objective J*."""
    tilted = ref_logprobs + scores / beta
    return tilted.log_softmax(0), beta * tilted.logsumexp(0).item()


def kl(logprobs: Tensor, ref_logprobs: Tensor) -> float:
    """KL(pi || pi_ref) in nats, exact; completions of probability 0 add nothing."""
    return (logprobs.exp() * (logprobs - ref_logprobs).nan_to_num(neginf=0.0)).sum().item()


def mean(logprobs: Tensor, scores: Tensor) -> float:
    """The expected score under pi."""
    return (logprobs.exp() * scores).sum().item()


def reference(world: World, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 of two layers whose untrained distribution is far from uniform.

    Its head has a bias, which makes EOS impossible where nothing ends.
    """
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(shape(initializer_range=0.15, tie_word_embeddings=False))
    model.lm_head = nn.Linear(WIDTH, VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.15)
        model.lm_head.bias.zero_()[EOS] = 0.0 if world.ends else -1e4
    return model.eval()


def train(
    world: World, ref_model: GPT2LMHeadModel, scores: Tensor, beta: float, folder: str, **overrides: object
) -> PPOTrainer:
    """PPOTrainer after its run from `ref_model` towards `scores` [n] with the KL coefficient `beta`."""
    settings = {
        "output_dir": folder,
        "kl_coef": beta,
        "total_episodes": 60 * 256,
        "batch_size": 128,
        "num_mini_batches": 2,
        "num_ppo_epochs": 4,
        "per_device_train_batch_size": 128,
        "learning_rate": 2e-3,
        "vf_coef": 0.5,
        "response_length": world.longest,
        "missing_eos_penalty": None,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    value_model = GPT2ForSequenceClassification(shape(num_labels=1, pad_token_id=EOS))
    value_model.transformer.load_state_dict(ref_model.transformer.state_dict())
    nn.init.zeros_(value_model.score.weight)
    trainer = PPOTrainer(
        args=PPOConfig(**settings | overrides),
        processing_class=_tokenizer(),
        model=copy.deepcopy(ref_model),
        ref_model=copy.deepcopy(ref_model),
        reward_model=TableRewardModel(world, scores),
        value_model=value_model,
        train_prompts=[PROMPT],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


class TableRewardModel(PreTrainedModel):
    """A reward model that looks the score of a completion up; what is no completion yet scores NaN."""

    config_class = PretrainedConfig
    base_model_prefix = "body"

    def __init__(self, world: World, scores: Tensor) -> None:
        super().__init__(PretrainedConfig(num_labels=1, pad_token_id=EOS))
        self.body = _Table(world, scores)
        self.score = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.score.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embeddings


class _Table(nn.Module):
    def __init__(self, world: World, scores: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCABULARY, 1)
        self.register_buffer("digits", (VOCABULARY + 1) ** torch.arange(world.longest))
        numbers = ((world.ids + 1) * world.is_token * self.digits).sum(1)
        table = torch.full(((VOCABULARY + 1) ** world.longest,), torch.nan)
        table[numbers] = scores.float()
        self.register_buffer("table", table)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SimpleNamespace:
        """Hidden states [b, t, 1]: at each position the score of what stands between the prompt and it."""
        completion = ((input_ids + 1) * attention_mask)[:, len(PROMPT) :]
        numbers = (completion * self.digits[: completion.shape[1]]).cumsum(1)
        numbers = nn.functional.pad(numbers, (len(PROMPT), 0))
        return SimpleNamespace(last_hidden_state=self.table[numbers][..., None])


def shape(**more: object) -> GPT2Config:
    """The configuration of a small GPT-2 for these worlds."""
    settings = {"vocab_size": VOCABULARY, "n_positions": 8, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    return GPT2Config(**settings | more, bos_token_id=EOS, eos_token_id=EOS)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(LETTERS)} | {"<eos>": EOS}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0", eos_token="<eos>"
    )
