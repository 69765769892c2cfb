"""sample, rank and rm as steps of a run: from the answers of a chat model to a model of what is preferred. No torch."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from chatpipe.checks.gate import Checks, Finding
from chatpipe.data.datasets import load_prompts, load_rankings
from chatpipe.data.rankings import group_by_answers
from chatpipe.data.row_files import VALIDATION_SHARE
from chatpipe.data.sources import check_sources, named_files
from chatpipe.data.worlds import is_world
from chatpipe.models.model_folder import Kind
from chatpipe.recipe.schema import DataBlock, Recipe
from chatpipe.reward.functions import is_function
from chatpipe.stages.step import (
    Made,
    Step,
    answers_measured,
    chat_model,
    folder_of,
    name_of,
    percent,
    with_eval_data,
)

COMPLETIONS_FILE, RANKINGS_FILE, STORE_FILE = "completions.jsonl", "rankings.jsonl", "rankings.db"
COMPLETIONS = "completions"
"""The key of what rank reads, which no recipe names."""
PEOPLE = "people"
"""The `rank.rater` for whom a run waits."""


def samples(recipe: Recipe, number: int) -> bool:
    """Whether the run samples and ranks in round `number`: not where the first round reads `rm.data`."""
    return recipe.rm.data is None or number > 1


def prompts_sampled(recipe: Recipe) -> int:
    """How many prompts a round samples at most: `sample.prompts`, or all that there are."""
    if recipe.sample.prompts is not None:
        return recipe.sample.prompts
    found = load_prompts(recipe.sample.data or [], recipe.worlds, "sample.data")
    return len(found.train) + len(found.validation)


class SampleStep(Step):
    """Samples answers of the newest chat model; a round that reads given rankings has no such step."""

    stage = "sample"
    command = "rm"
    less_memory = "Lower sample.max_new_tokens, leave out long prompts (sample.data), or let a smaller model answer."
    result = COMPLETIONS_FILE
    resume_points = f"{COMPLETIONS_FILE}*"

    @classmethod
    def is_in(cls, recipe: Recipe, number: int) -> bool:
        """Whether the round makes its own rankings, for which it needs answers."""
        return super().is_in(recipe, number) and samples(recipe, number)

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """The model that answers: in the first round the chat model, later the policy of the round before."""
        chat = chat_model(self.recipe)
        if self.round > 1:
            chat = Made("ppo", self.round - 1)
        elif isinstance(chat, Made):
            chat = self.recipe.rm.model or chat
        return {"model": chat}

    @cached_property
    def data(self) -> Mapping[str, list[DataBlock]]:
        """Prompts, and answers that say how long one may be."""
        recipe = self.recipe
        return {"sample.data": recipe.sample.data or [], **answers_measured(recipe, recipe.sample.max_new_tokens)}

    def check_data(self, key: str, blocks: list[DataBlock]) -> Finding | str:
        """Whether there are prompts, and whether the rater can rank the answers to them."""
        if key != "sample.data":
            return super().check_data(key, blocks)
        rater, section = self.recipe.rank.rater, self.recipe.sample
        if not blocks:
            return Finding(
                "rm.data is not given, and neither is sample.data.",
                "Give rankings: rm.data=FILE; or prompts whose answers are ranked: sample.data=FILE rank.rater=WHO.",
            )
        check_sources(blocks, key)
        if not rater:
            return Finding(
                "rank.rater is not given: who ranks the answers?",
                "Set it to people, a reward model, or module:function; or give rankings with rm.data=FILE.",
            )
        for block in blocks:
            if is_world(rater) and block.source != rater:
                return Finding(
                    f"sample.data = {block.source}: {rater} cannot score answers to these prompts.",
                    "Set rank.rater: people, a reward model, or module:function; or give rankings with rm.data=FILE.",
                )
        return f"{section.prompts or 'all'} prompts, {section.k} answers each"

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """The numbers of prompts and of answers, of which there may be fewer."""
        section, prompts = self.recipe.sample, prompts_sampled(self.recipe)
        limit = section.max_new_tokens or self.recipe.evaluation.max_new_tokens
        tokens = f"up to {limit:,} in each" if limit else "as long as answers in sft.data, or up to 512"
        return {"prompts": f"up to {prompts:,}", "answers": f"up to {prompts * section.k:,}", "tokens": tokens}

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """How many prompts were answered."""
        return [(f"prompts answered {metrics['k']} times at most", "", f"{metrics['prompts']:,}")]


class RankStep(Step):
    """Ranks a round's answers by people or a program, or writes down the rankings that `rm.data` names."""

    stage = "rank"
    command = "rm"
    less_memory = "Lower sample.max_new_tokens, or give a smaller reward model as rank.rater."
    result = RANKINGS_FILE
    resume_points = STORE_FILE

    @property
    def reads_given_rankings(self) -> bool:
        """Whether there is nothing to rank, since `rm.data` names rankings."""
        return not samples(self.recipe, self.round)

    @property
    def ranked_by(self) -> str:
        """The rater, or the key of the rankings that are read."""
        return "rm.data" if self.reads_given_rankings else self.recipe.rank.rater

    @property
    def asks_people(self) -> bool:
        """Whether people rank the answers."""
        return self.ranked_by == PEOPLE

    @property
    def runs_in_place(self) -> bool:
        """Whether one process is enough: people rank, an oracle ranks, or the rankings are given."""
        return self.reads_given_rankings or self.asks_people or is_world(self.ranked_by)

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """The reward model that ranks, if one does; it is compared by its weights, not by its path."""
        is_model = self.ranked_by != "" and not (self.runs_in_place or is_function(self.ranked_by))
        return {"rater": self.ranked_by if is_model else None}

    @cached_property
    def data(self) -> Mapping[str, list[DataBlock]]:
        """The answers of the round, or the rankings that `rm.data` names."""
        if self.reads_given_rankings:
            return {"rm.data": self.recipe.rm.data or []}
        completions = folder_of(self.recipe, "sample", self.round) / COMPLETIONS_FILE
        return {COMPLETIONS: [DataBlock(source=str(completions))]}

    def check_data(self, key: str, blocks: list[DataBlock]) -> Finding | str:
        """Whether the given rankings are some; answers come from the run itself."""
        return (
            f"ranked by {self.ranked_by}: {blocks[0].source}" if key == COMPLETIONS else super().check_data(key, blocks)
        )

    def data_makers(self) -> Mapping[str, tuple[str, ...]]:
        """The step that samples the answers; none where the rankings are given."""
        return {} if self.reads_given_rankings else {COMPLETIONS: (name_of("sample", self.round),)}

    def functions(self) -> Mapping[str, str]:
        """The rater, where it is a Python function."""
        return {"rank.rater": self.ranked_by} if is_function(self.ranked_by) else {}

    def worlds_read(self) -> list[str]:
        """The built-in world whose oracle ranks, or the worlds that the data reads."""
        return [self.ranked_by] if is_world(self.ranked_by) else super().worlds_read()

    def not_compared(self) -> dict[str, Any]:
        """All keys of the section where the rankings are given; else those that the rater does not use."""
        if self.reads_given_rankings:
            return dict.fromkeys(type(self.section).model_fields, True)
        by_rater = {"temperature": True} if self.asks_people else {"overlap": True}
        return super().not_compared() | by_rater | ({"rater": True} if self.models else {})

    def own_checks(self) -> Checks:
        """Whether the given rankings are other files than those that the run writes."""
        return {"rankings": self._check_rankings_apart} if self.reads_given_rankings else {}

    def _check_rankings_apart(self) -> Finding | str:
        rounds = range(1, max(self.recipe.rounds, self.round) + 1)
        written = [folder_of(self.recipe, "rank", number) / RANKINGS_FILE for number in rounds]
        for block in self.recipe.rm.data or []:
            for path in (Path(block.source), *named_files(block)):
                found = [file for file in written if file.resolve().is_relative_to(path.resolve())]
                if found:
                    return Finding(
                        f"rm.data = {block.source} is, or holds, {found[0]}, into which this run writes its rankings.",
                        "Copy what you need to another place and give the copy, or leave rm.data out.",
                    )
        return str(written[0])

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """The rater."""
        return {"rater": self.ranked_by}

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """How many rankings there are."""
        return [("rankings", "", f"{metrics['rankings']:,}")]


