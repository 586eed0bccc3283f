"""The command line. Each command's module is imported when the command is used, not before."""

import atexit
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn

from offrl import __version__
from offrl.errors import OffrlError, near

COMMANDS = {
    "train": ("offrl.train_cli", "train an agent on a dataset, or continue a run"),
    "evaluate": ("offrl.evaluation_cli", "play a trained policy and report its return"),
    "plot": ("offrl.plotting_cli", "draw learning curves of runs"),
    "agents": ("offrl.agents_cli", "list the agents, or print one's equations and settings"),
    "data": ("offrl.datasets.commands", "list, describe, import, collect or corrupt datasets"),
    "lm": ("offrl.lm_cli", "data and methods of language-model preference learning"),
    "demo": ("offrl.demo_cli", "train, evaluate and plot two agents on a shipped dataset"),
}


def usage() -> str:
    """The text of `offrl --help`."""
    lines = [f"offrl {__version__}: offline reinforcement learning and imitation learning", ""]
    lines += ["usage: offrl COMMAND ...", "", "commands:"]
    lines += [f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items()]
    lines += ["", "offrl COMMAND --help describes a command; --version prints the version."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for an error of use, 130 when stopped."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"offrl {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    try:
        if name not in COMMANDS:
            raise OffrlError(
                f"there is no command {name!r}{near(name, COMMANDS) or ';'} offrl has "
                f"{', '.join(COMMANDS)}"
            )
        command: Callable[[list[str]], int] = import_module(COMMANDS[name][0]).main
        return command(rest)
    except OffrlError as error:
        print(f"offrl: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError as error:
        print(f"offrl: not enough memory ({str(error) or 'none left'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("offrl: interrupted", file=sys.stderr)
        return 130


def entry() -> None:
    """The console script."""
    # A user's agent or environment, `package.module:Name`, may stand in the working directory;
    # last, so that nothing there takes the place of an installed package.
    sys.path.append(os.getcwd())
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:
        code = 2
        if isinstance(error, BrokenPipeError):
            code = 0  # the reader of our output, `head` for instance, has what it wanted
        else:
            print(f"offrl: {error}", file=sys.stderr)
        # Python flushes once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End this process, and the group of processes that the command began, where it did."""
    group = sys.modules.get("torch.distributed")
    if group is None or not group.is_available() or not group.is_initialized():
        sys.exit(code)
    if code == 0:  # after an error the other processes may wait elsewhere
        group.destroy_process_group()
    # Threads of a group outlive it under DDP. One that asks for the interpreter while that is being
    # taken down aborts the process (pytorch#179291), so it is not taken down.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
