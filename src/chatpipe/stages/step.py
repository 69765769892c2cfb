"""One stage to run: which recipe, in which folder, from which models, on which data, and whether it is done already.

Nothing here imports torch, so that a wrong command is answered at once, before anything is launched or written.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from chatpipe.data.durable import replace_text, retire
from chatpipe.data.formats import What
from chatpipe.data.sources import data_fingerprints, named_files
from chatpipe.data.worlds import is_world, world_settings, worlds_read
from chatpipe.errors import UsageError
from chatpipe.models.manifest import MANIFEST, Manifest, checkpoint_id, read_manifest
from chatpipe.models.model_folder import check_weights
from chatpipe.recipe.loading import flatten
from chatpipe.recipe.schema import STAGES, DataBlock, Ppo, Recipe, TrainingSection
from chatpipe.reward.functions import is_function, source_fingerprint

# Which stage of the same run makes the model that a stage starts from, where the recipe names no other.
PARENTS: Mapping[str, Mapping[str, str]] = {
    "pretrain": {},
    "sft": {"model": "pretrain"},
    "rm": {"model": "sft"},
    "ppo": {"model": "sft", "reward_model": "rm"},
}
PEOPLE = "people"
"""The `rank.rater` for whom a run waits."""
PROMPTS_RANKED = "sample.data"
STAGES_OF_ROUNDS = ("rm", "ppo")
"""What every round has again; the others come once."""

# Where and how a stage runs, not what comes out of it; models and data are compared by content. The recipe's `checks`
# belong to no stage and are not compared either: one decides whether training begins, and changes nothing in it. So a
# stage that a check stopped goes on with that one turned off, and a finished one stays finished.
NOT_COMPARED: dict[str, Any] = {
    **dict.fromkeys(
        (
            "logging_steps",
            "save_steps",
            "eval_steps",
            "sample_prompts",
            "model",
            "reward_model",
            "oracle_reward_model",
            "data",
        ),
        True,
    ),
    "ptx_data": True,
    "reward": {"__all__": {"model"}},
}
LEFTOVER_SUFFIXES = {".partial", ".log"}
LAUNCH_FILES = {"recipe.yaml", "launch-error.json", "stop-requested"}
STARTED = "checkpoints/stage.json"
COMPLETE_POINTS = "checkpoints/step-*[0-9]"

# What the rows of each key are read as; the other keys name raw text.
WHAT_OF_KEY: Mapping[str, What] = {"sft.data": "conversations", "rm.data": "rankings", "ppo.data": "prompts"}


Standing = Literal["done", "started", "new"]


@dataclass
class Outcome:
    """What a stage measured of its result, and the verdict drawn from it."""

    metrics: dict[str, Any]
    verdict: dict[str, Any]


@dataclass
class Step:
    """One stage of a recipe in its folder; `models` maps the section's keys to folders or hub ids."""

    recipe: Recipe
    stage: str
    folder: Path
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, stage: str, out: str | None = None) -> "Step":
        """The step of `stage` in the run's folder, or in the folder `out` of its own."""
        models = {
            key: given_model(recipe, stage, key) or str(folder_in_run(recipe, *parent_of(recipe, stage, key)))
            for key in PARENTS[stage]
        }
        if stage == "pretrain" and recipe.pretrain.model:
            models["model"] = recipe.pretrain.model
        if stage == "ppo":
            models = _with_all_rewards(models, recipe.ppo)
        return cls(recipe, stage, Path(out) if out else folder_in_run(recipe, stage, recipe.round), models)

    @classmethod
    def all_of(cls, recipe: Recipe) -> "list[Step]":
        """The steps of a whole run in order: pretrain and sft, then rm and ppo for each round."""
        steps = []
        for number in range(1, recipe.rounds + 1):
            of_round = in_round(recipe, number)
            steps += [cls.of(of_round, stage) for stage in (STAGES if number == 1 else STAGES_OF_ROUNDS)]
        return steps

    @property
    def section(self) -> TrainingSection:
        """The stage's own section of the recipe."""
        return recipe_section(self.recipe, self.stage)

    @property
    def rank(self) -> int:
        """This process's number among those that were launched together."""
        return int(os.environ.get("RANK", "0"))

    @property
    def processes(self) -> int:
        """How many processes run this stage together."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates, saves and speaks."""
        return self.rank == 0

    def data(self) -> dict[str, list[DataBlock]]:
        """Recipe key -> data blocks of everything the stage reads."""
        return stage_data(self.recipe, self.stage)

    def functions(self) -> dict[str, str]:
        """Recipe key -> `module:function` of each reward that is Python code."""
        rewards = self.recipe.ppo.reward or [] if self.stage == "ppo" else []
        return {f"ppo.reward.{i}.function": reward.function for i, reward in enumerate(rewards) if reward.function}

    def evaluation(self) -> dict[str, Any]:
        """Dotted keys by which the stage's result is measured, where the recipe has a say in that."""
        measured = self.stage in ("sft", "ppo")
        return flatten({"evaluation": self.recipe.evaluation.model_dump(mode="json")}) if measured else {}

    def worlds_read(self) -> list[str]:
        """The built-in worlds that the stage reads."""
        return worlds_read([block for blocks in self.data().values() for block in blocks])

    def world(self) -> str | None:
        """The built-in world that the stage's own data reads, whose oracle then scores answers; None where none."""
        return next(iter(worlds_read(self.data()[f"{self.stage}.data"])), None)

    def makes_rankings(self) -> bool:
        """Whether the stage learns from rankings that the run has yet to make."""
        return self.stage == "rm" and run_ranks(self.recipe) and not rankings_file(self.recipe).exists()

    def first_policy(self) -> str:
        """The model that ppo started from in the first round."""
        return Step.of(in_round(self.recipe, 1), "ppo").models["model"]

    def manifest(self) -> Manifest:
        """The manifest that this step's checkpoint will have, without results."""
        section = recipe_section(self.recipe, self.stage).model_dump(mode="json", exclude=NOT_COMPARED)
        if self.recipe.round == 1:
            section.pop("age_weight", None)  # no rankings are older
        settings = {f"{self.stage}.{key}": value for key, value in flatten(section).items()}
        if self.stage == "sft" and self.recipe.sft.load_best_model_at_end:  # the best is one of those evaluated
            settings["sft.eval_steps"] = self.recipe.sft.eval_steps
        read = [block for blocks in self.data().values() for block in blocks]
        settings.update(flatten(world_settings(read, self.recipe.worlds)))
        ranked_from: dict[str, dict[str, str]] = {}
        if self.stage == "rm" and run_ranks(self.recipe):
            settings.update(_ranking_settings(self.recipe))
            ranked_from = _ranked_from(self.recipe)
        return Manifest(
            stage=self.stage,
            parents={key: checkpoint_id(model) for key, model in self._parents().items()},
            data={
                **{key: self._in_run(data_fingerprints(blocks, key)) for key, blocks in self.data().items()},
                **{key: {name: source_fingerprint(name, key)} for key, name in self.functions().items()},
                **ranked_from,
            },
            settings={"seed": self.recipe.seed, **settings},
            seed=self.recipe.seed,
            round=self.recipe.round if self.stage in STAGES_OF_ROUNDS else 1,
            processes=self.processes,
            evaluation=self.evaluation(),
        )

    def _parents(self) -> dict[str, str]:
        """Recipe key -> model or tokenizer that decides what comes out."""
        parents = {f"{self.stage}.{key}": model for key, model in self.models.items()}
        if self.stage == "rm" and run_ranks(self.recipe):
            parents.update(_ranking_models(self.recipe))
        if self.stage == "pretrain" and self.recipe.pretrain.tokenizer.pretrained:
            parents["pretrain.tokenizer.pretrained"] = self.recipe.pretrain.tokenizer.pretrained
        return parents

    def _in_run(self, fingerprints: dict[str, str]) -> dict[str, str]:
        """With what the run itself made named by its place in the run, which may be moved."""
        run = Path(self.recipe.out)
        return {
            str(Path(source).relative_to(run)) if Path(source).is_relative_to(run) else source: content
            for source, content in fingerprints.items()
        }

    def standing(self, to_be_made: Collection[str] = ()) -> Standing:
        """Whether the stage is done, has resume points to go on from, or is new.

        Raises `UsageError` where the folder holds something else, or was made in another way: the message names what
        changed. Models that are yet `to_be_made` are not compared.
        """
        if not self.folder.exists():
            return "new"
        if self._is_foreign():
            raise UsageError(
                f"{self.folder} holds something that chatpipe did not make.",
                "Choose another folder with out= or --out.",
            )
        finished = read_manifest(self.folder)
        before = finished or read_manifest(self.folder, STARTED)
        missing = {key for key, model in self._parents().items() if model in to_be_made}
        if before is None:
            return "new"  # killed before it had begun
        if finished is None and not any(self.folder.glob(COMPLETE_POINTS)):
            return "new"  # it broke off, perhaps because of its data, before there was anything to go on from
        now = self.manifest()
        changed = _without(self._with_later_keys(before, now), missing).differences(_without(now, missing))
        if changed:
            shown = changed[:4] + ([f"... and {len(changed) - 4} more"] if len(changed) > 4 else [])
            raise UsageError(
                "\n".join([f"{self.folder} holds another {self.stage}:", *shown]),
                f"`{self._again()}` makes it anew (the old one is deleted), or use another folder.",
            )
        return "done" if finished else "started"

    def check_whole(self) -> None:
        """Raises `UsageError` where the weights of the finished stage are gone or damaged."""
        try:
            check_weights(self.folder, str(self.folder))
        except UsageError as problem:
            raise UsageError(problem.message, f"`{self._again()}` makes it anew.") from problem

    def _again(self) -> str:
        """The command that makes the stage anew."""
        of_round = f"round={self.recipe.round} " if self.recipe.round > 1 else ""
        return f"chatpipe {self.stage} ... {of_round}--fresh"

    def _with_later_keys(self, before: Manifest, now: Manifest) -> Manifest:
        """`before` with the keys that the recipe had not then and that stand at their defaults now: nothing changed."""
        defaults = flatten({self.stage: type(self.section)().model_dump(mode="json", exclude=NOT_COMPARED)})
        if self.stage == "rm":
            defaults.update(_ranking_settings(Recipe()))
        later = {key: value for key, value in defaults.items() if now.settings.get(key) == value}
        data = before.data
        if "sample.k" in before.settings and PROMPTS_RANKED not in data:  # not noted before rounds were there
            data = {**data, **{key: some for key, some in now.data.items() if key == PROMPTS_RANKED}}
        return replace(before, settings={**later, **before.settings}, data=data)

    def begin(self) -> Manifest:
        """Notes how the stage is made before it starts, so that a changed recipe cannot resume it; returns the note."""
        manifest = self.manifest()
        replace_text(self.folder / STARTED, json.dumps(asdict(manifest), indent=2))
        return manifest

    def clear(self) -> None:
        """Deletes what an earlier run of the stage left; refuses to delete what chatpipe did not make."""
        self.check_ours()
        if self.folder.exists():
            retire(self.folder)

    def check_ours(self) -> None:
        """Raises `UsageError` where the folder holds something that chatpipe did not make, or cannot be deleted."""
        if self.folder.exists() and self._is_foreign():
            raise UsageError(
                f"{self.folder} holds something that chatpipe did not make; it is not deleted.",
                "Choose another folder.",
            )
        if self.folder.is_symlink() or self.folder.is_mount() or self.folder.resolve() == Path.cwd():
            raise UsageError(
                f"{self.folder} is a link, a mount or the working folder, which --fresh does not delete.",
                "Empty it yourself, or choose another folder with out= or --out.",
            )

    def _is_foreign(self) -> bool:
        """Whether the folder holds files, but neither a manifest nor the note that a stage began in it."""
        if (self.folder / MANIFEST).exists() or (self.folder / STARTED).exists():
            return False
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return any(path.suffix not in LEFTOVER_SUFFIXES and path.name not in LAUNCH_FILES for path in files)

    def check_apart(self) -> None:
        """Raises `UsageError` where the stage's folder holds what it reads, or lies in a folder that it reads whole.

        --fresh would delete the one, and the stage would read its own files in the other.
        """
        blocks = [block for some in self.data().values() for block in some]
        sources: list[str | Path] = [path for block in blocks for path in named_files(block)]
        ranks = self.stage == "rm" and run_ranks(self.recipe) and rater_is_model(self.recipe)
        rater = [self.recipe.rank.rater] if ranks else []
        for source in [*self.models.values(), *rater, *sources]:
            if Path(source).exists() and Path(source).resolve().is_relative_to(self.folder.resolve()):
                raise UsageError(
                    f"{self.folder} cannot be the folder of {self.stage}: it holds {source}, which {self.stage} reads.",
                    "Choose another folder with out= or --out.",
                )
        for block in blocks:
            whole = Path(block.source).expanduser()
            if whole in named_files(block) and whole.is_dir() and _lies_openly_in(self.folder, whole):
                raise UsageError(
                    f"{self.folder} cannot be the folder of {self.stage}: it lies in {whole}, all of which "
                    f"{self.stage} reads.",
                    "Choose another folder with out= or --out.",
                )


