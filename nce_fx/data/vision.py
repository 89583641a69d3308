"""What data from folders needs first: the folder, and torchvision."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from nce_fx.errors import InputError, one_line


def existing_folder(folder: str, name: str) -> Path:
    """Return the absolute path of a folder that is there.

    Raises:
        InputError: it is not given, not there, or not a folder.
    """
    if not folder:
        raise InputError(f"data {name}: say where its folder is: {name}:DIR")
    path = Path(folder).expanduser().absolute()
    if not path.exists():
        raise InputError(f"data {name}: there is no folder {folder}")
    if not path.is_dir():
        raise InputError(f"data {name}: {folder} is a file, not a folder")
    return path


def torchvision_part(part: str, name: str) -> ModuleType:
    """Return ``torchvision.<part>``.

    Raises:
        InputError: torchvision is not installed, or does not work with the torch that is.
    """
    try:
        return import_module(f"torchvision.{part}")
    except ModuleNotFoundError as error:
        raise InputError(f"data {name}: needs torchvision: pip install 'nce-fx[vision]'") from error
    except Exception as error:
        raise InputError(
            f"data {name}: torchvision does not work with the installed torch: install the pair of one release and one "
            f"kind, CPU or CUDA ({one_line(error)})"
        ) from error
