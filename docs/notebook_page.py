"""`docs/notebook.ipynb`: its code is run, its outputs are stored in it, and the site shows it as a page.

A cell's outputs are what it prints, the figures that it draws and the value of its last line, as in Jupyter.
"""

import ast
import base64
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parent / "notebook.ipynb"
DOTS = 80  # an inch


def main() -> None:
    notebook = read()
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs the code in `folder`, one cell after the other, stores their outputs, and returns the names they defined."""
    import matplotlib

    matplotlib.use("agg")
    scope: dict[str, Any] = {"__name__": "__main__"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        for number, cell in enumerate(cells, 1):
            cell["execution_count"] = number
            cell["outputs"] = list(_outputs("".join(cell["source"]), scope, number))
    finally:
        os.chdir(before)
    return scope


def _outputs(source: str, scope: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    program = ast.parse(source)
    last = program.body.pop() if program.body and isinstance(program.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(program, f"cell {number}", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), scope) if last else None
    if printed.getvalue():
        yield {"name": "stdout", "output_type": "stream", "text": printed.getvalue().splitlines(keepends=True)}
    for drawn in map(pyplot.figure, pyplot.get_fignums()):
        yield {"output_type": "display_data", "metadata": {}, "data": _as_png(drawn)}
    pyplot.close("all")
    if value is not None:
        data = _as_png(value) if isinstance(value, Figure) else {"text/plain": repr(value).splitlines(keepends=True)}
        yield {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}


def _as_png(figure: Any) -> dict[str, str]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS, bbox_inches="tight", metadata={"Software": None})
    return {"image/png": base64.b64encode(buffer.getvalue()).decode()}


def page() -> str:
    """The notebook as Markdown, its outputs below each cell."""
    return "\n\n".join(part for cell in read()["cells"] for part in _as_markdown(cell)) + "\n"


def _as_markdown(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", [])})
        if "image/png" in data:
            yield f'<img alt="what the cell draws" src="data:image/png;base64,{data["image/png"].strip()}">'
        else:
            yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"


if __name__ == "__main__":
    main()
