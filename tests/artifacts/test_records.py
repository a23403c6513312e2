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
