"""Training on several devices and machines, by TensorFlow's own strategies."""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from candle_tf.utils.names import lookup
from numpy.typing import ArrayLike

ALONE = tf.distribute.get_strategy()  # TensorFlow's default: one device of one process
STRATEGIES = ("mirrored", "multiworker")
WORKER_LOST = 76  # exit code of the workers that are left when one is lost
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


def only_cpus() -> bool:
    """Returns whether TensorFlow computes on CPUs alone: what is faster there may not be on a GPU.

    Example:
        >>> only_cpus()  # doctest: +SKIP
        True
    """
    return all(device.device_type == "CPU" for device in tf.config.list_physical_devices())


@dataclass(frozen=True)
class Share:
    """The part of each batch that one of several workers reads, for its replicas.

    Attributes:
        worker: Number of this worker, from 0.
        workers: Number of workers.
        replicas: Number of replicas per worker, which take its batches in turn.

    Example:
        >>> ct.data.Share(worker=0, workers=2).batch_size(128)
        64
    """

    worker: int = 0
    workers: int = 1
    replicas: int = 1

    def batch_size(self, global_batch_size: int) -> int:
        """Returns the batch size of one replica.

        Raises:
            ValueError: If the batch cannot be cut into equal parts.
        """
        replicas = self.workers * self.replicas
        if global_batch_size < 1:
            raise ValueError(f"batch_size is {global_batch_size} but must be at least 1.")
        if global_batch_size % replicas:
            raise ValueError(
                f"batch_size is {global_batch_size}, over all replicas, but must be a multiple of "
                f"their number, {replicas}."
            )
        return global_batch_size // replicas

    def of(self, places: tf.data.Dataset, global_batch_size: int) -> tf.data.Dataset:
        """Returns the worker's places, one by one, of a stream that starts at a batch."""
        if self.workers == 1:
            return places
        size = self.batch_size(global_batch_size) * self.replicas
        start = self.worker * size
        batches, rest = divmod(int(places.cardinality()), global_batch_size)
        count = batches * size + min(max(rest - start, 0), size)

        def part(batch):
            return {name: values[start : start + size] for name, values in batch.items()}

        mine = places.batch(global_batch_size).map(part).unbatch()
        return mine.apply(tf.data.experimental.assert_cardinality(count))


@functools.cache  # a process can join a cluster once
def build_strategy(name: str | None) -> tf.distribute.Strategy:
    """Returns the strategy of a name, TensorFlow's default for None.

    Args:
        name: "mirrored" for all devices of this machine: its GPUs, or else its logical CPUs;
            "multiworker" for all machines of TF_CONFIG or of the SLURM step, before TensorFlow runs
            anything.

    Raises:
        ValueError: If the name is unknown, or neither TF_CONFIG nor SLURM names the machines.
    """
    if name is None:
        return ALONE
    lookup("strategy", name, dict.fromkeys(STRATEGIES))
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if "TF_CONFIG" in os.environ:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_STEP_NODELIST" in os.environ:
        # It cannot do without GPUs: where there are none it is told of some, and sets none.
        none = {"gpus_per_node": 64, "gpus_per_task": 1, "auto_set_gpu": False}
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            **({} if shutil.which("nvidia-smi") else none)
        )
    else:
        raise ValueError(
            "`strategy=multiworker` needs to know the machines: set TF_CONFIG, or start the "
            "command by srun in SLURM; docs/scaling.md says how."
        )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def share_of(strategy: tf.distribute.Strategy) -> Share:
    """Returns the part of each batch that this process reads."""
    resolver, replicas = strategy.cluster_resolver, strategy.num_replicas_in_sync
    cluster = resolver.cluster_spec().as_dict() if resolver else {}
    workers = [(job, i) for job in sorted(cluster) for i in range(len(cluster[job]))]
    if len(workers) < 2:
        return Share(replicas=replicas)
    mine = workers.index((resolver.task_type, resolver.task_id))
    return Share(mine, len(workers), replicas // len(workers))


def leads(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this is the first worker, which alone writes."""
    return share_of(strategy).worker == 0


def distributed(
    strategy: tf.distribute.Strategy, stream: Callable[[Share], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Returns the data for `fit`: this process's part of a stream, one batch per replica."""
    share = share_of(strategy)
    if share == Share():
        return stream(share)
    return strategy.distribute_datasets_from_function(lambda _: stream(share))


def on_all_replicas(strategy: tf.distribute.Strategy, function: Callable) -> Callable:
    """Returns a function of a batch whose parts all replicas compute at once.

    Args:
        strategy: Strategy with the replicas.
        function: Function from images (batch, height, width, 3), and further tensors, to nested
            tensors (batch, ...).

    Returns:
        A function of the batches that `distributed` gives. Each worker gets the results of the
        whole batch, in order, and each has to call the function.
    """
    if strategy.num_replicas_in_sync == 1:
        return tf.function(function, reduce_retracing=True)

    def part(images, *others):
        count = tf.shape(images)[0]
        lacking = tf.maximum(1 - count, 0)  # layers cannot do with none, as the last batch may be
        images = tf.pad(images, [[0, lacking], [0, 0], [0, 0], [0, 0]])
        return tf.nest.map_structure(lambda x: x[:count], function(images, *others))

    def whole(*batch):
        parts = strategy.run(part, batch)
        return tf.nest.map_structure(lambda x: strategy.gather(x, axis=0), parts)

    return tf.function(whole, reduce_retracing=True)


@contextlib.contextmanager
def stopping_with_the_others(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Ends this worker when another one is lost, which a strategy cannot take back.

    Raises:
        SystemExit: `WORKER_LOST`.
    """
    try:
        yield
    except LOST as error:
        if share_of(strategy).workers == 1:
            raise
        print(
            f"\nAnother worker was lost ({first_line(error)}): start the command on all again; "
            "they continue from the last checkpoint."
        )
        raise SystemExit(WORKER_LOST) from error


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return str(error).strip().partition("\n")[0]


def agreed(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Returns whether any worker raises its flag; all have to call, and wait for each other."""
    return flag if share_of(strategy).workers == 1 else add_up(strategy, flag) > 0


def meet(strategy: tf.distribute.Strategy):
    """Waits until all workers are here."""
    agreed(strategy, False)


def from_first(strategy: tf.distribute.Strategy, value: ArrayLike) -> ArrayLike:
    """Returns the first worker's value, exact in float64; all have to call, with one shape."""
    share = share_of(strategy)
    if share.workers == 1:
        return value
    value = np.asarray(value)
    total = add_up(strategy, np.zeros_like(value) if share.worker else value)
    return (total / share.replicas).astype(value.dtype)


def add_up(strategy: tf.distribute.Strategy, value: ArrayLike) -> np.ndarray:
    """Returns the sum over all replicas, in float64."""
    return summed(strategy)(tf.constant(np.float64(value))).numpy()


@functools.cache
def summed(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function that sums a number over all replicas."""

    def total(number):
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(number,)), axis=None)

    return tf.function(total, [tf.TensorSpec(None, tf.float64)])
