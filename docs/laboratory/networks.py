"""Recurrent or feed-forward, and what overfitting looks like: whole runs side by side."""

from pathlib import Path

from matplotlib.figure import Figure

from laboratory.shown import Shown, accuracy, lines_of, signed

KINDS = {"lstm": "row-by-row LSTM", "cnn": "two convolutions", "mlp": "one hidden layer"}
MARKERS = {"lstm": "o", "cnn": "s", "mlp": "^"}


def rnn_or_cnn() -> Shown:
    shown = Shown()
    rows, lost = [], {}
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for kind, title in KINDS.items():
        choice = f"experiment=rnn_vs_cnn/{kind}"
        runs = {
            False: shown.train(kind, choice),
            True: shown.train(f"{kind}_permuted", choice, "model.blocks.permute=permute_pixels"),
        }
        plain, permuted = accuracy(runs[False]), accuracy(runs[True])
        lost[kind] = 100 * (plain - permuted)
        numbers = _parameters(runs[False]), f"{100 * plain:.2f}", f"{100 * permuted:.2f}", signed(-lost[kind])
        rows.append(f"| {title} | {' | '.join(numbers)} |")
        for turned, path in runs.items():
            measured = [line for line in lines_of(path / "metrics.jsonl") if line["split"] == "val"]
            axes.plot(
                [line["epoch"] for line in measured],
                [100 * line["accuracy"] for line in measured],
                linestyle="--" if turned else "-",
                marker=MARKERS[kind],
                color=f"C{list(KINDS).index(kind)}",
                label=f"{title}, permuted" if turned else title,
            )
    axes.set(xlabel="epoch", ylabel="validation accuracy (%)", xticks=[1, 2, 3],
             title="dashed: the same pixels in one fixed random order")  # fmt: skip
    lines = axes.get_lines()  # of each network, the one with permuted pixels second
    figure.legend(handles=[*lines[::2], *lines[1::2]], loc="outside lower center", ncols=2)
    shown.draw(
        "curves",
        figure,
        "Validation accuracy over three epochs: the CNN is best and the LSTM second; with permuted pixels both fall "
        "below the network with one hidden layer, which stays as it is.",
    )
    head = "| | parameters | test (%) | pixels permuted (%) | change |\n|---|---|---|---|---|\n"
    shown.text = head + "\n".join(rows)
    shown.claim("permuting costs the CNN, in points", "> 1", f"{lost['cnn']:.2f}", lost["cnn"] > 1)
    shown.claim("and the MLP", "within 0.5", signed(lost["mlp"]), abs(lost["mlp"]) < 0.5)
    return shown


def _parameters(path: Path) -> str:
    total = [
        line for line in (path / "model.txt").read_text(encoding="utf-8").splitlines() if line.split()[:1] == ["total"]
    ]
    return total[0].split()[1]


def overfitting() -> Shown:
    """Nielsen, chapter 3: 1,000 training images, with and without L2 regularisation."""
    shown = Shown()
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    gaps = {}
    for axis, (name, title) in zip(axes, {"c3-overfit": "λ = 0", "c3-reg1k": "λ = 0.1"}.items(), strict=True):
        records = lines_of(shown.train(name, f"experiment=book/{name}") / "metrics.jsonl")
        ends = {}
        for split in ("train", "test"):
            measured = [line for line in records if line["split"] == split]
            axis.plot(
                [line["epoch"] for line in measured],
                [100 * line["accuracy"] for line in measured],
                label={"train": "training images", "test": "test images"}[split],
            )
            ends[split] = 100 * measured[-1]["accuracy"]
        gaps[title] = ends["train"] - ends["test"]
        axis.set(xlabel="epoch", title=title, ylim=(60, 101))
        published = {"λ = 0": 82.27, "λ = 0.1": 87.1}[title]
        shown.claim(f"{title}: test accuracy after 400 epochs, published {published}", "within 1.5 points",
                    f"{ends['test']:.2f} %", abs(ends["test"] - published) < 1.5)  # fmt: skip
    axes[0].set_ylabel("accuracy (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    least, most = sorted(gaps.values())
    shown.claim("the gap between training and test images, λ = 0 and λ = 0.1", "smaller with λ",
                " and ".join(f"{gap:.1f}" for gap in gaps.values()), gaps["λ = 0.1"] == least < most)  # fmt: skip
    shown.draw(
        "curves",
        figure,
        "Accuracy over 400 epochs: on training images 100 %; on test images about 82 % without regularisation and "
        "about 87 % with it.",
    )
    return shown