class RmStep(Step):
    """A reward model from the rankings of all rounds so far."""

    stage = command = "rm"
    title = "A reward model"

    def model_sources(self) -> Mapping[str, str | Made | None]:
        """The chat model or encoder whose body the reward model takes, or a reward model that is trained further."""
        return {"model": self.recipe.rm.model or chat_model(self.recipe)}

    def kinds(self, key: str) -> tuple[Kind, ...]:
        """The body is taken from a causal model or an encoder; a reward model keeps its head, too."""
        return ("causal", "masked", "reward")

    @property
    def makes(self) -> Kind:
        """A reward model, which gives a text one score."""
        return "reward"

    @cached_property
    def data(self) -> Mapping[str, list[DataBlock]]:
        """The rankings of all rounds, weighted by age, and the demonstrations that centre the scores."""
        rankings: list[DataBlock] = []
        for number, weight in self._weights().items():
            if samples(self.recipe, number):
                own = str(folder_of(self.recipe, "rank", number) / RANKINGS_FILE)
                rankings.append(DataBlock(source=own, format="rankings", weight=weight))
            else:
                given = self.recipe.rm.data or []
                rankings += [block.model_copy(update={"weight": block.weight * weight}) for block in given]
        rankings = with_eval_data(rankings, self.recipe.rm.eval_data)
        return {"rm.data": rankings, **({"sft.data": self.recipe.sft.data} if self.recipe.sft.data else {})}

    def data_makers(self) -> Mapping[str, tuple[str, ...]]:
        """The rank steps that make the rankings of each round."""
        makers = tuple(name_of("rank", number) for number in self._weights() if samples(self.recipe, number))
        return {"rm.data": makers} if makers else {}

    def _weights(self) -> dict[int, float]:
        """Round -> the weight of its rankings, where that is not 0 and the round has any."""
        rounds = [n for n in range(1, self.round + 1) if n == self.round or RankStep.is_in(self.recipe, n)]
        weights = {number: self.recipe.rm.age_weight ** (self.round - number) for number in rounds}
        return {number: weight for number, weight in weights.items() if weight != 0}

    def not_compared(self) -> dict[str, Any]:
        """`age_weight` is not compared in the first round, which has no older rankings."""
        return super().not_compared() | ({"age_weight": True} if self.round == 1 else {})

    def amounts(self, parameters: int | str) -> dict[str, Any]:
        """The numbers of rankings and of optimizer steps."""
        recipe, blocks = self.recipe, self.data["rm.data"]
        to_be_made = [block for block in blocks if "rm.data" in self.makers and not Path(block.source).exists()]
        there = [block for block in blocks if block not in to_be_made]
        train = load_rankings(there, recipe.worlds, "rm.data").train if there else []
        rows = prompts_sampled(recipe) if to_be_made else 0
        made = round((1 - VALIDATION_SHARE) * rows * sum(block.weight for block in to_be_made))
        rankings, prompts = len(train) + made, len(group_by_answers(train)) + made
        steps = math.ceil(math.ceil(prompts / recipe.rm.batch_size) * recipe.rm.num_train_epochs)
        return {"rankings": rankings, "steps": steps}

    def gains(self, metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
        """The accuracy on validation pairs, compared with rules that need no model."""
        accuracy = percent(metrics["eval_accuracy"])
        what = f"pairs ordered correctly (before: the {metrics['length_rule']} one)"
        rows = [(what, percent(metrics["length_baseline"]), accuracy)]
        if "words_baseline" in metrics:
            rows.append(("the same (before: by words and length)", percent(metrics["words_baseline"]), accuracy))
        return rows
