import re
from pathlib import Path

from setuptools import find_packages, setup

REPORT = ["matplotlib>=3.7"]
BENCHMARK = ["imbalanced-learn>=0.12", "rich>=13", *REPORT]
DOCS = [
    "ipykernel",
    "jupytext>=1.16,<2",
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.5,<10",
    "mkdocstrings[python]>=1,<2",
    "nbconvert>=7",  # runs the notebooks for jupytext
    "pymdown-extensions<12",  # 12 changed what mkdocstrings 1.0 calls
]
EDGE = ["larq-compute-engine>=0.16,<0.17"]
PACKAGE = Path(__file__).with_name("candle_tf") / "__init__.py"
VERSION = re.search(r'__version__ = "(.+)"', PACKAGE.read_text(encoding="utf-8"))[1]
# PyPI shows the README alone: its links to other files become text, and its picture is left out.
README = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
PAGE = re.sub(r"!\[[^]]*\]\((?!https?:)[^)]*\)\s*", "", README)
PAGE = re.sub(r"\[([^]]*)\]\((?!https?:)[^)]*\)", r"\1", PAGE)

setup(
    name="candle_tf",
    version=VERSION,
    description="Binary neural networks for long-tailed data: calibrate and distill, on Larq",
    long_description=PAGE,
    long_description_content_type="text/markdown",
    author="candle_tf contributors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    url="https://arxiv.org/abs/2404.00285",
    keywords="binary neural networks, long-tailed recognition, distillation, larq, keras",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[
        *find_packages(include=["candle_tf", "candle_tf.*"]),
        "candle_tf.configs",
        "candle_tf.zoo.files",
    ],
    # For --config=NAME and ct.zoo outside the clone.
    package_dir={"candle_tf.configs": "configs", "candle_tf.zoo.files": "zoo"},
    package_data={
        "candle_tf": ["assets/*", "cli/flags.json", "py.typed"],
        "candle_tf.configs": ["*.cfg", "*/*.cfg"],
        "candle_tf.zoo.files": ["*"],
    },
    entry_points={"console_scripts": ["candle-tf = candle_tf.__main__:main"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "absl-py>=1.0",
        "h5py>=3.8",
        # Larq 0.14 runs on Keras 2 and NumPy 1; larq-zoo 2.4 caps what TensorFlow can be.
        "larq>=0.14,<0.15",
        "larq-zoo>=2.4,<2.5",
        "numpy>=1.24,<2",
        "pillow>=10",  # reads image files of every kind that people have
        "scikit-learn>=1.3",  # the digits that it ships are the embedded data set
        "scipy>=1.10",  # L-BFGS, for the calibration
        "setuptools<81",  # TFDS 4.8 and zookeeper import pkg_resources
        "tensorflow>=2.16,<2.20",
        # tf-keras up to 2.18 calls random.randint with a float, which Python 3.12 refuses.
        "tensorflow>=2.19; python_version>='3.12'",
        "tensorflow-datasets>=4.8,<4.9",
        "tf-keras>=2.16,<2.20",
        "tqdm>=4.60",
    ],
    extras_require={
        "benchmark": BENCHMARK,
        "docs": [*DOCS, *REPORT],
        "edge": EDGE,
        "report": REPORT,
        "test": [
            "dill",
            "hypothesis>=6",
            "pytest>=7",
            "pytest-xdist>=3",
            "ruff>=0.17,<0.18",
            *BENCHMARK,
            *EDGE,
        ],
    },
)
