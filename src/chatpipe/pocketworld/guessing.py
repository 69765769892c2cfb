"""How often somebody is right who knows how answers look, but none of the facts."""

import random
from collections import defaultdict

from chatpipe.pocketworld.conversations import open_conversation
from chatpipe.pocketworld.questions import KIND_SHARES
from chatpipe.pocketworld.right_answers import fragments
from chatpipe.pocketworld.world import World

DRAWS_PER_KIND = 2000


def chance_of_guessing(world: World) -> float:
    """The expected share of right answers to test prompts (small talk left out) of the best guesser.

    That is the better of two: who gives the commonest right answer to each form of question, and who answers
    everything with the same sentence, such as "I do not know anyone of that name.".
    """
    rng = random.Random(f"pocketworld guessing {world.seed}")
    answers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kind, share in KIND_SHARES.items():
        if kind != "smalltalk":
            for _ in range(DRAWS_PER_KIND):
                _, question = open_conversation(world, "test", kind, rng)
                answers[question.form][fragments(question)[0]] += share
    total = sum(sum(of_form.values()) for of_form in answers.values())
    by_form = sum(max(of_form.values()) for of_form in answers.values())
    constant: dict[str, float] = defaultdict(float)
    for of_form in answers.values():
        for answer, weight in of_form.items():
            constant[answer] += weight
    return max(by_form, *constant.values()) / total
