# %% [markdown]
# # Your own images, your own teacher
#
# You train a binary student on a folder of images, with a Keras network of yours as the teacher.
# This page draws a small folder, so that it runs offline. Put `folder:DIR` of your photographs in
# its place.
#
# `python examples/own_images.py` runs this page as a script and saves the pictures in
# `runs/own_images/`.

# %%
# %matplotlib inline
import shutil
from pathlib import Path

import candle_tf as ct  # before tensorflow
import numpy as np
import tensorflow as tf
from candle_tf.reports import description, figures
from PIL import Image, ImageDraw

WORKDIR = Path("runs/own_images")
SIZE = 32  # side of the images in pixels
rng = np.random.default_rng(0)
tf.keras.utils.set_random_seed(0)


def show(figure, name):
    """Saves a figure, and returns it for the notebook to show."""
    figure.savefig(WORKDIR / f"{name}.png")
    return figure


# %% [markdown]
# ## A folder
#
# `DIR/train/CLASS/IMAGE` and `DIR/test/CLASS/IMAGE`, or only `DIR/CLASS/IMAGE`: then one fifth of
# each class is held out as the test set. Each class here is a shape, given by its corners and the
# relative radius of its inner corners.


# %%
def draw(corners, inner):
    """Returns an image of a shape with a random place, size, turn and colours."""
    angles = rng.uniform(0, 2 * np.pi) + np.arange(2 * corners) * np.pi / corners
    radius = SIZE * rng.uniform(1.1, 1.5) * np.where(np.arange(2 * corners) % 2, inner, 1.0)
    centre = SIZE * rng.uniform(1.6, 2.4, (2, 1))
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)])
    back, front = rng.integers(0, 110, 3), rng.integers(145, 256, 3)
    image = Image.new("RGB", (4 * SIZE, 4 * SIZE), tuple(back))
    ImageDraw.Draw(image).polygon([tuple(p) for p in points.T], fill=tuple(front))
    small = np.asarray(image.resize((SIZE, SIZE)), np.float32)
    return np.clip(small + rng.normal(0, 10, small.shape), 0, 255).astype(np.uint8)


shapes = {
    "triangle": (3, 0.5),
    "square": (4, 0.71),
    "star_4": (4, 0.35),
    "star_5": (5, 0.4),
    "propeller": (3, 0.2),
    "needle": (2, 0.25),
}
counts = np.geomspace(160, 8, len(shapes)).astype(int)
shutil.rmtree(WORKDIR, ignore_errors=True)
for (name, shape), count in zip(shapes.items(), counts):
    for split, images in (("train", count), ("test", 40)):
        folder = WORKDIR / "shapes" / split / name
        folder.mkdir(parents=True)
        for i in range(images):
            Image.fromarray(draw(*shape)).save(folder / f"{i}.png")

data = ct.data.load(f"folder:{WORKDIR}/shapes")
show(figures.class_distribution(data.class_counts, data.class_names), "distribution")

# %%
show(description.contact_sheet(data), "images")

# %% [markdown]
# ## A teacher of your own
#
# Any Keras model that ends in a feature map or an embedding can be the teacher's encoder. Usually
# it was pretrained on many images of other classes. For example, this teacher comes from ImageNet:
# `ct.Teacher.from_keras("MobileNet", 128)`. This page trains a small network on balanced images of
# seven other shapes, which takes seconds.

# %%
others = [(3, 0.35), (4, 0.5), (5, 0.6), (6, 0.3), (7, 0.5), (8, 0.75), (2, 0.5)]
labels = np.arange(2800) % len(others)
images = np.stack([draw(*others[label]) for label in labels])


def block(filters):
    """Returns the layers of one stage, which halves height and width."""
    convolution = tf.keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
    return [
        convolution,
        tf.keras.layers.BatchNormalization(),
        tf.keras.layers.ReLU(),
        tf.keras.layers.MaxPool2D(),
    ]


encoder = tf.keras.Sequential(
    [
        tf.keras.Input((SIZE, SIZE, 3)),
        tf.keras.layers.Rescaling(1 / 127.5, -1),
        *block(16),
        *block(32),
        *block(64),
        tf.keras.layers.GlobalAveragePooling2D(),
    ],
    name="own_encoder",
)
pretraining = tf.keras.Sequential([encoder, tf.keras.layers.Dense(len(others))])
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
pretraining.compile(tf.keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
pretrained = pretraining.fit(images, labels, batch_size=64, epochs=8, verbose=0)
print(f"Accuracy on the other shapes: {pretrained.history['accuracy'][-1]:.3f}")

# %% [markdown]
# `calibrate` freezes the encoder and trains a new linear classifier on the long-tailed folder. The
# teacher notices that the encoder scales images itself. Training images are shifted and mirrored.
# The default for folders, a random part of each image, suits photographs and would cut corners off
# these shapes.

# %%
teacher = ct.Teacher(encoder, image_size=SIZE)
shifted = ct.data.Augmentation(crop="pad", flip=True)
train = ct.data.training_batches(data.train, SIZE, batch_size=32, augmentation=shifted)
test = ct.data.evaluation_batches(data.test, SIZE, batch_size=64, augmentation=shifted)
teacher.calibrate(train, data.class_counts, verbose=0)
print(teacher.cross_validation.summary())

# %% [markdown]
# ## The student
#
# The student's convolutions have 1-bit weights and activations. The label term is balanced softmax.

# %%
EPOCHS = 40
updates = EPOCHS * (len(data.train) // 32)
student = ct.students.create(
    "resnet_e", num_classes=len(shapes), image_size=SIZE, width=0.5, blocks=(1, 1)
)
model = ct.CandleModel(teacher, student)
model.compile(
    tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.CosineDecay(1e-2, updates)),
    loss=ct.losses.BalancedSoftmax(data.class_counts),
    metrics=["accuracy", ct.metrics.ShotAccuracy(data.class_counts)],
)
history = model.fit(train, epochs=EPOCHS, verbose=2)
print(model.evaluate(test, verbose=0, return_dict=True))

# %% [markdown]
# The confusion matrix, sorted from head to tail:

# %%
predictions = np.argmax(model.predict(test, verbose=0), axis=-1)
matrix = figures.confusion_matrix(
    data.test.labels, predictions, data.class_counts, data.class_names
)
show(matrix, "confusion")

# %% [markdown]
# λ and both terms of the loss:

# %%
course = {name: np.array(history.history[name]) for name in ("lambda", "kl", "feature")}
course["epoch"] = np.arange(EPOCHS)
drawn = model.resolution.draws(updates)
show(figures.training_course(course, drawn), "course")

# %% [markdown]
# ## Predict with the export
#
# A SavedModel has the student alone, with the class names beside it. It predicts one test image of
# each class:

# %%
model.export(str(WORKDIR / "student"), class_names=data.class_names)
exported = tf.saved_model.load(str(WORKDIR / "student")).signatures["serving_uint8"]
for name in shapes:
    image = np.asarray(Image.open(WORKDIR / "shapes" / "test" / name / "0.png"))
    predicted = exported(images=tf.constant(image[None]))["classes"][0]
    print(f"{name}: predicted as {data.class_names[int(predicted)]}")
