"""What a run writes down: ``log.csv`` (a row an epoch), ``steps.csv`` (a row a step), and TensorBoard's files.

TensorBoard's need its package; without it the two tables are all. Losses are written with every digit, so that runs can
be compared exactly. After an interruption the rows past the checkpoint are dropped: the steps are done again.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from nce_fx.errors import TrainingError
from nce_fx.files import write_whole
from nce_fx.training.checkpoint import last_good, remedy
from nce_fx.training.result import EpochRecord

_STEP_COLUMNS = ("step", "epoch", "learning_rate", "loss", "accuracy")


class Log:
    """The log of one run; without a directory it writes nothing."""

    def __init__(self, directory: Path | None, history: Sequence[EpochRecord], steps: int) -> None:
        """Open the log after ``steps`` steps; what was logged beyond them is dropped."""
        self.directory = directory
        self._steps: Any = None
        self._board: Any = None
        if directory is None:
            return
        with self._writing():
            directory.mkdir(parents=True, exist_ok=True)
            kept = _rows_until(directory / "steps.csv", steps)
            write_whole(directory / "steps.csv", csv_table(_STEP_COLUMNS, kept))
            self._steps = (directory / "steps.csv").open("a", newline="")
            self._write_epochs(history)
            self._board = _tensorboard(directory / "tensorboard", steps)

    def step(self, step: int, epoch: int, learning_rate: float, loss: float, accuracy: float | None) -> None:
        """Log one step: its number over the whole run from 1, and the means over its batch."""
        if self._steps is not None:
            with self._writing():
                csv.writer(self._steps).writerow(
                    (step, epoch, learning_rate, loss, "" if accuracy is None else accuracy)
                )
        if self._board is not None:
            self._board.add_scalar("loss/step", loss, step)

    def epoch(self, history: Sequence[EpochRecord]) -> None:
        """Log the newest epoch of a history."""
        with self._writing():
            self._write_epochs(history)
        if self._board is not None:
            newest = history[-1]
            for name in ("loss", "accuracy", "test_accuracy", "test_metric", "learning_rate", "bits"):
                value = getattr(newest, name)
                if value is not None:
                    self._board.add_scalar(f"epoch/{name}", value, newest.epoch)

    def flush(self) -> None:
        """Hand everything to the operating system, so that it survives the end of this process."""
        if self._steps is not None:
            with self._writing():
                self._steps.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the files."""
        if self._steps is not None:
            with self._writing():
                self._steps.close()
        if self._board is not None:
            self._board.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write the log in {self.directory}: {error.strerror or error}: {last_good(self.directory)}; "
                f"{remedy(error)}"
            ) from error

    def _write_epochs(self, history: Sequence[EpochRecord]) -> None:
        if self.directory is not None:
            write_whole(self.directory / "log.csv", epochs_table(history))


def epochs_table(history: Sequence[EpochRecord]) -> bytes:
    """Return what ``log.csv`` holds, a row an epoch."""
    columns = [field.name for field in fields(EpochRecord)]
    rows = [["" if value is None else value for value in asdict(record).values()] for record in history]
    return csv_table(columns, rows)


@contextmanager
def open_log(directory: Path | None, history: Sequence[EpochRecord], steps: int) -> Iterator[Log]:
    """Open a run's log and close it at the end, whatever happens.

    Raises:
        TrainingError: the directory or a file in it cannot be written.
    """
    log = Log(directory, history, steps)
    try:
        yield log
    except BaseException:
        with suppress(TrainingError):  # What stopped training is what the user must hear.
            log.close()
        raise
    log.close()


def csv_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Return a table as the bytes of a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()


def _rows_until(path: Path, steps: int) -> list[list[str]]:
    """The whole rows of a step table up to a step; the last row of a killed process may be a part of one."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return [row for row in rows if len(row) == len(_STEP_COLUMNS) and row[0].isdigit() and int(row[0]) <= steps]


def _tensorboard(directory: Path, steps: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory), purge_step=steps + 1)