def _without(manifest: Manifest, parents: Collection[str]) -> Manifest:
    return replace(manifest, parents={key: id for key, id in manifest.parents.items() if key not in parents})


def _lies_openly_in(folder: Path, whole: Path) -> bool:
    """Whether `folder` is in `whole`, and not below a hidden folder, which is not read."""
    folder, whole = folder.resolve(), whole.resolve()
    return folder.is_relative_to(whole) and not any(part.startswith(".") for part in folder.relative_to(whole).parts)


def recipe_section(recipe: Recipe, stage: str) -> Any:
    """The section of a stage."""
    assert stage in STAGES, stage
    return getattr(recipe, stage)


def _ranking_settings(recipe: Recipe) -> dict[str, Any]:
    """Dotted keys that decide the rankings which a run makes itself."""
    sections = {name: getattr(recipe, name).model_dump(mode="json", exclude={"data"}) for name in ("sample", "rank")}
    if rater_is_model(recipe):
        del sections["rank"]["rater"]
    return flatten(sections)


def _ranking_models(recipe: Recipe) -> dict[str, str]:
    """Recipe key -> model that answered or ranked, where it is no parent of rm anyway."""
    models = {"sample.model": answering_model(recipe)} if recipe.round > 1 else {}
    return {**models, "rank.rater": recipe.rank.rater} if rater_is_model(recipe) else models


