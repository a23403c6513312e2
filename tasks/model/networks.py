"""The networks. To add one, write a function here and decorate it. `--train.network` then knows its name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras


Builder = Callable[[], "keras.Model"]
NETWORKS: dict[str, Builder] = {}


def network(builder: Builder) -> Builder:
    """Register a function that builds a network, under the function's name.

    The network must be a Sequential or functional model, because it is built again from its configuration, with seeds.
    It maps images of shape ``(28, 28, 1)`` in 0–1 to 10 probabilities. Its last layer must be a Dense layer with
    softmax. The temperature goes into that layer's weights, and the layer's input is called the features of an image.
    """
    NETWORKS[builder.__name__] = builder
    return builder


@network
def baseline() -> "keras.Model":
    """The notebook's network, with 3,156,098 parameters, from the Keras tutorial notebook "CNN on MNIST" of 2020."""
    import keras

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 5, padding="same"),
            keras.layers.MaxPooling2D(2),
            keras.layers.ReLU(),  # after the pooling, which gives the same result from a quarter as many numbers
            keras.layers.Conv2D(64, 2, padding="same"),
            keras.layers.MaxPooling2D(2),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.25),
            keras.layers.Flatten(),
            keras.layers.Dense(1000, activation="relu"),
            keras.layers.Dense(10, activation="softmax", dtype="float32"),
        ],
        name="baseline",
    )


@network
def compact() -> "keras.Model":
    """A small network with batch normalisation, to be trained on changed images. It has 158,338 parameters."""
    import keras

    def convolution(filters: int, size: int, padding: str, pool: bool = False) -> "list[keras.Layer]":
        return [
            keras.layers.Conv2D(filters, size, padding=padding, use_bias=False),
            *([keras.layers.MaxPooling2D(2)] if pool else []),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *convolution(24, 5, "same", pool=True),
            *convolution(48, 3, "valid"),
            *convolution(48, 3, "valid", pool=True),
            *convolution(96, 3, "same"),
            *convolution(96, 3, "valid"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, activation="softmax", dtype="float32"),
        ],
        name="compact",
    )


def average_shifts(model: "keras.Model") -> "keras.Model":
    """A network with the same weights that averages the features of an image and of its four shifts by a pixel.

    Pooling makes a network sensitive to shifts (Zhang, "Making Convolutional Networks Shift-Invariant Again",
    arXiv:1904.11486). The logits of the last layer are linear in the features, so they are averaged too.
    """
    import keras

    features = keras.Model(model.inputs, model.layers[-1].input, name=f"{model.name}_features")
    image = keras.Input(model.input_shape[1:])
    framed = keras.layers.ZeroPadding2D(1)(image)
    shifted = [
        keras.layers.Cropping2D(((y, 2 - y), (x, 2 - x)))(framed) for y, x in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    ]
    mean = keras.layers.Average()([features(one) for one in shifted])
    return keras.Model(image, model.layers[-1](mean), name=model.name)
