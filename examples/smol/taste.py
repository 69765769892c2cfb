"""The program that ranks answers in the recipe smol-rlhf; a function of your own has the same form."""


def to_the_point(prompts: list[list[dict[str, str]]], completions: list[str]) -> list[float]:
    """Likes an answer of about eight words; each word more or less costs as much."""
    return [-abs(len(text.split()) - 8) / 4 for text in completions]
