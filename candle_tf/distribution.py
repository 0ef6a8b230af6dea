"""Training on several devices and machines, by TensorFlow's own strategies."""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator

import tensorflow as tf
from candle_tf.data import Share
from candle_tf.registry import lookup
from candle_tf.teacher import Teacher

STRATEGIES = ("mirrored", "multiworker")
WORKER_LOST = 76  # exit code of the workers that are left when one is lost
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


@functools.cache  # a process can join a cluster once
def build_strategy(name: str | None) -> tf.distribute.Strategy:
    """The strategy of `--strategy`, TensorFlow's default for None.

    Args:
        name: "mirrored", all devices of this machine: its GPUs, or else its logical CPUs.
            "multiworker", all machines of TF_CONFIG or of the SLURM step. It has to be made before
            TensorFlow runs anything.

    Raises:
        ValueError: where nothing says which machines.
    """
    if name is None:
        return tf.distribute.get_strategy()
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
            "--strategy=multiworker needs to know the machines: set TF_CONFIG, or start the "
            "command by srun in SLURM; docs/scaling.md says how."
        )
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def share_of(strategy: tf.distribute.Strategy) -> Share:
    """What this process reads of each batch."""
    resolver, replicas = strategy.cluster_resolver, strategy.num_replicas_in_sync
    cluster = resolver.cluster_spec().as_dict() if resolver else {}
    workers = [(job, i) for job in sorted(cluster) for i in range(len(cluster[job]))]
    if len(workers) < 2:
        return Share(replicas=replicas)
    mine = workers.index((resolver.task_type, resolver.task_id))
    return Share(mine, len(workers), replicas // len(workers))


def distributed(
    strategy: tf.distribute.Strategy, stream: Callable[[Share], tf.data.Dataset]
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """What `fit` takes: this process's share of a stream, a batch a replica."""
    share = share_of(strategy)
    if share == Share():
        return stream(share)
    return strategy.distribute_datasets_from_function(lambda _: stream(share))


def mirrored_teacher(teacher: Teacher) -> Teacher:
    """The same teacher in new layers, within the scope that it is called in."""
    again = Teacher.from_config(teacher.get_config())
    again.encoder.set_weights(teacher.encoder.get_weights())
    again.classifier.set_weights(teacher.classifier.get_weights())
    return again


@contextlib.contextmanager
def stopping_with_the_others(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Within, the loss of another worker ends this one too: a strategy cannot take it back.

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
            "they go on from the last checkpoint."
        )
        raise SystemExit(WORKER_LOST) from error


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def agreed(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether any worker raises its flag; all have to ask, and wait for each other."""
    return flag if share_of(strategy).workers == 1 else add_up(strategy, flag) > 0


def meet(strategy: tf.distribute.Strategy):
    """Waits until all workers are here."""
    agreed(strategy, False)


def from_first(strategy: tf.distribute.Strategy, number: int) -> int:
    """The first worker's number, below 2^53; all have to ask."""
    share = share_of(strategy)
    if share.workers == 1:
        return number
    return int(add_up(strategy, 0 if share.worker else number)) // share.replicas


def add_up(strategy: tf.distribute.Strategy, number: float) -> float:
    """The sum over all replicas."""
    return float(summed(strategy)(tf.constant(number, tf.float64)))


@functools.cache
def summed(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    def total(number):
        return strategy.reduce("SUM", strategy.run(tf.identity, args=(number,)), axis=None)

    return tf.function(total)
