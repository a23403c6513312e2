"""The errors that a person is meant to read: one line, which names what was wrong, where, and what to do."""


class MnistError(Exception):
    """Base of the pipeline's own errors; shown as one line, without a traceback.

    Anything else that is raised is a defect of the pipeline and keeps its traceback.
    """

    def __str__(self) -> str:
        """The line; what a file's name or its content has in it that doesn't print is written as its escape."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class DataError(MnistError):
    """Raised if a data source can't be read, or doesn't hold what it should."""


class StoreError(MnistError):
    """Raised if the store can't be used: a file of it is missing or altered, a database damaged, the disk full."""


class RegistryError(MnistError):
    """Raised if the model registry can't be read or written."""


class CodeError(MnistError):
    """Raised if it is unclear which code of this checkout runs, or if a cache key can't see it."""


class GitError(MnistError):
    """Raised if git isn't there, or refuses."""


class ReproduceError(MnistError):
    """Raised if a registered version can't be made again."""


class ModelError(MnistError):
    """Raised if a training diverges, or a saved model can't be loaded, or doesn't predict what it should."""
