"""The errors that a person is meant to read: one line, which names what was wrong, where, and what to do."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artifacts.records import Validation


class MnistError(Exception):
    """Base of the pipeline's own errors; shown as one line, without a traceback.

    Anything else that is raised is a defect of the pipeline and keeps its traceback.
    """

    def __str__(self) -> str:
        """The line; what a file's name or its content has in it that doesn't print is written as its escape."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class DataError(MnistError):
    """Raised if a data source can't be read, or doesn't hold what it should."""


class ValidationError(MnistError):
    """Raised if the data break an expectation of level error.

    Attributes:
        validation: The whole outcome, with its stored result and Data Docs.
    """

    validation: "Validation"


class StoreError(MnistError):
    """Raised if the store can't be used: a file of it is missing or altered, a database damaged, the disk full."""


class RegistryError(MnistError):
    """Raised if the model registry can't be read or written."""


class GitError(MnistError):
    """Raised if git isn't there, or refuses."""


class ReproduceError(MnistError):
    """Raised if a registered version can't be made again."""


class ModelError(MnistError):
    """Raised if a training diverges, or a saved model can't be loaded, or doesn't predict what it should."""
