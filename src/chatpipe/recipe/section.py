"""What the sections of a recipe share: their base class, and the blocks of their `data` keys."""

import os.path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and defaults are checked like given values."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses yes and no for a number, which they would be 1 and 0 of."""
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("yes or no is given, and a number is expected")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation names."""
    return {annotation}.union(*map(_kinds, get_args(annotation))) if get_args(annotation) else {annotation}


POCKETWORLD = "pocketworld"
HUB = "hub:"
"""The source of a hub data set begins with this."""

DataFormat = Literal[
    "auto",
    "text",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "question_answer",
    "pairs",
    "rankings",
    "prompts",
]

Place = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path or a hub id. `~` is expanded here: a shell expands it only at the beginning of a word, not after KEY=."""


class DataBlock(Section):
    """One source of rows."""

    source: str = Field(
        description="A file (txt, json, jsonl, csv, tsv, parquet, arrow; packed as gz, bz2, xz, zst), a folder, "
        "a pattern with *, "
        "`hub:OWNER/NAME`, a data set of the hub, or `pocketworld`, the built-in world."
    )
    format: DataFormat = Field("auto", description="What the rows are; `auto` recognises it from the first row.")
    limit: int | None = Field(None, ge=1, description="Read at most this many rows in all; a tenth of them validates.")
    columns: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="The file's names of fields, e.g. {text: content}; several are joined with newlines.",
    )
    document: Literal["file", "line", "blank_line"] = Field(
        "file",
        description="What is one document in a txt file: the whole file, a line, or the text between blank lines.",
    )
    weight: float = Field(
        1.0, gt=0, description="How often each row to train on (raw text: each token) is read in an epoch."
    )
    max_skipped: float = Field(
        0.01, ge=0, le=1, description="The share of unusable rows that is accepted; such rows are counted and left out."
    )
    use: Literal["auto", "train", "validation"] = Field(
        "auto",
        description="What the rows are for. auto: a tenth for validation, chosen by the prompt; in a folder, files "
        "that are named train, validation or test are what their names say.",
    )
    name: str | None = Field(None, description="A hub data set's configuration.")
    split: str = Field("train", description="A hub data set's split.")
    revision: str | None = Field(None, description="A hub data set's commit; default: the newest.")

    @model_validator(mode="after")
    def _worlds_split_their_prompts_themselves(self) -> "DataBlock":
        if self.use != "auto" and self.source == POCKETWORLD:
            raise ValueError(f"use is for files; {self.source} has validation prompts of its own")
        return self

    @model_validator(mode="after")
    def _hub_keys_are_for_the_hub(self) -> "DataBlock":
        given = [key for key in ("name", "split", "revision") if getattr(self, key) not in (None, "train")]
        if given and not self.source.startswith(HUB):
            raise ValueError(f"{given[0]} is for data sets of the hub; {self.source} is none (hub:OWNER/NAME)")
        return self


class EvalBlock(DataBlock):
    """A source of `eval_data`, which errors about its rows name in place of `data`."""


def _as_blocks(value: Any) -> Any:
    """A path, a comma-separated list of paths, or a list of paths and blocks: always a list of blocks.

    A comma may also be in the name of a file that is there.
    """
    if isinstance(value, str) and os.path.exists(os.path.expanduser(value)):
        value = [value]
    elif isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list):
        return [{"source": item} if isinstance(item, str) else item for item in value]
    return value


Data = Annotated[list[DataBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[str | DataBlock])]
