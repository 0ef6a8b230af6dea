import contextlib
import os
import pathlib
import signal
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from candle_tf.runs import job
from candle_tf.runs.checkpoints import INTERRUPTED, Checkpoints, NotFinite
from candle_tf.runs.run import Run
from tiny_runs import ALONE, assert_same, tiny

SLOW = pytest.mark.slow
pytestmark = pytest.mark.usefixtures("no_report")


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, no_report):
    workdir = tmp_path_factory.mktemp("undisturbed")
    job.run(tiny(workdir, **ALONE))
    return workdir


def after_update(monkeypatch, update, act):
    """Has `act` called once, when an update is done and saved if it is due."""
    ours, done = Checkpoints.on_train_batch_end, []

    def then(self, batch, logs=None):
        ours(self, batch, logs)
        if self.updates == update and not done:
            done.append(update)
            act()

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", then)


def kill():
    raise Killed


def newest(workdir) -> pathlib.Path:
    return max((workdir / "checkpoints").glob("ckpt-*.data*"))


def history(workdir) -> np.ndarray:
    return np.genfromtxt(workdir / "history.csv", delimiter=",", skip_header=1)


@pytest.mark.long
@pytest.mark.parametrize("update", [4, *(pytest.param(n, marks=SLOW) for n in (1, 5, 6))])
def test_a_kill_between_checkpoints_changes_nothing(update, undisturbed, tmp_path, monkeypatch):
    settings = tiny(tmp_path, **ALONE, checkpoint_every=2)
    after_update(monkeypatch, update, kill)
    with pytest.raises(Killed):
        job.run(settings)
    job.run(settings)
    assert_same(tmp_path, undisturbed)
    np.testing.assert_allclose(history(tmp_path), history(undisturbed), rtol=1e-6)


@SLOW
def test_the_logs_of_an_epoch_interrupted_again_and_again_are_those_of_all_of_it(
    tmp_path, monkeypatch
):
    """With CANDLE's means, in the last update of the epoch too."""
    runs = [tiny(tmp_path / name, checkpoint_every=1) for name in ("whole", "killed")]
    job.run(runs[0])
    for update in (1, 2, 4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            after_update(patch, update, kill)
            job.run(runs[1])
    job.run(runs[1])
    whole, killed = (history(tmp_path / name) for name in ("whole", "killed"))
    assert whole.shape[1] > 5 and (whole[0] != whole[1]).any()
    np.testing.assert_allclose(killed, whole, rtol=1e-6)


@pytest.fixture
def ctrl_c():
    """Ctrl-C is heard, also where the tests themselves run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.long
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    "number, update",
    [(signal.SIGTERM, 4), (signal.SIGINT, 4), pytest.param(signal.SIGTERM, 6, marks=SLOW)],
)
def test_a_signal_saves_and_says_so(number, update, undisturbed, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(number)
    after_update(monkeypatch, update, lambda: os.kill(os.getpid(), number))
    with pytest.raises((SystemExit, KeyboardInterrupt)) as ended:
        job.run(tiny(tmp_path, **ALONE))
    said = capsys.readouterr().out + str(ended.value)
    saved = {4: 5, 6: 6}[update]  # the update after the signal, or the epoch's end
    assert f"Stopped after update {saved}: the same command continues" in said
    by_hand = number == signal.SIGINT
    assert by_hand == isinstance(ended.value, KeyboardInterrupt)
    assert by_hand or ended.value.code == INTERRUPTED
    assert signal.getsignal(number) == before
    job.run(tiny(tmp_path, **ALONE))
    assert_same(tmp_path, undisturbed)


def half_trained(workdir, monkeypatch):
    """A run that was killed with two checkpoints, after updates 2 and 3."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        after_update(patch, 4, kill)
        job.run(tiny(workdir, **ALONE, checkpoint_every=2))


@pytest.mark.long
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    undisturbed, tmp_path, monkeypatch, capsys
):
    half_trained(tmp_path, monkeypatch)
    with open(newest(tmp_path), "r+b") as file:
        file.truncate(1000)
    job.run(tiny(tmp_path, **ALONE))
    out = capsys.readouterr().out
    assert f"{newest(tmp_path).parent}/ckpt-3 is damaged" in out and "the one before it" in out
    assert_same(tmp_path, undisturbed)


