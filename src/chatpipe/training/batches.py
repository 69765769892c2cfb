"""How a batch is spread over processes and micro-batches. No torch here: a wrong number is answered at once."""

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import TrainingSection


def micro_batches(section: TrainingSection, processes: int, stage: str) -> dict[str, int]:
    """`per_device_train_batch_size` and `gradient_accumulation_steps` for `batch_size` sequences a step in all.

    Raises `UsageError` naming the stage's key where the numbers do not divide each other.
    """
    share, rest = divmod(section.batch_size, processes)
    if rest:
        raise UsageError(
            f"{stage}.batch_size = {section.batch_size} cannot be shared by {processes} processes.",
            f"Make it a multiple of {processes}.",
        )
    micro = min(section.per_device_train_batch_size or share, share)
    if share % micro:
        raise UsageError(
            f"{stage}.per_device_train_batch_size = {micro} does not divide the {share} sequences of each process.",
            "Choose one that does, or leave it out.",
        )
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}
