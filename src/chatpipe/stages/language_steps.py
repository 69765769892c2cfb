"""pretrain, sft and ppo as steps of a run: what each reads, which step makes that, and how much it does. No torch."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatpipe.checks.gate import Checks, Finding
from chatpipe.data.datasets import load_prompts, stream_conversations
from chatpipe.data.sources import Report
from chatpipe.errors import UsageError
from chatpipe.evaluation.verdict import started_from
from chatpipe.models.model_folder import Kind
from chatpipe.models.properties import check_block_size
from chatpipe.models.weight_files import read_object
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.recipe.schema import DataBlock, Pretrain
from chatpipe.stages.step import Made, Step, answers_measured, chat_model, percent, with_eval_data

CHINCHILLA_TOKENS = 20
"""For each parameter, where compute is spent best (arXiv 2203.15556, table 3)."""


class PretrainStep(Step):
    """A base model from raw text: a new one, or one that is trained further."""

    stage = command = "pretrain"
    foreseen_without_data = True
    title = "A base model"
    in_rounds = False

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """The model that is trained further; None where a new one is made."""
        return {"model": self.recipe.pretrain.model}

    def remedy_without(self, key: str) -> str:
        """A run can begin without pretraining, too."""
        return f"{super().remedy_without(key)} Or begin with a model that you have: sft.model=FOLDER."

    def tokenizers(self) -> Mapping[str, str]:
        """The tokenizer of a new model, where the recipe names one and none is trained."""
        pretrained = self.recipe.pretrain.tokenizer.pretrained
        return {"pretrain.tokenizer.pretrained": pretrained} if pretrained else {}

    @property
    def makes(self) -> Kind:
        """The kind of model that learns the recipe's objective: a causal or a masked one."""
        return self.recipe.pretrain.objective

    def kinds(self, key: str) -> tuple[Kind, ...]:
        """A model that is trained further has the same objective."""
        return (self.makes,)

    def own_checks(self) -> Checks:
        """Whether a new model can learn the recipe's objective and read whole blocks."""
        return {} if self.models else {"pretrain.architecture": self._check_new_model}

    def _check_new_model(self) -> Finding | str:
        section = self.recipe.pretrain
        architecture = section.architecture
        if architecture.objective != section.objective:
            return Finding(
                f"pretrain.objective = {section.objective}, but a model of pretrain.architecture.family = "
                f"{architecture.family} learns the {architecture.objective} one.",
                "Set one to fit the other: encoders (modernbert, presets encoder-...) are masked, all others causal.",
            )
        if section.block_size > architecture.n_positions:
            return Finding(
                f"pretrain.block_size = {section.block_size}, but the model reads {architecture.n_positions} tokens "
                "at most.",
                "Lower it, or raise pretrain.architecture.n_positions.",
            )
        vocabulary = expected_vocabulary(section)
        if vocabulary is None:
            return f"{architecture.family}, as many tokens as its tokenizer has"
        return f"{architecture.family}, {architecture.parameters(vocabulary):,} parameters"

    def check_positions(self, positions: int | None) -> None:
        """Raises `UsageError` where the model cannot read a whole block of `pretrain.block_size` tokens."""
        check_block_size(self.recipe.pretrain.block_size, positions)

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """The optimizer steps, and the tokens compared with the compute-optimal number for so many parameters."""
        section = self.recipe.pretrain
        tokens = section.max_steps * section.batch_size * section.block_size
        amounts: dict[str, Any] = {"steps": section.max_steps, "tokens": tokens}
        if isinstance(parameters, int):
            amounts["tokens_per_parameter"] = round(tokens / parameters, 2)
            amounts["chinchilla_ratio"] = round(tokens / parameters / CHINCHILLA_TOKENS, 3)
            if not self.models:
                shape = section.architecture
                flops = flops_per_token(parameters, shape.n_layer, shape.n_embd, section.block_size)
                amounts["flops"] = f"{tokens * flops:.2e}"
        return amounts

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """The loss before and after: in bits per byte, for an encoder in nats per hidden token."""
        if "unigram_loss" in metrics:
            before = metrics.get("untrained_eval_loss", metrics.get("eval_loss_before"))
            what = f"nats per hidden token (by frequency: {metrics['unigram_loss']:.2f})"
            return [(what, f"{before:.2f}", f"{metrics['eval_loss']:.2f}")]
        before = metrics.get("untrained_bits_per_byte", metrics.get("bits_per_byte_before"))
        what = f"bits per byte (3-gram model: {metrics['trigram_bits_per_byte']:.2f})"
        return [(what, f"{before:.2f}", f"{metrics['bits_per_byte']:.2f}")]


