"""The `chatpipe` command: its subcommands, and what every one of them does with an error."""

import errno
import os
import re
import sys
import traceback
from pathlib import Path

import typer

from chatpipe import console
from chatpipe.cli import look_commands as look
from chatpipe.cli import model_commands as model
from chatpipe.cli import rank_command as rank
from chatpipe.cli import rankings_command as rankings
from chatpipe.cli import stage_command as stage
from chatpipe.errors import ChatpipeError, ExitCode, Interrupted, TrainingError, UsageError, is_out_of_memory

MAX_TEXT = 400
"""The most characters of a library's message that are shown."""

app = typer.Typer(
    name="chatpipe",
    help="Makes a chat model the way ChatGPT was made: pretrain, fine-tune, rank, reward model, PPO.",
    epilog="Start with: chatpipe run pocket",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run", epilog=stage.RUN_EPILOG)(stage.run)
for name, command in stage.COMMANDS.items():
    app.command(name, epilog=stage.EPILOGS[name])(command)
app.command("step", hidden=True)(stage.step)
app.command("sample", epilog=model.SAMPLE_EPILOG)(model.sample)
app.command("rank", epilog=rank.EPILOG)(rank.rank)
app.command("chat")(model.chat)
app.command("eval", epilog=model.EVAL_EPILOG)(model.evaluate)
app.command("check", epilog=look.CHECK_EPILOG)(look.check)
app.add_typer(look.data_app, name="data")
app.add_typer(rankings.app, name="rankings")
app.add_typer(look.recipes, name="recipes")
app.command("schema")(look.schema)
app.command("env")(look.env)


def main() -> None:
    """Runs the command and exits with the code of the contract."""
    try:
        _run_command()
    except SystemExit as end:
        from chatpipe.training.ranks import end_rank, in_world

        if in_world():
            end_rank(int(end.code or 0))
        raise


def _run_command() -> None:
    try:
        app(prog_name="chatpipe")  # also where it is started as `python -m chatpipe`
    except ChatpipeError as problem:
        _leave(problem)
    except KeyboardInterrupt:
        _leave(_stopped())
    except SystemExit as end:
        if end.code != ExitCode.INTERRUPTED:
            raise
        _leave(_stopped())  # Typer turns Ctrl-C into this, without a message
    except BrokenPipeError:
        # The reader of a pipe such as `| head` went away, which is no error of ours.
        sys.stderr.close()
        sys.exit(int(ExitCode.FAILED))
    except Exception as problem:
        _leave(_of_memory(problem) or _of_system(problem) or _of_installation(problem) or _bug(problem))


def _leave(problem: ChatpipeError) -> None:
    from chatpipe.run.launch import report_error

    # A launched process reports to its parent, which prints; the traceback goes into the launch log.
    if not report_error(problem):
        console.error(problem)
    elif problem.__cause__ is not None:
        console.trace(problem)
    sys.exit(int(problem.exit_code))


def _stopped() -> Interrupted:
    """The error for Ctrl-C where no stage has a better one."""
    return Interrupted("Stopped.", "The same command keeps what is complete and continues.")


def _of_memory(problem: Exception) -> ChatpipeError | None:
    """An error for memory that is used up; None for anything else. A stage has a better one."""
    if not is_out_of_memory(problem):
        return None
    error = TrainingError(
        f"out of memory: {_in_one_line(str(problem))}", "Use a smaller model, shorter texts, or fewer of them at once."
    )
    error.__cause__ = problem
    return error


def _of_system(problem: Exception) -> ChatpipeError | None:
    """An error for what the operating system refused: permission, space, a read-only disk. None for bugs."""
    # safetensors and tokenizers are written in Rust and have errors of their own.
    number_in_text = re.search(r"\(os error (\d+)\)", str(problem))
    if not isinstance(problem, OSError) and number_in_text is None:
        return None
    number = problem.errno if isinstance(problem, OSError) else int(number_in_text[1]) if number_in_text else None
    file = getattr(problem, "filename", None)
    what = os.strerror(number) if number else _in_one_line(str(problem))
    error = TrainingError(f"{what}: {file}" if file else f"{what} (in {_place(problem)})", _remedy(number))
    error.__cause__ = problem
    return error


def _remedy(number: int | None) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Make room; the same command keeps what is complete and continues."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Change its permissions, or choose another folder with out= or --out."
    if number == errno.ENOENT:
        return "It is gone, or cannot be made there: choose another folder with out= or --out."
    if number in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
        return "There is a file where a folder is needed, or a folder where a file is needed: choose another place."
    return "The same command keeps what is complete and continues; CHATPIPE_DEBUG=1 shows the traceback."


def _of_installation(problem: Exception) -> ChatpipeError | None:
    """An error for a package that is not installed; None for anything else."""
    if not isinstance(problem, ModuleNotFoundError) or problem.name is None or problem.name.startswith("chatpipe"):
        return None
    package = problem.name.partition(".")[0]
    error = UsageError(
        f"the package {package} is not installed, which this needs (in {_place(problem)}).",
        f"pip install {package}, or install chatpipe again with all that it depends on.",
    )
    error.__cause__ = problem
    return error


def _bug(problem: Exception) -> ChatpipeError:
    """The hint of an unexpected error."""
    what = f"{type(problem).__name__}: {_in_one_line(str(problem))}"
    error = TrainingError(
        f"a bug of chatpipe: {what} (in {_place(problem)})",
        "CHATPIPE_DEBUG=1 shows the traceback; please report it with the command and the recipe.",
    )
    error.__cause__ = problem
    return error


def _place(problem: Exception) -> str:
    """The file and line of chatpipe where the error was raised."""
    ours = Path(__file__).parents[1]
    frames = traceback.extract_tb(problem.__traceback__)
    *_, last = [frame for frame in frames if Path(frame.filename).is_relative_to(ours)] or frames
    return f"{last.filename}:{last.lineno}"


def _in_one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ..."
