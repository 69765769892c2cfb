"""One stage to run: which recipe, in which folder, from which models, on which data, and whether it is done already.

Nothing here imports torch, so that a wrong command is answered at once, before anything is launched or written.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from chatpipe.checkpoints import MANIFEST, Manifest, checkpoint_id, read_manifest
from chatpipe.data.documents import check_documents
from chatpipe.data.formats import What
from chatpipe.data.load import check_rows
from chatpipe.data.sources import build_world, data_fingerprints, named_files, reads_pocketworld
from chatpipe.durable import replace_text, retire
from chatpipe.errors import UsageError
from chatpipe.models.folder import Kind, check_model, check_tokenizer
from chatpipe.ppo.functions import check_function, source_fingerprint
from chatpipe.recipe.loading import flatten
from chatpipe.recipe.schema import STAGES, DataBlock, Ppo, Recipe, TrainingSection
from chatpipe.training.trackers import check_trackers

# Which stage of the same run makes the model that a stage starts from, where the recipe names no other.
PARENTS: Mapping[str, Mapping[str, str]] = {
    "pretrain": {},
    "sft": {"model": "pretrain"},
    "rm": {"model": "sft"},
    "ppo": {"model": "sft", "reward_model": "rm"},
}

# Where and how a stage runs, not what comes out of it; models and data are compared by content. The recipe's `guards`
# belong to no stage and are not compared either: one decides whether training begins, and changes nothing in it. So a
# stage that a guard stopped goes on with that one turned off, and a finished one stays finished.
NOT_COMPARED: dict[str, Any] = {
    **dict.fromkeys(
        (
            "logging_steps",
            "save_steps",
            "eval_steps",
            "sample_prompts",
            "model",
            "reward_model",
            "gold_reward_model",
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
class Job:
    """One stage of a recipe in its folder; `models` maps the section's keys to folders or hub ids."""

    recipe: Recipe
    stage: str
    folder: Path
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe, stage: str, out: str | None = None) -> "Job":
        """The job of `stage` in the run's folder, or in the folder `out` of its own."""
        run = Path(recipe.out)
        section = recipe_section(recipe, stage)
        models = {key: getattr(section, key) or str(run / parent) for key, parent in PARENTS[stage].items()}
        if stage == "pretrain" and recipe.pretrain.model:
            models["model"] = recipe.pretrain.model
        if stage == "ppo":
            models = _with_all_rewards(models, recipe.ppo)
        return cls(recipe, stage, Path(out) if out else run / stage, models)

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

    def uses_pocketworld(self) -> bool:
        """Whether some of what the stage reads is the built-in world."""
        return any(reads_pocketworld(blocks) for blocks in self.data().values())

    def has_gold_rater(self) -> bool:
        """Whether the stage's own data is the built-in world, so that somebody knows what is true."""
        return reads_pocketworld(self.data()[f"{self.stage}.data"])

    def check(self, made_by_this_run: frozenset[str] = frozenset(), reads_data: bool = True) -> None:
        """Raises `UsageError` where data, a model or code is missing or of the wrong kind, or the folder is a file.

        Without `reads_data` the data may be missing. `made_by_this_run` names the stages that will have run before this
        one, so their folders need not exist yet.
        """
        for path in (self.folder, *self.folder.parents):
            if path.exists() and not path.is_dir():
                raise UsageError(f"{path} is a file.", "Choose a folder with out= or --out.")
        self._check_apart()
        check_trackers(self.recipe.report_to)
        for key, blocks in self.data().items() if reads_data else ():
            if key not in WHAT_OF_KEY:
                check_documents(blocks, key)
            elif not (key == "rm.data" and self.recipe.rm.data is None):
                check_rows(WHAT_OF_KEY[key], blocks, key)
        for key, name in self.functions().items():
            check_function(name, key)
        if self.uses_pocketworld():
            build_world(self.recipe.pocketworld)
        for key, model in self.models.items():
            parent = PARENTS[self.stage].get(key)
            given = parent is None or getattr(self.section, key) is not None
            if not given and parent == "pretrain" and self.recipe.pretrain.objective == "masked":
                raise UsageError(
                    f"{self.stage} starts from a causal language model; pretrain.objective = masked makes an encoder.",
                    f"Give {self.stage}.model. An encoder can be rm.model.",
                )
            if not given and parent in made_by_this_run:
                continue
            if not given and not Path(model).is_dir():
                flag = {"model": "--model", "reward_model": "--reward"}[key]
                raise UsageError(
                    f"{self.stage} starts from what {parent} makes, but there is no {model} yet.",
                    f"Run `chatpipe {parent}` first, or give a model with {flag}.",
                )
            check_model(
                model,
                self._kind(key),
                f"{self.stage}.{key}",
                or_else="masked" if self.stage == "rm" else None,
                reads_text=self.stage != "pretrain" or self.recipe.pretrain.tokenizer.pretrained is None,
            )
        if self.stage == "pretrain" and not self.models:
            self._check_new_model()
        if self.stage == "pretrain" and self.recipe.pretrain.tokenizer.pretrained:
            check_tokenizer(self.recipe.pretrain.tokenizer.pretrained, "pretrain.tokenizer.pretrained")

    def _kind(self, key: str) -> Kind:
        """What kind of model the section's `key` names."""
        if key != "model":
            return "reward"
        return self.recipe.pretrain.objective if self.stage == "pretrain" else "causal"

    def _check_new_model(self) -> None:
        """Raises `UsageError` where a new model could not learn what it is to learn, or not read its blocks."""
        section = self.recipe.pretrain
        architecture = section.architecture
        if architecture.objective != section.objective:
            raise UsageError(
                f"pretrain.objective = {section.objective}, but a model of pretrain.architecture.family = "
                f"{architecture.family} learns the {architecture.objective} one.",
                "Set one to fit the other: encoders (modernbert, presets encoder-...) are masked, all others causal.",
            )
        if section.block_size > architecture.n_positions:
            raise UsageError(
                f"pretrain.block_size = {section.block_size}, but the model reads {architecture.n_positions} tokens "
                "at most.",
                "Lower it, or raise pretrain.architecture.n_positions.",
            )

    def manifest(self) -> Manifest:
        """The manifest that this job's checkpoint will have, without results."""
        section = recipe_section(self.recipe, self.stage).model_dump(mode="json", exclude=NOT_COMPARED)
        settings = {f"{self.stage}.{key}": value for key, value in flatten(section).items()}
        if self.uses_pocketworld():
            settings.update(flatten({"pocketworld": self.recipe.pocketworld.model_dump(mode="json")}))
        if self.stage == "rm" and self.recipe.rm.data is None:  # the run makes its own rankings
            for name in ("sample", "rank"):
                made = getattr(self.recipe, name).model_dump(mode="json", exclude={"data"})
                settings.update(flatten({name: made}))
        parents = {f"{self.stage}.{key}": model for key, model in self.models.items()}
        if self.stage == "pretrain" and self.recipe.pretrain.tokenizer.pretrained:
            parents["pretrain.tokenizer.pretrained"] = self.recipe.pretrain.tokenizer.pretrained
        return Manifest(
            stage=self.stage,
            parents={key: checkpoint_id(model) for key, model in parents.items()},
            data={
                **{key: self._in_run(data_fingerprints(blocks, key)) for key, blocks in self.data().items()},
                **{key: {name: source_fingerprint(name, key)} for key, name in self.functions().items()},
            },
            settings={"seed": self.recipe.seed, **settings},
            seed=self.recipe.seed,
            processes=self.processes,
            evaluation=self.evaluation(),
        )

    def _in_run(self, fingerprints: dict[str, str]) -> dict[str, str]:
        """With what the run itself made named by its place in the run, which may be moved."""
        run = Path(self.recipe.out)
        return {
            str(Path(source).relative_to(run)) if Path(source).is_relative_to(run) else source: content
            for source, content in fingerprints.items()
        }

    def standing(self) -> Standing:
        """Whether the stage is done, has resume points to go on from, or is new.

        Raises `UsageError` where the folder holds something else, or was made in another way: the message names what
        changed.
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
        if before is None:
            return "new"  # killed before it had begun
        if finished is None and not any(self.folder.glob(COMPLETE_POINTS)):
            return "new"  # it broke off, perhaps because of its data, before there was anything to go on from
        changed = before.differences(self.manifest())
        if changed:
            shown = changed[:4] + ([f"... and {len(changed) - 4} more"] if len(changed) > 4 else [])
            raise UsageError(
                "\n".join([f"{self.folder} holds another {self.stage}:", *shown]),
                f"`chatpipe {self.stage} ... --fresh` makes it anew (the old one is deleted), or use another folder.",
            )
        return "done" if finished else "started"

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
        """Raises `UsageError` where the folder holds something that chatpipe did not make."""
        if self.folder.exists() and self._is_foreign():
            raise UsageError(
                f"{self.folder} holds something that chatpipe did not make; it is not deleted.",
                "Choose another folder.",
            )

    def _is_foreign(self) -> bool:
        """Whether the folder holds files, but neither a manifest nor the note that a stage began in it."""
        if (self.folder / MANIFEST).exists() or (self.folder / STARTED).exists():
            return False
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return any(path.suffix not in LEFTOVER_SUFFIXES and path.name not in LAUNCH_FILES for path in files)

    def _check_apart(self) -> None:
        """The folder may be deleted by --fresh: no model or data file of the stage may lie in it."""
        blocks = [block for some in self.data().values() for block in some]
        sources: list[str | Path] = [path for block in blocks for path in named_files(block)]
        for source in [*self.models.values(), *sources]:
            if Path(source).exists() and Path(source).resolve().is_relative_to(self.folder.resolve()):
                raise UsageError(
                    f"{self.folder} cannot be the folder of {self.stage}: it holds {source}, which {self.stage} reads.",
                    "Choose another folder with out= or --out.",
                )


def recipe_section(recipe: Recipe, stage: str) -> Any:
    """The section of a stage."""
    assert stage in STAGES, stage
    return getattr(recipe, stage)


def _with_all_rewards(models: dict[str, str], section: Ppo) -> dict[str, str]:
    """The models of ppo with the reward models that `ppo.reward` lists (`reward.0`, ...) and the held-out one."""
    if section.reward is not None:
        listed = {f"reward.{i}": source.model for i, source in enumerate(section.reward) if source.model is not None}
        models = {"model": models["model"], **listed}
    if section.gold_reward_model is not None:
        models = {**models, "gold_reward_model": section.gold_reward_model}
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


def rankings_file(recipe: Recipe) -> Path:
    """Where a run keeps what was ranked."""
    return Path(recipe.out) / "rankings" / "round-1.jsonl"


def rankings_blocks(recipe: Recipe) -> list[DataBlock]:
    """What the reward model learns from: `rm.data`, or the rankings that the run makes."""
    return recipe.rm.data or [DataBlock(source=str(rankings_file(recipe)), format="rankings")]
