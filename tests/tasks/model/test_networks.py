"""A stored model is loaded only if its bytes are those that were stored, and no code in it runs."""

import shutil

import pytest

from artifacts.errors import StoreError
from artifacts.store import put
from tasks.evaluate import evaluate_model
from tasks.model.saved import import_keras, load_model
from tasks.robustness import measure_robustness


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A model file whose layer would leave a file behind if it were made, and the place of that file."""
    keras, trace = import_keras(), tmp_path / "ran"
    monkeypatch.setenv("TRACE", str(trace))
    # Only a lambda is kept as code, without its defaults; a named function is kept by its name.
    code = keras.layers.Lambda(lambda images: open(__import__("os").environ["TRACE"], "w").close() or images)  # noqa: PTH123
    layers = [keras.Input((28, 28, 1)), keras.layers.Flatten(), code]
    keras.Sequential(layers).save(tmp_path / "code.keras")
    trace.unlink()  # it ran when the model was made
    return tmp_path / "code.keras", trace


def test_an_altered_file_is_not_loaded(dataset, training, with_code):
    file, trace = with_code
    path = training.model.keras.path
    kept = path.read_bytes()
    path.unlink()
    shutil.copyfile(file, path)
    try:
        for use in (load_model, lambda model: evaluate_model.fn(model, dataset)):
            with pytest.raises(StoreError, match="was altered; delete it, and run again"):
                use(training.model)
        with pytest.raises(StoreError, match="was altered"):
            measure_robustness.fn(training.model, dataset)
    finally:
        path.unlink()
        path.write_bytes(kept)
    assert not trace.exists()


def test_code_in_a_file_with_the_right_digest_does_not_run(training, with_code):
    file, trace = with_code
    model = training.model.model_copy(update={"keras": put(".keras", lambda path: shutil.copyfile(file, path))})
    with pytest.raises(ValueError, match="Lambda"):
        load_model(model)
    assert not trace.exists()
    # The file does what it is meant to, if it is let.
    import_keras().saving.load_model(file, compile=False, safe_mode=False)
    assert trace.exists()
