"""The notebook of the docs runs, and its page shows what it stores."""

from pathlib import Path

import notebook_page
import pytest

import cnnlab


@pytest.mark.slow
def test_the_notebook_runs_and_every_cell_gives_what_it_did(tmp_path: Path) -> None:
    stored, fresh = notebook_page.read(), notebook_page.read()
    scope = notebook_page.execute(fresh, tmp_path)

    def kinds(notebook: dict) -> list[list[str]]:  # type: ignore[type-arg]
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        return [[name for output in cell["outputs"] for name in output.get("data", ["printed"])] for cell in cells]

    assert kinds(fresh) == kinds(stored)
    assert cnnlab.history(tmp_path / scope["run"])["step"][-1] > 200
    assert scope["result"]["accuracy"] > 0.95
    assert Path.cwd() != tmp_path


def test_the_page_has_the_code_and_the_outputs() -> None:
    page = notebook_page.page()
    assert "\nimport cnnlab\n\nconfig = cnnlab.compose(" in page
    assert "```text\naccuracy 0." in page
    assert page.count("data:image/png;base64,") == 4


def test_a_cell_gives_what_it_prints_draws_and_ends_with(tmp_path: Path) -> None:
    source = ["import matplotlib.pyplot as plt\n", "x = 2\n", "print('said')\n", "plt.figure()\n", "x + 1"]
    cell = {"cell_type": "code", "source": source}
    scope = notebook_page.execute({"cells": [cell]}, tmp_path)
    assert scope["x"] == 2
    printed, drawn, value = cell["outputs"]
    assert printed["text"] == ["said\n"]  # type: ignore[index,call-overload]
    assert list(drawn["data"]) == ["image/png"]  # type: ignore[index,call-overload]
    assert value["data"] == {"text/plain": ["3"]}  # type: ignore[index,call-overload]