@pytest.mark.long
def test_where_none_can_be_read_the_remedy_is_named(tmp_path, monkeypatch):
    half_trained(tmp_path, monkeypatch)
    for path in (tmp_path / "checkpoints").glob("ckpt-*.data*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="No checkpoint in .* can be read: move it away"):
        job.run(tiny(tmp_path, **ALONE))


@pytest.mark.long
@pytest.mark.parametrize(
    "text", ["no protocol buffer", *(pytest.param(x, marks=SLOW) for x in (None, ""))]
)
def test_a_damaged_list_of_checkpoints_is_no_new_beginning(
    text, undisturbed, tmp_path, monkeypatch
):
    half_trained(tmp_path, monkeypatch)
    listed = tmp_path / "checkpoints" / "checkpoint"
    listed.unlink() if text is None else listed.write_text(text)
    first = []
    monkeypatch.setattr(
        Checkpoints, "on_train_begin", lambda self, logs=None: first.append(self.updates)
    )
    job.run(tiny(tmp_path, **ALONE))
    assert first[0] == 4
    assert_same(tmp_path, undisturbed)


@pytest.mark.long
def test_half_of_a_checkpoint_that_a_slow_disk_left_is_passed_over(
    undisturbed, tmp_path, monkeypatch
):
    half_trained(tmp_path, monkeypatch)
    newest(tmp_path).with_name("ckpt-4.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "checkpoints" / "ckpt-4_temp").mkdir()
    job.run(tiny(tmp_path, **ALONE))
    assert_same(tmp_path, undisturbed)


@pytest.mark.long
def test_a_checkpoint_of_another_version_is_refused_and_left_alone(tmp_path, monkeypatch):
    settings = tiny(tmp_path, **ALONE)
    half_trained(tmp_path, monkeypatch)
    before = newest(tmp_path).read_bytes()
    ours = Checkpoints.__init__

    def newer(self, model, *args):  # which keeps more
        model.more = tf.Variable(0.0)
        parts = {**model.trained_parts(), "more": model.more}
        model.trained_parts = lambda: parts
        ours(self, model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "__init__", newer)
        with pytest.raises(
            ValueError, match="comes from another version .* continue with the version"
        ):
            job.run(settings)
    assert newest(tmp_path).read_bytes() == before
    Run(settings).restore()


@pytest.fixture
def small_disk(tmp_path):
    """(A disk of its own, the same one where nobody can write.)"""
    places = [tmp_path / name for name in ("disk", "read_only")]
    with contextlib.ExitStack() as stack:
        for place, how in zip(places, ("-t tmpfs -o size=32m tmpfs", f"-o bind,ro {places[0]}")):
            place.mkdir()
            if subprocess.run(["mount", *how.split(), place]).returncode:
                pytest.skip("needs the right to mount a file system")
            stack.callback(subprocess.run, ["umount", "--lazy", place], check=True)
        yield places


def fill(directory):
    with open(directory / "filling", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.long
def test_a_full_and_a_read_only_disk_are_named_and_leave_what_is_there(
    small_disk, undisturbed, monkeypatch
):
    disk, read_only = small_disk
    settings = tiny(disk / "run", **ALONE, checkpoint_every=5)
    after_update(monkeypatch, 4, lambda: fill(disk))
    with pytest.raises(
        OSError, match="(?s)checkpoint of update 5 .* make room .* continues from .*1"
    ):
        job.run(settings)
    fill(disk)  # what the failed write has freed
    with pytest.raises(OSError, match="cannot be written .*No space left.* make room"):
        job.run(settings)
    seen = tiny(read_only / "run", **ALONE, checkpoint_every=5)
    with pytest.raises(OSError, match="cannot be written .*Read-only.*: name another directory"):
        job.run(seen)
    Run(seen).restore()
    (disk / "filling").unlink()
    job.run(settings)
    assert_same(disk / "run", undisturbed)


@pytest.mark.long
def test_a_checkpoint_of_another_network_is_refused(tmp_path, monkeypatch):
    half_trained(tmp_path, monkeypatch)
    flags = tmp_path / "flags.cfg"
    flags.write_text(flags.read_text().replace("width=0.125", "width=0.25"))
    wider = tiny(tmp_path, **ALONE, student="resnet_e:width=0.25,blocks=(1,1)")
    with pytest.raises(ValueError, match="comes from another version or another network"):
        job.run(wider)


@pytest.mark.long
def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    settings = tiny(tmp_path, **ALONE)

    def spoil(self, epoch, logs=None):
        if epoch == 1:
            self.variables[0].assign(self.variables[0] * np.nan)
        ours(self, epoch, logs)

    ours = Checkpoints.on_epoch_end
    monkeypatch.setattr(Checkpoints, "on_epoch_end", spoil)
    with pytest.raises(NotFinite, match="Weights became NaN or Inf in update 6.*ckpt-1"):
        job.run(settings)
    assert [p.name for p in (tmp_path / "checkpoints").glob("*.index")] == ["ckpt-1.index"]


@pytest.mark.long
@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_ends_at_once(tmp_path, monkeypatch):
    after_update(monkeypatch, 4, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in "12"])
    with pytest.raises(KeyboardInterrupt) as ended:
        job.run(tiny(tmp_path, **ALONE))
    assert not str(ended.value)
    assert newest(tmp_path).stem == "ckpt-1"  # of the first epoch


@pytest.mark.usefixtures("ctrl_c")
def test_an_ignored_signal_stays_ignored():
    """As Ctrl-C is in the background jobs of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.strategy, checkpoints.asked = tf.distribute.get_strategy(), False
    with checkpoints.saving_on_signals():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == checkpoints.stop
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.long
def test_sigterm_in_the_last_save_is_heard(tmp_path, monkeypatch):
    ours = Checkpoints.save

    def save(self, what):
        if self.updates == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        ours(self, what)

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(SystemExit) as ended:
        job.run(tiny(tmp_path, **ALONE))
    assert ended.value.code == INTERRUPTED
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.undo()
    assert job.run(tiny(tmp_path, **ALONE))["updates"] == 9


@pytest.mark.long
def test_a_finished_run_with_a_damaged_checkpoint_says_so(tmp_path):
    settings = tiny(tmp_path, **ALONE)
    job.run(settings)
    newest(tmp_path).write_bytes(b"")
    with pytest.raises(ValueError, match="ckpt-3 is damaged.*delete .*metrics.json"):
        Run(settings).restore()
    (tmp_path / "metrics.json").unlink()
    job.run(settings)
    Run(settings).restore()
