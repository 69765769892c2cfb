"""How often somebody is right who knows how answers look, but none of the facts."""

import random
from collections import defaultdict

from chatpipe.pocketworld.answers import fragments
from chatpipe.pocketworld.conversations import open_conversation
from chatpipe.pocketworld.questions import KIND_SHARES
from chatpipe.pocketworld.world import World

DRAWS_PER_KIND = 2000


def chance_of_guessing(world: World) -> float:
    """The expected share of right answers to test prompts (small talk left out) when guessing.

    The guesser draws each answer from the right answers to questions of the same form, so it is right with probability
    sum of p(answer)^2; "I do not know" is one of the answers wherever strangers are asked about too.
    """
    rng = random.Random(f"pocketworld guessing {world.seed}")
    answers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    weights: dict[str, float] = defaultdict(float)
    for kind, share in KIND_SHARES.items():
        if kind != "smalltalk":
            for _ in range(DRAWS_PER_KIND):
                _, question = open_conversation(world, "test", kind, rng)
                answers[question.form][fragments(question)[0]] += share
                weights[question.form] += share
    matches = (sum(p**2 for p in answers[form].values()) / weights[form] for form in weights)
    return sum(matches) / sum(weights.values())
