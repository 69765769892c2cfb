"""Files as a user of chatpipe may have them, from which a model of the tests' size learns within seconds."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Each thing has one colour.
COLOURS = {
    "barn": "red",
    "boat": "blue",
    "field": "green",
    "lamp": "yellow",
    "wall": "white",
    "stove": "black",
    "roof": "brown",
    "kite": "pink",
}
OPENINGS = ("", "Hello! ", "Please tell me: ", "One question. ", "I wonder: ", "Say, ")
QUESTIONS = ("Which colour has the {}?", "What colour is the {}?", "How does the {} look?", "Describe the {}!")
CLOSINGS = ("", " Thanks!")

LEARN = {
    "sft": ("sft.learning_rate=3e-3", "sft.num_train_epochs=4", "sft.batch_size=16", "sft.max_length=96"),
    "rm": ("rm.learning_rate=1e-3", "rm.num_train_epochs=2", "rm.batch_size=16", "rm.max_length=96"),
    "ppo": ("ppo.total_episodes=64", "ppo.batch_size=32", "ppo.learning_rate=1e-4", "ppo.response_length=16"),
}
FEW_PROMPTS = ("evaluation.prompts=10", "evaluation.max_new_tokens=16")


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the answer to a question about another thing."""

    question: str
    right: str
    wrong: str


def asked() -> list[Asked]:
    """All 384 questions, in a mixed order."""
    rng = random.Random(0)
    found = []
    for thing, colour in COLOURS.items():
        other, its_colour = rng.choice([pair for pair in COLOURS.items() if pair[0] != thing])
        found += [
            Asked(opening + text.format(thing) + closing, f"The {thing} is {colour}.", f"The {other} is {its_colour}.")
            for opening in OPENINGS
            for text in QUESTIONS
            for closing in CLOSINGS
        ]
    rng.shuffle(found)
    return found


def as_messages(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
