"""The errors that users meet. Each is one line: what went wrong, where, and what to do.

All of them are kinds of `NceFxError`.
"""

import linecache
import sysconfig
import traceback
from pathlib import Path

import torch.fx

from nce_fx.plain_text import one_clear_line

_OWN = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_STANDARD = sysconfig.get_paths()["stdlib"]


class NceFxError(Exception):
    """Base of all errors that nce-fx raises on purpose; the command line prints them without a traceback.

    What it quotes may come from a stranger's file: the message is one line all the same, and no terminal obeys it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_clear_line(str(message)))


class InputError(NceFxError):
    """A model, option, shape or data set that was asked for is not right."""


class TraceError(NceFxError):
    """The model cannot be turned into a graph."""


class ChannelError(NceFxError):
    """Widths that a model cannot take."""


class BudgetError(NceFxError):
    """A budget that no plan can meet."""


class PlanError(NceFxError):
    """A plan that does not belong to the model."""


class QuantizeError(NceFxError):
    """A quantization that cannot be inserted."""


class TrainingError(NceFxError):
    """Training that cannot go on."""


class ArtifactError(NceFxError):
    """Files that are missing, damaged, foreign, or in the way."""


class ExportError(NceFxError):
    """A graph that the format cannot say, or an exported file that did not verify."""


class PassError(NceFxError):
    """A pass that failed, named with the passes before it."""


def source_line(node: torch.fx.Node) -> str:
    """Return the user's own source line of a node as ``file:line``, or an empty string where fx recorded none."""
    frames = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    own = [frame for frame in frames if "/torch/" not in frame and not _is_compiler(frame)]
    if not own:
        return ""
    path, line, *_ = own[-1].removeprefix("File ").split(", ")
    return f"{path.strip(chr(34))}:{line.removeprefix('line ')}"


def _is_compiler(frame: str) -> bool:
    """Whether a frame is this package's own, not a built-in model's: it called ``trace``, it is not of the model."""
    path = frame.removeprefix('File "')
    return path.startswith(_OWN) and not path.startswith(f"{_OWN}/models/")


def where(node: torch.fx.Node) -> str:
    """Return how messages name a node: its name, target, and the user's own source line when known."""
    line = source_line(node)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name} ({target})" + (f" at {line}" if line else "")


def one_line(error: BaseException, *, libraries: bool = False) -> str:
    """Return an exception as ``Type: first line of its message``, and the line of the user's code that it came from.

    ``libraries`` is as in `raised_at`.
    """
    lines = str(error).strip().splitlines()
    line = raised_at(error, libraries=libraries)
    return type(error).__name__ + (f": {lines[0].strip()[:300]}" if lines else "") + (f" (at {line})" if line else "")


def raised_by(error: BaseException) -> str:
    """Return the innermost line of the user's own code, or nothing: ``nets.py:12, "if x.sum() > 0:"``."""
    at = raised_at(error, libraries=True)
    file, _, number = at.rpartition(":")
    text = linecache.getline(file, int(number)).strip() if at else ""
    return f'{at}, "{text}"' if text else at


def raised_at(error: BaseException, *, libraries: bool = False) -> str:
    """Return the innermost line of the user's own code that an exception passed through, as ``file:line``.

    It is an empty string where there is none. With ``libraries``, code of other installed packages counts too: a model
    may come from one.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename, libraries)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _is_users(file: str, libraries: bool) -> bool:
    if file.startswith(("<", _OWN, _TORCH)):
        return False
    return libraries if "site-packages" in file else not file.startswith(_STANDARD)
