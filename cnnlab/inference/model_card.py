"""The README.md beside exported files: what the network was trained on, how well it does, how it is called."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnlab.config.programs import command, given
from cnnlab.data.image_files import ImageReader
from cnnlab.inference.exported import FILES, INPUT, METADATA
from cnnlab.inference.saved_run import SavedRun
from cnnlab.runtime.terminal import printable
from cnnlab.version import __version__

COLUMNS = ("format", "file", "size", "largest difference", "ms per image, batch 1", "batch 32")


@dataclass(frozen=True)
class Check:
    """What the files were compared on, and how int8 compares with float32 where it was written."""

    sentence: str
    int8: str | None


@dataclass(frozen=True)
class Written:
    """A file of one format; `milliseconds` an image by the batch's size, the median."""

    format: str
    file: str
    size: int  # bytes
    difference: float
    milliseconds: Mapping[int, float]

    def cells(self) -> list[str]:
        """By `COLUMNS`."""
        times = [f"{value:.3g}" for value in self.milliseconds.values()]
        return [self.format, self.file, f"{self.size / 1e6:.3f} MB", f"{self.difference:.1e}", *times]


def model_card(run: SavedRun, check: Check, written: Sequence[Written]) -> str:
    """In Markdown. Names from elsewhere are escaped."""
    plan, reader = run.plan, run.plan.source.reader(run.plan.spec.input_shape)
    height, width = reader.size
    formats = [one.format for one in written]
    classes = ", ".join(map(_escaped, plan.spec.class_names))
    exported = f"{command('evaluate')} {given('run', run.directory.path)}"
    parts = [
        f"# {_escaped(plan.name)}, step {run.checkpoint.step:,}",
        f"A convolutional network for images of {plan.spec.classes} classes, trained and exported by cnnlab "
        f"{__version__}: `{exported} checkpoint={run.checkpoint.step} 'export=[{','.join(formats)}]'`.",
        "## Files",
        _table(COLUMNS, [one.cells() for one in written]),
        f"Each was read back alone and {check.sentence}. The difference is the largest of any logit or probability; "
        f"times are medians on the CPU that exported them. The computation is in float32"
        + (f". {check.int8}." if check.int8 else "."),
        "## Data and classes",
        f"{_counts(plan.spec.counts)}; {reader.channels} × {height} × {width} pixels (channels × height × width).",
        f"Classes, in the order of the outputs: {classes}.",
        "## Use",
        f"Input `{INPUT}`: uint8 (N, {reader.channels}, {height}, {width}), any N, values 0…255, "
        f"{'grey' if reader.channels == 1 else 'RGB'}; normalisation is inside. Outputs: `logits` and `probabilities`, "
        f"float32 (N, {plan.spec.classes}). Class names and cnnlab's version are in the metadata.",
        f"```python\n{_snippet(formats, reader)}```",
        *_metrics(run),
        "## Limits",
        "It gives every image one of these classes, whatever the image shows, and its probabilities are calibrated at "
        "best for images such as those it was trained on. Another way to resize images changes its predictions."
        + ("" if _evaluations(run) else " It has not been evaluated: no figure here says how well it does."),
    ]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """A name from elsewhere as Markdown shows it."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|!&~$" else letter for letter in printable(text))


def _counts(counts: Mapping[str, int]) -> str:
    return "Images: " + ", ".join(f"{_escaped(split)} {count:,}" for split, count in counts.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _evaluations(run: SavedRun) -> list[dict[str, Any]]:
    """What `evaluate.py` wrote of this checkpoint, by split."""
    names = [f"evaluation-{split}-{run.checkpoint.folder.name}.json" for split in ("test", "val")]
    return [found for name in names if (found := run.directory.read_json(name)).get("per_class")]


def _metrics(run: SavedRun) -> Iterator[str]:
    for result in _evaluations(run):
        yield f"## Metrics on the {result['split']} split"
        yield f"{result['images']:,} images: accuracy {result['accuracy']:.4f}, loss {result['loss']:.4f}."
        names = ("precision", "recall", "f1")
        rows = [
            [_escaped(row["class"]), f"{row['images']:,}", *(f"{row[name]:.4f}" for name in names)]
            for row in result["per_class"]
        ]
        yield _table(("class", "images", "precision", "recall", "F1"), rows)
        if pairs := result["most_confused"]:
            confused = [
                [_escaped(pair["label"]), _escaped(pair["prediction"]), f"{pair['images']:,}"] for pair in pairs
            ]
            yield "Most often confused:"
            yield _table(("label", "prediction", "images"), confused)


def _snippet(formats: Sequence[str], reader: ImageReader) -> str:
    """A program that predicts one image with the first of the formats that has a runtime."""
    runnable = [name for name in ("onnx", "onnx_int8", "torch_export") if name in formats]
    if not runnable:
        return _SAFETENSORS
    height, width = reader.size
    resize = _RESIZES[reader.resize] if reader.resize_size is None else _RESIZES_BEFORE_THE_CROP[reader.resize] + _CROP
    resize = resize.format(
        width=width,
        height=height,
        resize_size=reader.resize_size,
        resample=f"Image.Resampling.{reader.interpolation.upper()}",
    )
    before, after = (
        (_TORCH if runnable[0] == "torch_export" else _ONNX)
        .format(file=FILES[runnable[0]], metadata=METADATA, input=INPUT)
        .split("…")
    )
    mode = {1: "L", 3: "RGB"}[reader.channels]
    return (
        f"{before}"
        f'image = ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}")\n'
        f"{resize}"
        f"pixels = np.array(image).reshape(1, {height}, {width}, {reader.channels})\n"
        f"images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # channels first\n"
        f"{after}"
        f"print(class_names[logits[0].argmax()], float(probabilities[0].max()))\n"
    )


_ONNX = """import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("{file}")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
…logits, probabilities = session.run(["logits", "probabilities"], {{"{input}": images}})
"""
_TORCH = """import json

import numpy as np
import torch
from PIL import Image, ImageOps

extra_files = {{"{metadata}": ""}}
network = torch.export.load("{file}", extra_files=extra_files).module()
class_names = json.loads(json.loads(extra_files["{metadata}"])["class_names"])
…with torch.no_grad():
    logits, probabilities = network(torch.from_numpy(images))
"""
_SAFETENSORS = """from safetensors.torch import load_file

weights = load_file("model.safetensors")  # by their names in the run; normalisation is in the metadata
"""
_RESIZES = {
    "crop": "image = ImageOps.fit(image, ({width}, {height}), {resample})  # keeps the centre\n",
    "squash": "image = image.resize(({width}, {height}), {resample})\n",
    "pad": """inner = ImageOps.contain(image, ({width}, {height}), {resample})
image = Image.new(inner.mode, ({width}, {height}))  # black
image.paste(inner, (({width} - inner.width) // 2, ({height} - inner.height) // 2))
""",
}
_RESIZES_BEFORE_THE_CROP = {  # by `resize`, where there is a `resize_size`
    "crop": """sides = [int({resize_size} * side / min(image.size)) for side in image.size]
image = image.resize(sides, {resample})
""",
    "squash": "image = image.resize(({resize_size}, {resize_size}), {resample})\n",
}
_CROP = """left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)
image = image.crop((left, top, left + {width}, top + {height}))
"""
