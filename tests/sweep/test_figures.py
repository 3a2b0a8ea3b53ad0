from pathlib import Path

import pytest

from cnnlab.sweep import figures

optuna = pytest.importorskip("optuna")


def test_each_axis_of_a_slice_plot_has_its_short_name_and_choices_no_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib.pyplot as plt

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    key, other = "model.blocks.conv1.out_channels", "model.blocks.conv2.out_channels"
    study.optimize(lambda trial: float(trial.suggest_categorical(key, ["8", "16"])) + trial.suggest_int(other, 1, 4), 6)
    labels: list[str] = []
    ticks: list[str] = []

    def look(*_: object, **__: object) -> None:
        labels.extend(one.get_xlabel() for one in plt.gcf().axes)
        ticks.extend(text.get_text() for text in plt.gcf().axes[0].get_xticklabels())

    monkeypatch.setattr(plt, "savefig", look)
    assert figures._draw(figures._plot_slice, study, tmp_path, "slice")
    assert {"conv1.out_channels", "conv2.out_channels"} <= set(labels)
    assert set(ticks) == {"8", "16"}
