"""`data.inspect=FOLDER`: an inspection as one HTML page, PNG images and JSON."""

import base64
import html
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cnnlab.config.run_plan import RunPlan
from cnnlab.data.augmentation import Augment
from cnnlab.data.duplicates import Group
from cnnlab.data.source import Images
from cnnlab.run.files import RunDirectory, png
from cnnlab.run.inspection import Inspection, as_json, facts_of_files, inspect_data, summary
from cnnlab.runtime.errors import ConfigError, first_line
from cnnlab.runtime.terminal import print_wrapped, printable, waiting
from cnnlab.visualization.sheets import contact_sheet

PAGE, RESULT = "index.html", "inspection.json"
COLUMNS = 8  # of a contact sheet
MOST_SHEETS = 100  # classes that have one
MOST_IMAGES, MOST_OF_A_CLASS, LEAST_OF_A_CLASS = 1600, 32, 8  # on all sheets, and on one
MOST_GROUPS, MOST_OF_A_GROUP = 100, 6  # duplicates that are drawn
MOST_LISTED = 100  # files that cannot be read
AUGMENTED, TURNS = 8, 5  # images that are shown augmented, and how often

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 0 1rem 3rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
img { max-width: 100%; height: auto; image-rendering: pixelated; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .15rem .6rem .15rem 0; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; white-space: nowrap; overflow-wrap: normal; }
td.bar { width: 30%; min-width: 3rem; } td.bar div { background: #4c72b0; height: .8rem; margin-top: .35rem; }
figure { margin: 0 0 1.5rem; } figcaption { font-size: .85rem; } ul { padding-left: 1.2rem; }
@media print { body { max-width: none; font-size: 11px; } figure, tr { break-inside: avoid; }
  td.bar div { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def folder_for_inspection(given: str | None, root: Any) -> Path | None:
    """What `data.inspect` was given, absolute; None for null. Raises `ConfigError` where it cannot be made.

    `root` is the folder of the data, in which the new one could be taken for a class.
    """
    if given is None:
        return None
    folder = Path(given).expanduser().absolute()
    shown = printable(folder)
    if os.path.lexists(folder):
        kind = "a folder" if folder.is_dir() else "a file"
        raise ConfigError(f"data.inspect: {shown} exists and is {kind}: expected a folder that does not exist yet")
    try:
        if isinstance(root, str) and folder.resolve().is_relative_to(Path(root).expanduser().resolve()):
            raise ConfigError(
                f"data.inspect: {shown} is inside data.root, {printable(root)}, and would become a part of the data: "
                f"expected a folder elsewhere"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"data.inspect: {shown} cannot be made: {first_line(error)}; expected a place to write to"
        ) from error
    return folder


def write_inspection(plan: RunPlan, folder: Path) -> None:
    """Inspects the data of a run, makes the folder and prints what was found. Raises as `inspect_data` does."""
    with waiting("inspecting the data"):
        found = inspect_data(plan)
        class_sheets = [png(contact_sheet(_in_rows(images))) for images in _images_by_class(found)]
        groups = [_images_of(found, group) for group in found.duplicates.groups[:MOST_GROUPS]]
        group_sheets = [png(contact_sheet([x_NCHW])) for x_NCHW in groups]
        images = {f"class-{number:03d}.png": sheet for number, sheet in enumerate(class_sheets)}
        images |= {"duplicates.png": png(contact_sheet(groups))} if groups else {}
        if plan.augment:
            images["augmented.png"] = png(_augmented_sheet(plan, found.splits["train"]))
        with RunDirectory(folder.parent).new_folder(folder.name) as made:
            for name, content in images.items():
                (made / name).write_bytes(content)
            (made / RESULT).write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
            text = "\n".join(_page(plan, found, class_sheets, group_sheets, images.get("augmented.png")))
            (made / PAGE).write_text(text, encoding="utf-8", errors="backslashreplace")
    for line in summary(found):
        print_wrapped(line)
    print_wrapped(f"inspected: {printable(folder / PAGE)}", printable(folder / PAGE))


def _images_by_class(found: Inspection) -> Iterator[Images]:
    """Evenly spread images of each class's training images that can be read; of no more than `MOST_SHEETS` classes."""
    train = found.splits["train"]
    classes = min(len(found.class_names), MOST_SHEETS)
    most = max(LEAST_OF_A_CLASS, min(MOST_OF_A_CLASS, MOST_IMAGES // classes))
    for label in range(classes):
        rows = (train.y_N == label).nonzero().flatten()
        step = max(1, len(rows) // most)
        yield train.select(rows[::step][:most])


def _in_rows(images: Images) -> list[torch.Tensor]:
    return list(images.x_NCHW.split(COLUMNS))


def _images_of(found: Inspection, group: Group) -> torch.Tensor:
    return torch.stack([found.image_of(member) for member in group.shown(MOST_OF_A_GROUP)])


def _augmented_sheet(plan: RunPlan, train: Images) -> Any:
    """A row for each image: as it is stored, then as it comes in the first epochs."""
    shown = train.select(torch.arange(0, len(train), max(1, len(train) // AUGMENTED))[:AUGMENTED])
    x_NCHW = shown.x_NCHW.float()
    augment = Augment(plan.augment, plan.spec.classes, plan.seed)
    turns = [
        augment(x_NCHW, shown.y_N, shown.index_N, torch.full_like(shown.y_N, turn), turn, 0)[0] for turn in range(TURNS)
    ]
    return contact_sheet(list(torch.stack([x_NCHW, *turns], 1)))


def _page(
    plan: RunPlan,
    found: Inspection,
    class_sheets: Sequence[bytes],
    group_sheets: Sequence[bytes],
    augmented: bytes | None,
) -> Iterator[str]:
    title = f"The data of {_text(plan.name)}"
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
    yield f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in summary(found))}</ul>"
    yield from _counts(found)
    yield from _files(found)
    yield from _duplicates(found, group_sheets)
    yield "<h2>Images of each class</h2>"
    yield f"<p>Training images as the network's input, {'×'.join(map(str, plan.spec.input_shape))}.</p>"
    for name, sheet in zip(found.class_names, class_sheets, strict=False):
        yield _figure(sheet, name, _text(name))
    if len(class_sheets) < len(found.class_names):
        yield f"<p>And {len(found.class_names) - len(class_sheets):,} more classes.</p>"
    if augmented:
        steps = ", ".join(plan.augment)
        caption = f"Each row is an image as it is stored, and as it comes in the first {TURNS} epochs: {steps}."
        yield f"<h2>Augmented</h2>{_figure(augmented, caption, _text(caption))}"
    yield "</body>\n</html>\n"


def _counts(found: Inspection) -> Iterator[str]:
    counts = {split: found.counts(split) for split in found.splits}
    most = max(*counts["train"], 1)
    heads = "".join(f'<th class="number">{split}</th>' for split in counts)
    yield f'<h2>Classes</h2><table><tr><th>class</th>{heads}<th aria-label="of the largest class"></th></tr>'
    for label, name in enumerate(found.class_names):
        cells = "".join(f'<td class="number">{of[label]:,}</td>' for of in counts.values())
        bar = f'<td class="bar"><div style="width: {100 * counts["train"][label] / most:.1f}%"></div></td>'
        yield f"<tr><td>{_text(name)}</td>{cells}{bar}</tr>"
    cells = "".join(f'<th class="number">{sum(of):,}</th>' for of in counts.values())
    yield f"<tr><th>all</th>{cells}<th></th></tr></table>"


def _files(found: Inspection) -> Iterator[str]:
    if not found.files:
        return
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in facts_of_files(found))
    yield f"<h2>Files</h2><table>{rows}</table>"
    unreadable = [reason for reasons in found.unreadable.values() for reason in reasons]
    if unreadable:
        yield f"<h3>{len(unreadable):,} cannot be read</h3>{_list(unreadable[:MOST_LISTED])}"
        yield from _more(len(unreadable) - MOST_LISTED, "files")


def _duplicates(found: Inspection, sheets: Sequence[bytes]) -> Iterator[str]:
    groups = found.duplicates.groups
    if not groups:
        return
    yield (
        "<h2>Duplicates</h2><p>Those across splits first, then those of more than one class. Near duplicates are the "
        "same image compressed again, resized, cropped a little, brighter or darker; simple images, such as digits, "
        "may look alike without being copies.</p>"
    )
    for group, sheet in zip(groups, sheets, strict=False):
        members = group.shown(MOST_OF_A_GROUP)
        lines = [f"{member.split}: {found.file_of(member)} – {found.class_names[member.label]}" for member in members]
        kind = "equal" if group.is_exact else "nearly equal"
        more = f", of {len(group.members):,}" if len(members) < len(group.members) else ""
        yield _figure(sheet, kind, f"{kind}{more}{_list(lines)}")
    yield from _more(len(groups) - len(sheets), "groups")


def _more(count: int, what: str) -> Iterator[str]:
    if count > 0:
        yield f"<p>And {count:,} more {what}: all of them are in {RESULT}.</p>"


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _text(text: str) -> str:
    """A name or a sentence as HTML that shows it, whatever it has in it."""
    return html.escape(printable(text))


def _figure(content: bytes, shows: str, caption: str) -> str:
    image = f'<img src="data:image/png;base64,{base64.b64encode(content).decode()}" alt="{_text(shows)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
