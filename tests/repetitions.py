"""How often a fault is injected: a few times by `make test`, as often as promised by `make torture`."""

import os


def times(few: int, full: int) -> int:
    return full if os.environ.get("CNNLAB_TORTURE") else few
