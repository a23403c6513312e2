"""The errors for a person to read. Each is one line that says what was wrong, where, and what to do."""


class MnistError(Exception):
    """Base of the pipeline's own errors, which are shown as one line without a traceback.

    Any other error is a defect of the pipeline, and keeps its traceback.
    """

    def __str__(self) -> str:
        """The line. Characters that don't print, for example from a file's name, are written as escapes."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


class DataError(MnistError):
    """Raised if a data source can't be read, or has the wrong content."""


class StoreError(MnistError):
    """Raised if the store can't be used: a file is missing or altered, a database is damaged, or the disk is full."""


class RegistryError(MnistError):
    """Raised if the model registry can't be read or written."""


class CodeError(MnistError):
    """Raised if it is unclear which code of this checkout runs, or if cache keys can't see that code."""


class GitError(MnistError):
    """Raised if git isn't installed, or fails."""


class ReproduceError(MnistError):
    """Raised if a registered version can't be made again."""


class ModelError(MnistError):
    """Raised if a training diverges, or a saved model can't be loaded or predicts something else than before."""
