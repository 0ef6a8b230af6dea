import time

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.utils.throughput import Throughput, seconds_per_item


def slow(seconds, count):
    for i in range(count):
        time.sleep(seconds)
        yield i


def test_the_first_item_is_left_out():
    def items():
        time.sleep(0.5)
        yield from slow(0.001, 10)

    assert 0.001 <= seconds_per_item(items()) < 0.2
    assert seconds_per_item(iter([1])) >= 0.0


def test_reading_stops_in_time():
    items = slow(0.005, 1000)
    seconds_per_item(items, at_most=0.01)
    assert next(items) < 10


def trained(speed, epochs=2, updates=5):
    model = tf.keras.Sequential([tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    x = np.zeros((4 * updates, 2), np.float32)
    model.fit(x, x[:, :1], 4, epochs, verbose=0, callbacks=[speed])


def test_an_epoch_tells_its_speed(capsys):
    speed = Throughput(4, 15, 3, {"reading": 1e-9, "teacher": 0.0})
    trained(speed)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err and len(lines) == 2 and speed.left == 5
    assert lines[0].startswith("Epoch 1/3: loss 0; ") and lines[1].startswith("Epoch 2/3: loss 0; ")
    assert all("images a second" in line and "student 100 % of the time" in line for line in lines)
    assert set(speed.results) == {"images_per_second", "reading", "teacher", "student"}
    assert speed.results["images_per_second"] > 0


def test_without_parts_only_the_speed_is_told(capsys):
    speed = Throughput(4, 10, 2, show=False)
    trained(speed)
    assert set(speed.results) == {"images_per_second"} and not capsys.readouterr().out


def test_one_update_tells_no_speed(capsys):
    speed = Throughput(4, 2, 2)
    trained(speed, updates=1)
    assert (
        speed.results == {} and capsys.readouterr().out == "Epoch 1/2: loss 0\nEpoch 2/2: loss 0\n"
    )


@pytest.mark.parametrize("reading, student", [(0.05, 0.5), (0.2, 0.0)])
def test_shares(reading, student):
    speed = Throughput(10, 100, 1, {"reading": reading, "teacher": 0.0})
    assert speed.measured(10, 1.0).startswith("100 images a second, 10 s left; reading ")
    assert speed.results["student"] == student and speed.results["reading"] == 1 - student