class SftStep(Step):
    """A chat model from conversations, with raw text mixed in where the recipe says so."""

    stage = command = "sft"
    title = "A chat model, fine-tuned on conversations"
    in_rounds = False
    has_evaluation = True

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """The base model: the recipe's, or the one that pretrain makes."""
        return {"model": self.recipe.sft.model or Made("pretrain", 1)}

    @cached_property
    def data(self) -> Mapping[str, list[DataBlock]]:
        """The conversations, and the text of pretraining where `sft.pretrain_mix` mixes it in."""
        text = {"pretrain.data": self.recipe.pretrain.data or []} if self.recipe.sft.pretrain_mix > 0 else {}
        return {"sft.data": with_eval_data(self.recipe.sft.data or [], self.recipe.sft.eval_data), **text}

    def remedy_without(self, key: str) -> str:
        """A run without pretraining mixes in text only where it is given."""
        if key == "sft.data":
            return super().remedy_without(key)
        return f"sft.pretrain_mix mixes text in: give it with {key}=FILE start=sft, or leave sft.pretrain_mix out."

    def not_compared(self) -> dict[str, Any]:
        """`eval_steps` is compared where the best evaluated model is kept: it then changes the result."""
        keys = super().not_compared()
        return {key: keys[key] for key in keys if key != "eval_steps" or not self.recipe.sft.load_best_model_at_end}

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """The number of rows to train on, and of optimizer steps."""
        section = self.recipe.sft
        stream = stream_conversations(self.data["sft.data"], self.recipe.worlds, "sft.data", Report())
        conversations = sum(split == "train" for _, split in stream)
        rows = round(conversations / (1 - section.pretrain_mix))
        steps = math.ceil(math.ceil(rows / section.batch_size) * section.num_train_epochs)
        if section.max_steps > 0:
            return {"rows": rows, "steps": section.max_steps}
        return {"rows": rows, "steps": f"up to {steps}; packed, fewer" if section.packing else steps}

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """The loss before and after, and the shares of answers that are correct and that stop."""
        rows = [("validation loss, nats a token", f"{metrics['eval_loss_before']:.2f}", f"{metrics['eval_loss']:.2f}")]
        if "right" in metrics:
            what = f"correct answers at temperature {metrics['eval_temperature']:g} (before: chance)"
            rows.append((what, percent(metrics["chance"]), percent(metrics["right"])))
        return [*rows, ("answers that stop", "", percent(metrics["eos_share"]))]


