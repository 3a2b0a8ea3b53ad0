"""A page of HTML in one file: no script, nothing from a network, readable at 400 pixels and on paper."""

import base64
import json
from collections.abc import Sequence
from html import escape

from cnnlab.runtime.terminal import printable

LONG = 16  # characters of a key that may be broken
# nothing is loaded and nothing runs, whatever a name or a file within the page holds
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#222;background:#fff;
 margin:0 auto;padding:1rem;max-width:1120px;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.25rem 0}
h2{font-size:1.2rem;margin:2.2rem 0 .5rem;border-bottom:1px solid #d0d7de}
h3{font-size:1rem;margin:1.2rem 0 .3rem}p{margin:.4rem 0}.note{color:#59636e}
nav a{margin-right:.9rem;white-space:nowrap}a{color:#0550ae}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.6rem;margin:1rem 0}
.facts div{border:1px solid #d0d7de;border-radius:6px;padding:.5rem .7rem}.facts b{display:block;font-size:1.25rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:1rem}
.charts svg{width:100%;height:auto;max-width:640px}
figure{margin:1rem 0;break-inside:avoid}figcaption{font-weight:600;margin-bottom:.3rem}
img{max-width:min(100%,800px);height:auto;display:block}
.pixels{display:flex;flex-wrap:wrap;gap:.9rem}.pixels figure{width:8.5rem;margin:0}
.pixels img{width:8.5rem;height:auto;image-rendering:pixelated;border:1px solid #d0d7de}
.pixels figcaption{font-weight:400;font-size:.85rem;line-height:1.3;margin:.25rem 0 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.92rem}
th,td{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #e3e6ea;vertical-align:top}
th,td:first-child{overflow-wrap:break-word}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{font:12.5px/1.4 ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;background:#f6f8fa;padding:.7rem;
 overflow-x:auto;border-radius:6px;overflow-wrap:normal}
@media print{body{max-width:none;padding:0;font-size:11pt}nav{display:none}h2,h3{break-after:avoid}
 pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:8pt}.charts{grid-template-columns:1fr 1fr}
 .wide{overflow:visible}img{max-height:24cm;width:auto}.pixels img{width:8.5rem}
 table,.charts svg,.facts div{break-inside:avoid}}
"""


def text(value: object) -> str:
    """Any text from elsewhere: HTML and what a terminal would act on are shown, not obeyed."""
    return "\n".join(escape(printable(line)) for line in str(value).split("\n"))


def page(title: str, introduction: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page; `sections` are (heading, HTML), of which empty ones are left out."""
    shown = [(f"s{number}", heading, body) for number, (heading, body) in enumerate(sections) if body]
    links = " ".join(f'<a href="#{anchor}">{text(heading)}</a>' for anchor, heading, _ in shown)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>{text(title)}</h1>\n{introduction}\n<nav>{links}</nav>",
            *(
                f'<section id="{anchor}">\n<h2>{text(heading)}</h2>\n{body}\n</section>'
                for anchor, heading, body in shown
            ),
            "</body>\n</html>\n",
        ]
    )


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Numbers in boxes, each over its name."""
    boxes = "".join(f"<div><b>{text(value)}</b>{text(name)}</div>" for name, value in values)
    return f'<div class="facts">{boxes}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]], numbers_from: int = 1) -> str:
    """Rows under a head; columns from `numbers_from` on are aligned to the right."""

    def cells(tag: str, row: Sequence[object]) -> str:
        styles = ["" if place < numbers_from else ' class="number"' for place in range(len(row))]
        return "".join(f"<{tag}{style}>{_breakable(cell)}</{tag}>" for style, cell in zip(styles, row, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    first = f"<thead><tr>{cells('th', head)}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table>{first}<tbody>{body}</tbody></table></div>'


def _breakable(cell: object) -> str:
    """A long key may be broken after its dots: on a phone the columns beside it need room."""
    return text(cell).replace(".", ".<wbr>") if len(str(cell)) > LONG else text(cell)


def charts(svgs: Sequence[str]) -> str:
    """Charts side by side where there is room; empty ones are left out."""
    shown = "\n".join(f"<div>{svg}</div>" for svg in svgs if svg)
    return f'<div class="charts">{shown}</div>' if shown else ""


def image(content: bytes, caption: str, kind: str = "png", width: int | None = None) -> str:
    """An image in the page under its caption; an SVG within `img` runs nothing."""
    data = base64.b64encode(content).decode()
    size = "" if width is None else f' width="{width}"'
    source = f"data:image/{kind};base64,{data}"
    return f'<figure><figcaption>{text(caption)}</figcaption><img src="{source}" alt="{text(caption)}"{size}></figure>'


def thumbnail(content: bytes, lines: Sequence[str]) -> str:
    """A small image, its pixels enlarged, above its lines of text."""
    data = base64.b64encode(content).decode()
    caption = "<br>".join(map(text, lines))
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text(" ".join(lines))}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def code(content: str) -> str:
    return f"<pre>{text(content)}</pre>"


def note(content: str) -> str:
    return f'<p class="note">{text(content)}</p>'


def value_text(value: object) -> str:
    """A value of JSON as a reader expects it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
