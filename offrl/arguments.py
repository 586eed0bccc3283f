"""The parser of commands with few options."""

import argparse
from typing import NoReturn

from offrl.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse's, except that a mistake is an error like any other: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("offrl ")
        raise ConfigError(f"{command}: {message}; see {self.prog} --help")