class PpoStep(Step):
    """A better chat model from prompts and rewards; in later rounds the policy of the round before is trained on."""

    stage = command = "ppo"
    title = "A chat model, tuned with PPO"
    has_evaluation = True

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """The policy that is trained, the reward models, and the oracle that only measures."""
        section = self.recipe.ppo
        listed = {f"reward.{i}": source.model for i, source in enumerate(section.reward or [])}
        return {
            "model": Made("ppo", self.round - 1) if self.round > 1 else section.model or chat_model(self.recipe),
            "reward_model": section.reward_model or (Made("rm", self.round) if section.reward is None else None),
            **listed,
            "oracle_reward_model": section.oracle_reward_model,
        }

    @property
    def first_policy(self) -> str | None:
        """The model that ppo started from in the first round; None in that round."""
        return PpoStep(self.recipe, 1, self.folder).models["model"] if self.round > 1 else None

    @cached_property
    def data(self) -> Mapping[str, list[DataBlock]]:
        """The prompts, and raw text where `ppo.ptx_coef` mixes it in."""
        recipe = self.recipe
        text = {"ppo.ptx_data": recipe.ppo.ptx_data or recipe.pretrain.data or []} if recipe.ppo.ptx_coef > 0 else {}
        answers = answers_measured(recipe, recipe.ppo.response_length, recipe.evaluation.max_new_tokens)
        return {"ppo.data": recipe.ppo.data or recipe.rm.data or recipe.sample.data or [], **text, **answers}

    def functions(self) -> Mapping[str, str]:
        """The rewards of the recipe that are Python functions."""
        rewards = enumerate(self.recipe.ppo.reward or [])
        return {f"ppo.reward.{i}.function": reward.function for i, reward in rewards if reward.function}

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """The numbers of prompts, iterations, optimizer steps and sampled tokens."""
        section = self.recipe.ppo
        episodes = section.batch_size * section.num_mini_batches
        prompts = len(load_prompts(self.data["ppo.data"], self.recipe.worlds, "ppo.data").train)
        iterations = math.ceil(section.episodes(prompts, section.batch_size) / episodes)
        length = section.response_length
        tokens = f"up to {iterations * episodes * length:,} sampled" if length else "as long as answers in sft.data"
        return {
            "prompts": prompts,
            "iterations": iterations,
            "steps": iterations * section.num_ppo_epochs * section.num_mini_batches,
            "tokens": tokens,
        }

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """The rewards before and after, the win rates over the start policy, and the KL to it."""

        def scores(scorer: str) -> tuple[str, str]:
            return f"{metrics[f'{scorer}_score_before']:.2f}", f"{metrics[f'{scorer}_score']:.2f}"

        before = started_from(metrics)
        rows = [("reward it was trained on", *scores("reward"))]
        if "oracle_score" in metrics:
            rows.append(("oracle's score", *scores("oracle")))
            rows.append((f"win rate by the oracle over {before}", "50 %", percent(metrics["win_rate"])))
            rows.append(("correct answers", percent(metrics["right_before"]), percent(metrics["right"])))
        if "oracle_reward_score" in metrics:
            rows.append(("ppo.oracle_reward_model's score", *scores("oracle_reward")))
            rate = percent(metrics["oracle_reward_win_rate"])
            rows.append((f"win rate over {before} (by that model)", "50 %", rate))
        if not metrics.keys() & {"oracle_score", "oracle_reward_score"}:
            rows.append((f"win rate over {before} (by that reward)", "50 %", percent(metrics["reward_win_rate"])))
        if "win_rate_over_first" in metrics:
            rates = percent(metrics["win_rate_over_first_before"]), percent(metrics["win_rate_over_first"])
            rows.append(("win rate over the policy of the first round's start", *rates))
        return [*rows, (f"KL to {before}, nats an answer", "0.0", f"{metrics['objective/kl']:z.1f}")]


def expected_vocabulary(section: Pretrain) -> int | None:
    """Rows of a new model's embedding; None where `tokenizer.pretrained` is on the hub.

    For a tokenizer that is not trained yet it is the most that it may have: a bpe of enough text reaches it. Raises
    `UsageError` for a damaged tokenizer.
    """
    if section.architecture.vocab_size is not None:
        return section.architecture.vocab_size
    is_masked = section.objective == "masked"
    if section.tokenizer.pretrained is None:
        return section.tokenizer.vocab_size + is_masked
    file = Path(section.tokenizer.pretrained).expanduser() / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        entries: int = Tokenizer.from_file(str(file)).get_vocab_size()
        return entries + (is_masked and not _has_mask(file.with_name("tokenizer_config.json")))
    except Exception as problem:  # what `tokenizers` raises is nothing more specific
        raise UsageError(
            f"{file.parent} holds no tokenizer that can be read ({problem}).", "Give the folder of a complete one."
        ) from problem


def _has_mask(config: Path) -> bool:
    return config.is_file() and read_object(config).get("mask_token") is not None
