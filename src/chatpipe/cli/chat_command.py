"""`chatpipe chat`: talking to a model."""

from typing import Annotated

import typer


def chat(
    model: Annotated[str, typer.Argument(help="A model folder or a hub id.")],
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.7,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the k likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Choose among the likeliest p of the mass.")] = 1.0,
    min_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Leave out tokens less than p times as likely as the likeliest.")
    ] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End an answer before this text; may be given repeatedly.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, /reset forgets the conversation, /quit ends."""
    from chatpipe.models.model_folder import check_model

    check_model(model, "causal", "MODEL")
    from chatpipe.generation import SamplingParams
    from chatpipe.generation.chat_loop import chat as talk

    talk(model, SamplingParams(max_new_tokens, temperature, top_k, top_p, min_p, tuple(stop or ())), seed, system)
