"""Runs a sweep: tunes the learning rate of each arm, and compares the arms."""

from collections.abc import Iterator
import contextlib
import pathlib
import shlex
import time

from absl import logging
from etils import epath

from perlhf_jax.core import checks
from perlhf_jax.core import errors
from perlhf_jax.core import sigterm
from perlhf_jax.report import sweep_file
from perlhf_jax.sweep import children as children_lib
from perlhf_jax.sweep import command_checks
from perlhf_jax.sweep import description
from perlhf_jax.sweep import results as results_lib
from perlhf_jax.sweep import run_files
from perlhf_jax.sweep import table
from perlhf_jax.training import run_lock
from perlhf_jax.training import train_loop

_TABLE = 'sweep.md'


@checks.checked
def sweep(
  *, sweep: description.Sweep, sweep_dir: str, dry_run: bool = False
) -> None:
  """Runs the cells of a sweep one after the other, and compares its arms.

  A cell is an ordinary run of a command, in a folder of its own. A second start
  goes on: runs that have finished are kept, and others resume. A run that fails
  does not stop the others; the next start tries it again.

  Args:
    sweep: what to run and to compare.
    sweep_dir: where the runs, sweep.json and sweep.md go.
    dry_run: print the commands that can be run now, and run nothing; sweep.json
      and sweep.md are written with what is done.

  Raises:
    ConfigError: the description or the command line of a cell has a mistake;
      raised before anything runs, but for the name of a metric.
    CheckpointError: the folder has runs with other settings, or another sweep
      or run is at work there.
    PreemptedError: SIGTERM came.
    UserError: some runs have failed; raised after all others.
  """
  children = children_lib.Children()
  with sigterm.Listener(children.stop):
    checked = command_checks.check(sweep, sweep_dir)
    folder = epath.Path(sweep_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
      work = _Work(sweep, folder, checked, children)
      if dry_run:
        work.show_commands()
      else:
        work.run()


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
  """Keeps other sweeps out of a folder."""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(run_lock.RunLock(folder).held())
    except errors.CheckpointError as error:
      raise errors.CheckpointError(
        f'Another sweep is at work in SWEEP_DIR {folder}. {error}'
      ) from error
    yield


class _Work:
  """A sweep at work in its folder."""

  def __init__(
    self,
    sweep: description.Sweep,
    folder: epath.Path,
    checked: command_checks.Checked,
    children: children_lib.Children,
  ):
    """Finds what an earlier start has left.

    Args:
      sweep: the sweep.
      folder: its folder.
      checked: what its command lines say.
      children: runs the command lines.

    Raises:
      CheckpointError: the folder has runs with other settings.
      ConfigError: no run has the metric.
    """
    self._sweep, self._folder, self._checked = sweep, folder, checked
    self._children = children
    self._total = sum(
      len(arm.learning_rates) + len(sweep.seeds) - 1 for arm in sweep.all_arms
    )
    self._results: results_lib.Results = {}
    self._ran: list[float] = []  # Seconds of cells of this start.
    # A metric that was not found, by whether the run has been trained.
    self._not_found: dict[bool, errors.ConfigError] = {}
    self._earlier = results_lib.read(folder)
    self._check_settings()
    for cell in self._cells():
      self._look(cell)
    self._check_found()

  def _check_settings(self) -> None:
    """Checks that what has begun, of any rate, is of the present arms."""
    for arm in self._sweep.all_arms:
      for rate in arm.learning_rates:
        for cell in self._sweep.compared_cells(arm, rate):
          model_dir = self._model_dir(cell)
          if run_files.has_begun(model_dir):
            config = self._checked.configs[arm.name]
            run_files.check_settings(model_dir, config, str(cell))

  def _cells(self) -> Iterator[description.Cell]:
    """Yields all cells; the best rates must be known when it gets to them."""
    for arm in self._sweep.all_arms:
      yield from self._sweep.tuning_cells(arm)
    for arm in self._sweep.all_arms:
      rate = results_lib.best_rate(self._sweep, arm, self._results)
      if rate is not None:
        yield from self._sweep.compared_cells(arm, rate)

  def _is_compared(self, cell: description.Cell) -> bool:
    arm = next(a for a in self._sweep.all_arms if a.name == cell.arm)
    rate = results_lib.best_rate(self._sweep, arm, self._results)
    return cell.learning_rate == rate

  def _model_dir(self, cell: description.Cell) -> epath.Path:
    return self._folder / cell.folder

  def _look(self, cell: description.Cell) -> results_lib.CellResult:
    """Reads the result of a cell from its folder; it fails if that is odd."""
    earlier = self._earlier.get(cell.folder, results_lib.CellResult())
    result = self._results.setdefault(cell, earlier)
    try:
      self._read(cell, result)
    except errors.UserError as error:
      result.state, result.error = results_lib.FAILED, str(error)
      if isinstance(error, errors.ConfigError):
        self._not_found.setdefault(result.is_trained, error)
    return result

  def _check_found(self) -> None:
    """Ends the sweep if a metric that is looked for is in none of its runs."""
    for is_evaluation, error in self._not_found.items():
      if not any(
        each.is_evaluated if is_evaluation else each.is_trained
        for each in self._results.values()
      ):
        raise error

  def _read(
    self, cell: description.Cell, result: results_lib.CellResult
  ) -> None:
    model_dir = self._model_dir(cell)
    if not run_files.has_finished(model_dir, self._checked.steps[cell.arm]):
      return
    sweep = self._sweep
    step = run_files.checkpoint_step(model_dir, sweep.checkpoint)
    metrics = run_files.validation_metrics(model_dir, step)
    result.value = run_files.metric_in(
      metrics, sweep.metric, 'METRIC', f'the validation of {cell}'
    )
    result.is_trained = True
    if sweep.evaluate is not None:
      metrics = {}
      if result.evaluation == self._checked.evaluation:
        metrics = run_files.evaluation(model_dir, step)
    if metrics:
      result.compared = run_files.metric_in(
        metrics,
        sweep.compared_metric,
        'METRIC' if sweep.compare is None else 'COMPARE',
        f'the evaluation of {cell}',
      )
      result.is_evaluated = True
    result.extra = {
      **run_files.numbers(run_files.summary(model_dir)),
      **run_files.numbers(metrics),
    }

  def show_commands(self) -> None:
    """Prints the commands that can be run now, one per line.

    Raises:
      UserError: some cells have failed.
    """
    waiting = 0
    sweep = self._sweep
    for arm in sweep.all_arms:
      rate = results_lib.best_rate(sweep, arm, self._results)
      cells = sweep.tuning_cells(arm)
      if rate is None:
        waiting += len(sweep.seeds) - 1
      else:
        cells = sweep.compared_cells(arm, rate)
      for cell in cells:
        if self._results[cell].state == results_lib.FAILED:
          continue
        for words in self._missing(cell)[:1]:
          self._prepare(cell)
          print(shlex.join(['perlhf', *words]))
        waiting += len(self._missing(cell)[1:])
    self._write()
    if waiting:
      logging.info(
        '%d more commands wait for these: runs for the tuned learning rates, '
        'and evaluations for their runs. Give --dry_run again when these are '
        'done.',
        waiting,
      )
    else:
      logging.info(
        'Nothing waits for these. When they are done, the same command writes '
        'the table, %s.',
        self._folder / _TABLE,
      )
    self._check_failed()

  def _prepare(self, cell: description.Cell) -> None:
    """Makes way for an evaluation, if that is what a cell needs next."""
    result, evaluation = self._results[cell], self._checked.evaluation
    if result.is_trained and result.evaluation != evaluation:
      run_files.set_evaluation_aside(self._model_dir(cell))
      result.evaluation = evaluation

  def _missing(self, cell: description.Cell) -> list[list[str]]:
    """Returns the command lines that a cell still needs, in order."""
    result, sweep = self._results[cell], self._sweep
    missing = []
    model_dir = str(self._model_dir(cell))
    if not result.is_trained:
      missing.append(sweep.words(cell, model_dir))
    is_evaluation_due = sweep.evaluate is not None and self._is_compared(cell)
    if is_evaluation_due and not result.is_evaluated:
      missing.append(sweep.evaluation_words(model_dir))
    return missing

  def run(self) -> None:
    """Runs what is missing.

    Raises:
      UserError: some cells have failed.
    """
    logging.info(
      'The sweep %s has %d runs in %s, of which %d are missing. What a run '
      'prints is in the .log file beside its folder.',
      *(
        self._sweep.name,
        self._total,
        self._folder,
        results_lib.num_left(self._sweep, self._results),
      ),
    )
    for cell in self._cells():
      result = self._results.get(cell) or self._look(cell)
      if result.state != results_lib.FAILED and self._missing(cell):
        self._run(cell)
    content = self._write()
    print(table.markdown(content))
    self._check_failed()

  def _check_failed(self) -> None:
    failed = [
      str(cell)
      for cell in results_lib.cells(self._sweep, self._results)
      if self._results[cell].state == results_lib.FAILED
    ]
    if failed:
      raise errors.UserError(
        f'{len(failed)} of {self._total} runs failed: {", ".join(failed)}. '
        f'{self._folder / sweep_file.FILE_NAME} has their messages. Started '
        'again, the same command tries them again.'
      )

  def _run(self, cell: description.Cell) -> None:
    """Runs the command lines that a cell still needs."""
    if '://' in str(self._folder):
      raise errors.ConfigError(
        f'SWEEP_DIR is {self._folder}, where {cell} is missing; runs can be '
        'started only in a folder of this machine. --dry_run prints the '
        'commands for a launcher, and writes the table of what is done.'
      )
    result = self._results[cell]
    model_dir = pathlib.Path(self._model_dir(cell))
    if model_dir.is_dir():
      # A sweep that was killed may have left it at work.
      run_lock.check_free(epath.Path(model_dir))
    model_dir.parent.mkdir(parents=True, exist_ok=True)
    result.state = results_lib.RUNNING
    began = time.monotonic()
    try:
      while missing := self._missing(cell):
        self._prepare(cell)
        self._write()
        ended = self._children.run(
          missing[0], model_dir.with_name(f'{model_dir.name}.log')
        )
        self._check_stop(cell, ended)
        if ended.code:
          result.state, result.error = results_lib.FAILED, ended.error
          result.has_diverged = ended.error.startswith(train_loop.DIVERGED)
          break
        self._look(cell)
        if result.state == results_lib.FAILED:
          break
        if self._missing(cell) == missing:
          result.state = results_lib.FAILED
          result.error = (
            f'perlhf {missing[0][0]} ended without an error, but left no '
            'result.'
          )
          break
    finally:
      if result.state == results_lib.RUNNING:
        result.state = results_lib.WAITING
      seconds = time.monotonic() - began
      result.seconds = (result.seconds or 0.0) + seconds
      self._write()
    self._ran.append(seconds)
    self._check_found()
    self._say(cell, result)

  def _check_stop(
    self, cell: description.Cell, ended: children_lib.Ended
  ) -> None:
    """Ends the sweep if a run was stopped, or may go on when started again."""
    if ended.code and self._children.is_told:
      raise errors.PreemptedError(children_lib.STOPPED)
    if ended.code == errors.GOES_ON:
      raise errors.PreemptedError(
        f'{cell} stopped, and goes on when the same command is started again: '
        f'{ended.error}'
      )

  def _write(self) -> dict:
    """Writes sweep.json and the table; returns the content of sweep.json."""
    for cell, result in self._results.items():
      if result.state in (results_lib.DONE, results_lib.WAITING):
        # A run that turns out to be compared may have to be evaluated.
        is_done = not self._missing(cell)
        result.state = results_lib.DONE if is_done else results_lib.WAITING
    content = results_lib.write(self._folder, self._sweep, self._results)
    text = table.markdown(content)
    results_lib.write_whole(self._folder / _TABLE, text)
    return content

  def _say(
    self, cell: description.Cell, result: results_lib.CellResult
  ) -> None:
    """Logs the result of a cell, and how long the others may take."""
    found = (
      f'{self._sweep.metric} {result.value:.4g}'
      if result.value is not None
      else 'no figure'
    )
    if result.state == results_lib.FAILED:
      found = f'failed: {result.error}'
    left = results_lib.num_left(self._sweep, self._results)
    mean = sum(self._ran) / len(self._ran)
    logging.info(
      '%s: %s, %.1f min; %d of %d runs left, about %.0f min.',
      *(cell, found, self._ran[-1] / 60),
      *(left, self._total, left * mean / 60),
    )
