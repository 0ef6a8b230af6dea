import numpy as np
import pytest
from candle_tf.runs import evaluate as evaluation
from candle_tf.runs.run import Run
from tiny_runs import tiny


@pytest.mark.long
def test_predictions_are_those_of_the_metrics(finished):
    workdir, results = finished
    kept = np.load(workdir / "predictions.npz")
    right = kept["labels"] == kept["predictions"]
    np.testing.assert_allclose(np.mean(right), results["student"]["test"]["overall"])
    run = Run(tiny(workdir))
    model, test = run.student, run.examples.test
    np.testing.assert_array_equal(kept["labels"], test.labels)
    batches = run.evaluation_batches(test)
    scores = np.exp(model.predict(batches, verbose=0).astype(np.float64))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(kept["confidence"], probabilities.max(axis=1), rtol=1e-3)
    true = [p[label] for p, label in zip(probabilities, test.labels)]
    np.testing.assert_allclose(kept["true_probability"], true, rtol=1e-3)


@pytest.mark.parametrize("bits, precision", [("1", 1), ("ternary", 2), ("4", 4), ("32", 32)])
def test_student_bits(bits, precision):
    student = Run(tiny("x", student_bits=bits)).build_student(10)
    assert set(evaluation.student_size(student)["macs"]) == {str(precision), "32"}
