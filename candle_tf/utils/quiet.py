"""A filter for TensorFlow's messages about itself while it starts; all others still appear."""

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

NOISE = re.compile(
    r"Unable to register cu\w+ factory|computation placer already registered|"
    r"before absl::InitializeLog|Could not find cuda drivers|optimized to use available CPU|"
    r"To enable the following instructions|oneDNN custom operations are on|"
    r"Could not find TensorRT|failed call to cuInit|"
    r"Ignored (output_format|drop_control_dependency)|MLIR V1 optimization pass|"
    r"I \S*tensorflow/(cc/saved_model|compiler/mlir)/|Created TensorFlow Lite XNNPACK delegate"
)
LOGGED = re.compile(
    r"`FeatureConnector\.dtype` is deprecated|unsaved custom gradients. Will likely fail|"
    r"saving your model as an HDF5 file|You are using Python|untraced functions such as|"
    r"`input_shape` is undefined or non-square|`on_train_batch_end` is slow compared"
)


@contextlib.contextmanager
def without_noise(noise: re.Pattern = NOISE) -> Iterator[None]:
    """Holds back standard error during its block, then writes it without the lines of noise."""
    sys.stderr.flush()
    try:
        real = os.dup(2)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines(keepends=True):
                if not noise.search(line):
                    sys.stderr.write(line)


@contextlib.contextmanager
def quiet_conversion(noise: re.Pattern = NOISE) -> Iterator[None]:
    """Holds back what TensorFlow Lite says about itself in the block, as `without_noise` does."""
    with without_noise(noise), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*tf.lite.Interpreter is deprecated")
        yield


class QuietImport(importlib.abc.MetaPathFinder):
    """Import hook that runs the first import of TensorFlow `without_noise`."""

    def find_spec(self, name, path=None, target=None):
        """Returns the usual spec of TensorFlow with a loader that runs `without_noise`."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            load = spec.loader.exec_module

            def quietly(module):
                with without_noise():
                    load(module)
                    if not os.path.exists("/dev/nvidiactl"):  # else this would fix the GPUs in use
                        module.config.list_physical_devices()  # says that there is none

            spec.loader.exec_module = quietly
        return spec


def start_quietly():
    """Hides the start-up messages of TensorFlow and of the libraries that TensorFlow loads."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors, no information
    if "tensorflow" not in sys.modules:
        sys.meta_path.insert(0, QuietImport())
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(lambda record: not LOGGED.search(record.getMessage()))
