"""Keys say what changed, in words."""

from artifacts.records.base import Key

KEY = Key(step="train", inputs={"train.epochs": "3", "dataset": "a" * 64}, code={"tasks.train": "1"}, libraries={})


def test_equal_keys_have_no_changes():
    assert KEY.changes_since(KEY.model_copy()) == ()


def test_each_kind_of_change_is_named():
    other = Key(
        step="train",
        inputs={"train.epochs": "1", "dataset": "b" * 64},
        code={"tasks.train": "2"},
        libraries={"keras": "3.15"},
    )
    assert other.changes_since(KEY) == (
        "dataset: aaaaaaaaaaaa → bbbbbbbbbbbb",
        "train.epochs: 3 → 1",
        "code of tasks.train",
        "keras: none → 3.15",
    )


def test_many_changed_modules_are_summed_up():
    other = KEY.model_copy(update={"code": {f"tasks.m{n}": "1" for n in range(5)}})
    assert other.changes_since(KEY) == ("code of 6 modules (tasks.m0, tasks.m1, tasks.m2, …)",)
