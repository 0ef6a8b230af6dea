# %% [markdown]
# # Quickstart: long-tailed digits
#
# You train a binary student on scikit-learn's handwritten digits, which need no download. The set
# is made long-tailed: the largest class has 20 times as many images as the smallest. The teacher
# comes with the package. It was pretrained on rendered letters and has seen no digit.
#
# `python examples/quickstart.py` runs this page as a script and saves the pictures in
# `runs/quickstart/`.

# %%
# %matplotlib inline
from pathlib import Path

import candle_tf as ct  # before tensorflow
from candle_tf.reports import description, figures, report

WORKDIR = Path("runs/quickstart")


def show(figure, name):
    """Saves a figure, and returns it for the notebook to show."""
    WORKDIR.mkdir(parents=True, exist_ok=True)
    figure.savefig(WORKDIR / f"{name}.png")
    return figure


# %% [markdown]
# ## The data
#
# `class_counts` is the number of training images per class. The test set stays balanced.

# %%
data = ct.data.load("digits", imbalance_ratio=20)
print(data.class_counts)
show(figures.class_distribution(data.class_counts, data.class_names), "distribution")

# %% [markdown]
# The five largest and the five smallest classes, with five images each:

# %%
show(description.contact_sheet(data), "images")

# %% [markdown]
# ## Calibrate and distill
#
# `ct.train` first calibrates the teacher: it trains a new classifier on the frozen encoder's
# features. Then it trains the binary student on the teacher's logits and features. The same call
# again continues an interrupted run, and returns a finished one at once.

# %%
run = ct.train(
    "digits",
    workdir=str(WORKDIR),
    imbalance_ratio=20,
    teacher="letters",
    student="resnet_e",
    image_size=24,
    epochs=30,
    batch_size=64,
    learning_rate=2.5e-3,
)
print(run.summary())

# %% [markdown]
# ## What the student confuses
#
# Rows and columns are sorted from head to tail. Each row shows how the student labels the test
# images of one class.

# %%
predicted = report.read_predictions(run.workdir, data)
matrix = figures.confusion_matrix(
    predicted["labels"], predicted["predictions"], data.class_counts, data.class_names
)
show(matrix, "confusion")

# %% [markdown]
# ## The course of λ
#
# The balancer learns the weight λ between the two terms of the loss. It moves toward the term that
# the student does worse on.

# %%
show(report.course(run.workdir, run.drawn_sizes), "course")

# %% [markdown]
# ## Ship it
#
# The exported SavedModel has the student alone and runs on TensorFlow. `format="lce"` writes a
# flatbuffer with 1 bit per binary weight, and `format="c"` writes one C file.

# %%
run.export(str(WORKDIR / "digits_c"), format="c")
print(sorted(path.name for path in (WORKDIR / "digits_c").iterdir()))
print(f"All figures on one page: {run.report}")