def _ranked_from(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Fingerprints of the prompts that are ranked, and of a rater that is Python code."""
    found = {PROMPTS_RANKED: data_fingerprints(recipe.sample.data or [], PROMPTS_RANKED)}
    rater = recipe.rank.rater
    return {**found, "rank.rater": {rater: source_fingerprint(rater, "rank.rater")}} if is_function(rater) else found


def rater_is_model(recipe: Recipe) -> bool:
    """Whether the rater of the recipe is a reward model, known by its weights and not by its place."""
    rater = recipe.rank.rater
    return not (rater == PEOPLE or is_world(rater) or is_function(rater))


def _with_all_rewards(models: dict[str, str], section: Ppo) -> dict[str, str]:
    """The models of ppo with the reward models that `ppo.reward` lists (`reward.0`, ...) and the held-out one."""
    if section.reward is not None:
        listed = {f"reward.{i}": source.model for i, source in enumerate(section.reward) if source.model is not None}
        models = {"model": models["model"], **listed}
    if section.oracle_reward_model is not None:
        models = {**models, "oracle_reward_model": section.oracle_reward_model}
    return models


def stage_data(recipe: Recipe, stage: str) -> dict[str, list[DataBlock]]:
    """Recipe key -> data blocks of everything that `stage` reads."""
    if stage == "rm":
        demonstrations = {"sft.data": recipe.sft.data} if recipe.sft.data else {}
        return {"rm.data": rankings_blocks(recipe), **demonstrations}
    if stage == "ppo":
        text = {"ppo.ptx_data": recipe.ppo.ptx_data or recipe.pretrain.data or []} if recipe.ppo.ptx_coef > 0 else {}
        return {"ppo.data": recipe.ppo.data or recipe.rm.data or recipe.sample.data or [], **text}
    data = {f"{stage}.data": recipe_section(recipe, stage).data or []}
    if stage == "sft" and recipe.sft.pretrain_mix > 0:
        data["pretrain.data"] = recipe.pretrain.data or []
    return data


def in_round(recipe: Recipe, number: int) -> Recipe:
    """The recipe as the stages of a round have it."""
    return recipe.model_copy(update={"round": number})


def folder_in_run(recipe: Recipe, stage: str, number: int) -> Path:
    """The folder of a stage of round `number` in the run: `rm.2` is that of the second round."""
    later = number > 1 and stage in STAGES_OF_ROUNDS
    return Path(recipe.out) / (f"{stage}.{number}" if later else stage)


def parent_of(recipe: Recipe, stage: str, key: str) -> tuple[str, int]:
    """The stage, and its round, whose model a stage of the recipe's round starts from where no other is given."""
    if stage == "ppo" and key == "model" and recipe.round > 1:
        return "ppo", recipe.round - 1
    return PARENTS[stage][key], recipe.round


def given_model(recipe: Recipe, stage: str, key: str) -> str | None:
    """The model that the recipe names; in later rounds ppo goes on from the newest policy all the same."""
    if stage == "ppo" and key == "model" and recipe.round > 1:
        return None
    given: str | None = getattr(recipe_section(recipe, stage), key)
    return given


def answering_model(recipe: Recipe) -> str:
    """Whose answers are ranked in the recipe's round: the body of rm in the first one, then the newest policy."""
    if recipe.round == 1:
        return Step.of(recipe, "rm").models["model"]
    return str(folder_in_run(recipe, "ppo", recipe.round - 1))


def rankings_file(recipe: Recipe) -> Path:
    """Where a run keeps what was ranked in the recipe's round."""
    return Path(recipe.out) / "rankings" / f"round-{recipe.round}.jsonl"


def run_ranks(recipe: Recipe) -> bool:
    """Whether the run itself samples and ranks in the recipe's round: not where the first one reads `rm.data`."""
    return recipe.rm.data is None or recipe.round > 1


def rankings_blocks(recipe: Recipe) -> list[DataBlock]:
    """What the reward model learns from: `rm.data`, or what the run ranked, and what was ranked in earlier rounds."""
    blocks = []
    for number in range(1, recipe.round + 1):
        of_round = in_round(recipe, number)
        weight = recipe.rm.age_weight ** (recipe.round - number)
        own = [DataBlock(source=str(rankings_file(of_round)), format="rankings")]
        read = own if run_ranks(of_round) else recipe.rm.data or []
        if weight > 0:
            blocks += [block.model_copy(update={"weight": block.weight * weight}) for block in read]
    return blocks
