"""A home that was moved or copied: MLflow's database has absolute paths, which must lead to the files next to it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from artifacts.settings import Settings


def relocate_registry(settings: Settings) -> None:
    """Make the embedded registry use the files next to its database.

    Without this, a copy of a home would read, write and delete the files of the original.
    """
    database = settings.registry_database
    if database is None or not database.exists() or not (database.parent / "artifacts").is_dir():
        return
    here = (database.parent / "artifacts").as_uri()
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'experiments'").fetchone():
            return
        # Experiments of other programs in the same database keep their places.
        places = connection.execute(
            "SELECT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/artifacts'"
        ).fetchall()
        for (place,) in places:
            if Path(place.removeprefix("file://")) == database.parent / "artifacts":
                continue
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 - names of our own
                    f"WHERE substr({column}, 1, ?) = ?",
                    (here, len(place) + 1, len(place), place),
                )
