"""The page of one run, and of the runs in a folder, such as the demo's."""

from collections.abc import Mapping, Sequence
from typing import Any

from perlhf_jax.checkpoints import run_metadata
from perlhf_jax.report import answers
from perlhf_jax.report import curves
from perlhf_jax.report import figure_tables
from perlhf_jax.report import page
from perlhf_jax.report import reward_plots
from perlhf_jax.report import run_files
from perlhf_jax.report import values

# The figures of eval.json to see first, by kind.
_HEADLINES: Mapping[str | None, Sequence[str]] = {
  run_metadata.SFT: ('judge_score', 'exact_match', 'score'),
  run_metadata.REWARD: ('pairwise_accuracy', 'roc_auc', 'accuracy'),
  run_metadata.POLICY: ('judge_score', 'score', 'kl_k1', 'win_rate'),
}
# The metrics of validation to see first where there is no eval.json.
_VALIDATION: Mapping[str | None, Sequence[str]] = {
  run_metadata.SFT: ('loss', 'token_accuracy'),
  run_metadata.REWARD: ('pairwise_accuracy', 'roc_auc', 'loss'),
  run_metadata.POLICY: ('score', 'kl_k1', 'judge_score'),
}
_COSTS = 'trainable_fraction', 'seconds_per_step', 'step_memory_bytes'
_GROUPS = {
  run_metadata.SFT: 'Supervised tuning',
  run_metadata.REWARD: 'Reward models',
  run_metadata.POLICY: 'Policies',
  None: 'Other runs',
}


def of_one(run: run_files.Run) -> page.Page:
  """Returns the page of a run, as far as it has come."""
  runs = [run]
  return page.Page(
    title=values.shortened(run.name, 100),
    subtitle=_about(run),
    facts=[*_headlines(run), *_cost_facts(run)],
    notes=run.notes,
    sections=[
      page.Section('Reward and KL', curves.reward_by_kl(runs)),
      page.Section('Where the reward model is right', reward_plots.plots(runs)),
      page.Section('Evaluation', figure_tables.results(runs)),
      page.Section('Responses before and after', answers.before_and_after(run)),
      page.Section('Responses of the evaluation', answers.of_evaluations(runs)),
      page.Section('Curves', curves.by_step(runs)),
      *_last_sections(runs),
    ],
  )


def of_several(
  runs: Sequence[run_files.Run],
  name: str,
  demo: Mapping[str, Any],
  notes: Sequence[str] = (),
) -> page.Page:
  """Returns the page of the runs in a folder, side by side.

  Args:
    runs: the runs, at least one.
    name: name of the folder.
    demo: content of demo.json; empty without.
    notes: what is missing or damaged, as sentences.
  """
  runs = sorted(runs, key=lambda run: 'lora' not in run.name)
  groups = {kind: [run for run in runs if run.kind == kind] for kind in _GROUPS}
  policies = groups[run_metadata.POLICY]
  sections = []
  for kind in run_metadata.REWARD, run_metadata.POLICY, run_metadata.SFT, None:
    members, title = groups[kind], _GROUPS[kind]
    if not members:
      continue
    sections += [
      page.Section(
        title,
        [
          *figure_tables.results(members),
          *curves.reward_by_kl(members),
          *reward_plots.plots(members),
          *figure_tables.costs(members),
        ],
      ),
      *_curves(f'{title}: curves', members),
    ]
  writers = [*groups[run_metadata.SFT], *policies]
  compared = answers.of_evaluations(writers)
  sections.insert(0, page.Section('Responses before and after', compared))
  facts = [
    page.Fact(f'{fact.label}: {run.name}', fact.value, fact.note)
    for kind in (run_metadata.REWARD, run_metadata.POLICY, run_metadata.SFT)
    for run in groups[kind]
    for fact in _headlines(run)[:1]
  ]
  if values.number(demo.get('seconds')) is not None:
    facts.append(page.Fact('time of all', f'{demo["seconds"] / 60:,.1f} min'))
  return page.Page(
    title=values.shortened(name, 100),
    subtitle=', '.join(
      f'{title.lower()}: {len(groups[kind])}'
      for kind, title in _GROUPS.items()
      if groups[kind]
    ),
    facts=facts,
    notes=[
      *notes,
      *(f'{run.name}: {note}' for run in runs for note in run.notes),
    ],
    sections=[*sections, *_last_sections(runs, with_costs=False)],
  )


def _curves(title: str, runs: Sequence[run_files.Run]) -> list[page.Section]:
  """Returns a section for each objective, whose losses are others."""
  groups: dict[str | None, list[run_files.Run]] = {}
  for run in runs:
    groups.setdefault(run.objective, []).append(run)
  sections = []
  for members in groups.values():
    names = ', '.join(run.name for run in members)
    of = values.shortened(f' of {names}', 100) if len(groups) > 1 else ''
    sections.append(page.Section(f'{title}{of}', curves.by_step(members)))
  return sections


def _about(run: run_files.Run) -> str:
  metadata = run.metadata
  if metadata is None:
    return _GROUPS[run.kind]
  parts = [metadata.kind, metadata.objective, metadata.tuning, metadata.task]
  return values.shortened(', '.join(dict.fromkeys(filter(None, parts))), 200)


def _last_sections(runs, *, with_costs: bool = True) -> list[page.Section]:
  return [
    page.Section(
      'Memory and time', figure_tables.costs(runs) if with_costs else []
    ),
    page.Section('Environment', figure_tables.environment(runs)),
    page.Section('Configuration', figure_tables.configuration(runs)),
  ]


def _headlines(run: run_files.Run) -> list[page.Fact]:
  """Returns figures of the evaluation, else of the last validation."""
  kind, found = run.kind, run.evaluation
  names = _HEADLINES.get(kind, ())
  note = values.shortened(found.get('split', 'evaluation'), 40)
  note += figure_tables.at_step(found)
  if not found:
    found, names = run.last('eval'), _VALIDATION.get(kind, ())
    note = 'validation' + figure_tables.at_step(found)
  return [
    page.Fact(
      values.label(name),
      values.shown(name, found[name]) + _error(found, name),
      note,
    )
    for name in names
    if values.number(found.get(name)) is not None
  ]


def _error(found: Mapping[str, Any], name: str) -> str:
  error = found.get(f'{name}_standard_error')
  if values.number(error) is None:
    return ''
  return f' ± {values.shown(name, error)}'


def _cost_facts(run: run_files.Run) -> list[page.Fact]:
  return [
    page.Fact(values.label(name), values.shown(name, run.summary[name]))
    for name in _COSTS
    if values.number(run.summary.get(name)) is not None
  ]
