"""The two commands, `cnnlab-train` and `cnnlab-evaluate`; nothing here takes time to import."""

from cnnlab.runtime.interrupts import exit_at_interrupt


def train() -> None:
    """`python train.py …`: trains, resumes or, with `-m`, sweeps."""
    _start("train")


def evaluate() -> None:
    """`python evaluate.py run=RUN …`."""
    _start("evaluate")


def _start(command: str) -> None:
    with exit_at_interrupt():
        from cnnlab.application import run_command
    run_command(command)
