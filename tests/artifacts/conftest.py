"""Hand-written records that the tests of pictures and report share."""

from artifacts.records.evaluation import Case, Guess, Neighbour, Slice


def make_case(index, label, prediction, probability=0.8, **changes):
    """A wrong prediction with 10 per cent for a third class, and neighbours of the predicted one."""
    fields = {
        "cause": "ambiguous",
        "evidence": f"evidence of {index}",
        "status": None,
        "guesses": (
            Guess(label=prediction, probability=probability),
            Guess(label=label, probability=0.9 - probability),
            Guess(label=(label + 5) % 10, probability=0.1),
        ),
        "neighbours": tuple(Neighbour(index=n, label=prediction, distance=0.1) for n in (7, 8, 9)),
    }
    return Case(index=index, label=label, **fields | changes)


def make_slices(n_right=95):
    """Three slices of a hundred images each."""
    names = [("digit", "0"), ("stroke", "thin, to 2.5 px"), ("change", "rotated by 15°")]
    return tuple(Slice(kind=kind, name=name, n=100, n_right=n_right, low=0.89, high=0.98) for kind, name in names)
