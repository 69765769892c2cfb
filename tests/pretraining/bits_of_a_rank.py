"""What one process does for test_bits_two_ranks: trains, from the newest resume point on where there is one.

RANK=0 WORLD_SIZE=2 ... python bits_of_a_rank.py FOLDER
"""

import os
import sys
from pathlib import Path

from tiny_tokens import Ended
from tiny_trainer import CrashAt, tiny_trainer

from chatpipe.run.launch import end_rank
from chatpipe.training.resume import RESUME_POINTS, newest_resume_point
from chatpipe.training.text_bits import TextBits


def train(folder: Path, crash_at: int | None = None) -> None:
    """Eight steps of four rows over all processes; saves after 3 and 6, logs after 4 and 8."""
    trainer = tiny_trainer(
        folder,
        dataset=Ended(),
        own={"bits": TextBits((Ended.END,), bytes_per_token=1.0)},
        dropout=0.0,
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        logging_steps=4,
    )
    if crash_at is not None:
        trainer.add_callback(CrashAt(crash_at))
    point = newest_resume_point(folder / RESUME_POINTS)
    trainer.train(resume_from_checkpoint=str(point) if point else None)


if __name__ == "__main__":
    train(Path(sys.argv[1]))
    end_rank(0)
