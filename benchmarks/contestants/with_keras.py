"""The same networks in Keras 3 on torch, the usual way: NumPy arrays and `fit`."""

import argparse
import os
import time

os.environ["KERAS_BACKEND"] = "torch"  # read when keras is imported

import keras
import numpy as np
from keras import layers
from setting import BATCH, MEAN, SD, SGD, TRAIN_COUNT, mnist, report, wait


class Clock(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        wait()
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        wait()
        self.seconds = time.perf_counter() - self.start


def build(network: str) -> keras.Model:
    if network == "normed_mlp":
        hidden = [
            layer
            for size in (64, 128, 64)
            for layer in (layers.Dense(size), layers.BatchNormalization(), layers.ReLU())
        ]
        return keras.Sequential([layers.Input((28, 28, 1)), layers.Flatten(), *hidden, layers.Dense(10)])
    body = [layers.Input((28, 28, 1)), *convolution(16), layers.MaxPooling2D(), *convolution(32)]
    body += [layers.MaxPooling2D(), *convolution(64)]
    return keras.Sequential([*body, layers.Flatten(), layers.Dropout(0.2), layers.Dense(10)])


def convolution(channels: int) -> tuple[keras.Layer, ...]:
    return (
        layers.Conv2D(channels, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
    )


def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = mnist(split)
    return ((images[..., None] / 255 - MEAN) / SD).astype("float32"), labels


def main(network: str, seed: int) -> None:
    keras.utils.set_random_seed(seed)
    x, y = arrays("train")
    steps = TRAIN_COUNT // BATCH  # fit has no drop_last
    clock, model = Clock(), build(network)
    settings = {"learning_rate": SGD["lr"], **{name: value for name, value in SGD.items() if name != "lr"}}
    model.compile(
        optimizer=keras.optimizers.SGD(**settings),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x[: steps * BATCH], y[: steps * BATCH], batch_size=BATCH, callbacks=[clock])
    _, accuracy = model.evaluate(*arrays("t10k"), batch_size=512)
    report(
        train_seconds=clock.seconds,
        steps=steps,
        parameters=sum(int(np.prod(weight.shape)) for weight in model.trainable_weights),
        accuracy=accuracy,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=("cnn", "normed_mlp"))
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
