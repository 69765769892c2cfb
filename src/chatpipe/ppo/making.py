"""Making experience: the policy completes prompts, and all models and reward functions say what they think of it."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import decode_answer
from chatpipe.data.sequences import Sequences
from chatpipe.generation import SamplingParams, generate
from chatpipe.ppo.advantages import SumOverRanks
from chatpipe.ppo.config import PPOConfig
from chatpipe.ppo.experience import Experience
from chatpipe.ppo.metrics import Metrics, experience_metrics
from chatpipe.ppo.model import PolicyAndValueModel
from chatpipe.ppo.prompts import Prompt
from chatpipe.ppo.rollout import score, with_advantages
from chatpipe.reward.rewards import Content, Rewards
from chatpipe.training.lora import Adapter


@dataclass
class ExperienceMaker:
    """What it takes to make experience. The reference is `ref_model`, or else the policy without its `adapter`."""

    args: PPOConfig
    tokenizer: PreTrainedTokenizerBase
    stop_token_id: int
    trained: PolicyAndValueModel
    ref_model: PreTrainedModel | None
    adapter: Adapter | None
    rewards: Rewards
    accelerator: Accelerator
    sum_over_ranks: SumOverRanks

    def make(self, prompts: Sequence[Prompt], seed: int, kl_coef: float) -> tuple[Experience, Metrics]:
        """One completion to each prompt with all that PPO learns from it, on the CPU, and the metrics of all ranks."""
        started = time.perf_counter()
        # On a CPU in bfloat16 a decode step is slower, and each of its shapes costs memory that stays (docs/log.md).
        with nullcontext() if self.args.device.type == "cpu" else self.accelerator.autocast():
            sequences = self._complete([prompt.ids for prompt in prompts], seed)
        completed = time.perf_counter()
        with self.accelerator.autocast():
            scores = score(
                sequences,
                self.trained,
                self.trained.policy if self.ref_model is None else self.ref_model,
                self.rewards.all_models,
                self.args.per_device_train_batch_size,
                self.args.device,
                as_reference=nullcontext if self.adapter is None or self.ref_model is not None else self.adapter.off,
            )
        total, judged = self.rewards.score(scores.scores, *self._texts(prompts, sequences), sequences.ended.tolist())
        scores = scores._replace(scores=total)
        experience, advantages = with_advantages(sequences, scores, self.args, self.sum_over_ranks, kl_coef=kl_coef)
        metrics = experience_metrics(
            experience,
            advantages,
            kl_coef,
            self.args.missing_eos_penalty,
            self.sum_over_ranks,
            missing_eos=self.args.missing_eos,  # type: ignore[arg-type]  # checked by PPOConfig
            judged=judged,
        )
        times = {"time/rollout": completed - started, "time/score": time.perf_counter() - completed}
        return experience, {**metrics, **times}

    def _complete(self, prompts: Sequence[Sequence[int]], seed: int) -> Sequences:
        # The full softmax: top-k, top-p or a minimum length would sample from another policy than is trained.
        params = SamplingParams(max_new_tokens=self.args.response_length, temperature=self.args.temperature)
        completions = generate(self.trained.policy, prompts, params, self.stop_token_id, seed)
        return Sequences.of(prompts, [c.ids for c in completions], [c.ended for c in completions])

    def _texts(self, prompts: Sequence[Prompt], sequences: Sequences) -> tuple[list[Content], list[str]]:
        """What functions read: prompts as they were given, and completions."""
        if not self.rewards.read_text:
            return [], []
        rows: Any = zip(sequences.ids.split(sequences.lengths.tolist()), sequences.prompt_lengths.tolist(), strict=True)
        completions = [decode_answer(self.tokenizer, ids[start:].tolist()) for ids, start in rows]
        return [prompt.shown(self.tokenizer) for prompt in prompts], completions
