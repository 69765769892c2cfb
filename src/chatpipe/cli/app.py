"""The `chatpipe` command: its subcommands, and what every one of them does with an error."""

import sys

import typer

from chatpipe import console
from chatpipe.cli import chat, env, recipes, run, schema, stage
from chatpipe.errors import ChatpipeError, ExitCode, Interrupted

app = typer.Typer(
    name="chatpipe",
    help="Makes a chat model the way ChatGPT was made: pretrain, fine-tune, rank, reward model, PPO.",
    epilog="Start with: chatpipe run pocket",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run", epilog=run.EPILOG)(run.run)
for name, command in stage.COMMANDS.items():
    app.command(name, epilog=stage.EPILOGS[name])(command)
app.command("chat")(chat.chat)
app.add_typer(recipes.app, name="recipes")
app.command("schema")(schema.schema)
app.command("env")(env.env)


def main() -> None:
    """Runs the command and exits with the code of the contract."""
    try:
        app()
    except ChatpipeError as problem:
        _leave(problem)
    except KeyboardInterrupt:
        _leave(Interrupted("Stopped.", "The same command goes on with what is complete."))
    except BrokenPipeError:
        # The reader of a pipe such as `| head` went away, which is no error of ours.
        sys.stderr.close()
        sys.exit(int(ExitCode.FAILED))


def _leave(problem: ChatpipeError) -> None:
    # Only a launched rank has a parent to tell; that parent prints.
    if not _tell_parent(problem):
        console.error(problem)
    sys.exit(int(problem.exit_code))


def _tell_parent(problem: ChatpipeError) -> bool:
    from chatpipe.training import launch

    return launch.is_rank() and launch.report_error(problem)
