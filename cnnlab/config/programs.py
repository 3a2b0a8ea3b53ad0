"""How the commands are called on this machine, for messages that name the next command."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

SCRIPTS = Path(__file__).parents[2]


def command(name: str) -> str:
    """`python train.py` in a checkout; `cnnlab-train` where that was typed or the package is installed."""
    typed = Path(sys.argv[0]).name
    if typed.startswith("cnnlab-") or not (SCRIPTS / f"{name}.py").is_file():
        return f"cnnlab-{name}"
    return f"{program('python')} {name}.py"


def given(key: str, value: object) -> str:
    """`KEY=VALUE` as a shell and Hydra take it: `'run="a b"'`."""
    text = str(value)
    if not re.fullmatch(r"[\w./@%+:-]+", text, re.ASCII):
        text = QuotedString(text, Quote.double).with_quotes()
    return shlex.quote(f"{key}={text}")


def trusting(command_line: str) -> Callable[[list[str]], str]:
    """The command line that trusts these names, too."""
    return lambda names: f"{command_line} 'trust=[{','.join(names)}]'"


def program(name: str) -> str:
    """A program of this environment by its name, or by its path where the name is another's."""
    ours = Path(sys.executable) if name == "python" else Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found).absolute() == ours.absolute() else os.path.relpath(ours)
