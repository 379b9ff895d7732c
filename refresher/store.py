"""Reading the private records."""

from refresher import files
from refresher.attempt import LARGEST_RECORD
from refresher.directories import Directories
from refresher.errors import GrantFileError
from refresher.grant import NOTHING, Stored, decode

__all__ = ["load"]


def load(directories: Directories, name: str) -> Stored:
    """Return the record of ``name`` as it lies on the disk.

    Raises ``GrantFileError`` where there is one that cannot be used; the file is left as it is.
    """
    path = directories.record(name)
    try:
        data = files.read(path, LARGEST_RECORD)
        return Stored(None, NOTHING) if data is None else decode(data, name)
    except OSError as error:
        raise GrantFileError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, GrantFileError) as error:
        raise GrantFileError(
            f"{path}: {error}. Restore it, or 'refresher import {name} --replace' with a new refresh token"
        ) from None
