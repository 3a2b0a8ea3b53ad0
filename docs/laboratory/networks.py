"""Recurrent or feed-forward, and what overfitting looks like: whole runs side by side."""

from pathlib import Path

from matplotlib.figure import Figure

from laboratory.shown import Shown, accuracy, lines_of

KINDS = {"lstm": "row-by-row LSTM", "cnn": "two convolutions", "mlp": "one hidden layer"}


def rnn_or_cnn() -> Shown:
    shown = Shown()
    rows, lost = [], {}
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for kind, title in KINDS.items():
        choice = f"experiment=rnn_vs_cnn/{kind}"
        runs = {
            False: shown.train(kind, choice),
            True: shown.train(f"{kind}_permuted", choice, "model.blocks.permute=permute_pixels"),
        }
        plain, permuted = accuracy(runs[False]), accuracy(runs[True])
        lost[kind] = 100 * (plain - permuted)
        train = [line for line in lines_of(runs[False] / "metrics.jsonl") if line["split"] == "train"]
        rows.append(
            f"| {title} | {_parameters(runs[False])} | {100 * plain:.2f} | {100 * permuted:.2f} "
            f"| {-lost[kind]:+.2f} | {train[-1]['seconds'] / train[-1]['epoch']:.1f} |"
        )
        for turned, path in runs.items():
            measured = [line for line in lines_of(path / "metrics.jsonl") if line["split"] == "val"]
            axes.plot(
                [line["epoch"] for line in measured],
                [100 * line["accuracy"] for line in measured],
                "--o" if turned else "-o",
                color=f"C{list(KINDS).index(kind)}",
                label=f"{title}, permuted" if turned else title,
            )
    axes.set(
        xlabel="epoch", ylabel="validation accuracy (%)", title="dashed: the same pixels in one fixed random order"
    )
    axes.set_xticks([1, 2, 3])
    axes.legend(fontsize=8)
    shown.images["curves"] = figure
    head = "| | parameters | test (%) | pixels permuted (%) | change | s/epoch |\n|---|---|---|---|---|---|\n"
    shown.text = head + "\n".join(rows)
    shown.claim("permuting costs the CNN, in points", "> 1", f"{lost['cnn']:.2f}", lost["cnn"] > 1)
    shown.claim("and the MLP", "within 0.5", f"{lost['mlp']:.2f}", abs(lost["mlp"]) < 0.5)
    return shown


def _parameters(path: Path) -> str:
    total = [
        line for line in (path / "model.txt").read_text(encoding="utf-8").splitlines() if line.split()[:1] == ["total"]
    ]
    return total[0].split()[1]


def overfitting() -> Shown:
    """Nielsen, chapter 3: 1,000 training images, with and without L2 regularisation."""
    shown = Shown()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    gaps = {}
    for axis, (name, title) in zip(
        figure.subplots(1, 2, sharey=True), {"c3-overfit": "λ = 0", "c3-reg1k": "λ = 0.1"}.items(), strict=True
    ):
        records = lines_of(shown.train(name, f"experiment=book/{name}") / "metrics.jsonl")
        ends = {}
        for split in ("train", "test"):
            measured = [line for line in records if line["split"] == split]
            axis.plot([line["epoch"] for line in measured], [100 * line["accuracy"] for line in measured], label=split)
            ends[split] = 100 * measured[-1]["accuracy"]
        gaps[title] = ends["train"] - ends["test"]
        axis.set(xlabel="epoch", title=title, ylim=(60, 101))
        axis.legend(loc="lower right")
        published = {"λ = 0": 82.27, "λ = 0.1": 87.1}[title]
        shown.claim(f"{title}: test accuracy after 400 epochs, published {published}", "within 1.5 points",
                    f"{ends['test']:.2f} %", abs(ends["test"] - published) < 1.5)  # fmt: skip
    axis.figure.supylabel("accuracy (%)", fontsize=9)
    least, most = sorted(gaps.values())
    shown.claim("the gap between training and test images, λ = 0 and λ = 0.1", "smaller with λ",
                " and ".join(f"{gap:.1f}" for gap in gaps.values()), gaps["λ = 0.1"] == least < most)  # fmt: skip
    shown.images["curves"] = figure
    return shown
