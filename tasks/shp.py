"""Stanford Human Preferences: which of two Reddit comments readers preferred.

Source: https://huggingface.co/datasets/stanfordnlp/SHP (Ethayarajh et al.
2022). Licence: MIT by the tag of its card; the text was written by Reddit's
users, under Reddit's terms.

Files, under PERLHF_DATA_DIR in `SHP/` or `shp/`: a folder for each of 18
subreddits (`DOMAINS`), each with `train.json`, `validation.json` and
`test.json` as upstream has them (JSON lines, despite the suffix), or the same
with the suffix `.jsonl`. Folders may be missing.

Tasks: shp_rm (pairwise), shp_sft (the preferred comments) and shp_prompts (the
posts), each over all existing subreddits, and shp_x_rm for each subreddit x.
The mixture shp_domains_rm (`tasks.mixtures`) draws every subreddit equally
often.

Splits are upstream's; they share no post.

The greater the `score_ratio` (score of the preferred comment / score of the
other), the clearer is the preference. The card advises training on fewer but
clearer pairs (its example: a ratio of 2 and above). These tasks use training
pairs with a ratio of at least 3, and all validation and test pairs, so that
accuracies are comparable with other work. For another threshold, in a module of
your own:

  from tasks import shp

  shp.add_shp_tasks('shp_clear', min_score_ratio=5.0)  # shp_clear_rm, ...

A post has up to 1,225 pairs; shp_sft has each comment and shp_prompts each
post once. The prompt is the unchanged post (title and body, `history`).
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources

DOMAINS = (
  *('askacademia', 'askanthropology', 'askbaking', 'askcarguys'),
  *('askculinary', 'askdocs', 'askengineers', 'askhistorians', 'askhr'),
  *('askphilosophy', 'askphysics', 'askscience', 'asksciencefiction'),
  *('asksocialscience', 'askvet', 'changemyview', 'explainlikeimfive'),
  'legaladvice',
)
MIN_SCORE_RATIO = 3.0
_SPLITS = ('train', 'validation', 'test')


def to_prompt_and_response(
  record: Mapping[str, Any], which: str = 'chosen'
) -> tuple[str, str]:
  """Returns prompt and response of a raw record, as the tasks read them.

  Args:
    record: has `history`, `human_ref_A`, `human_ref_B`, and `labels`, which is
      1 if A is better and 0 if B is.
    which: response to return, `chosen` or `rejected`.

  Raises:
    ValueError: the label is neither 0 nor 1.
  """
  label = record['labels']
  if label not in (0, 1):
    raise ValueError(f'labels is {label!r}, neither 0 nor 1')
  comments = record['human_ref_B'], record['human_ref_A']
  response = comments[label if which == 'chosen' else 1 - label]
  return record['history'].strip(), response.strip()


def parse_pair(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns the pairwise features of a raw record."""
  prompt, chosen = to_prompt_and_response(record)
  _, rejected = to_prompt_and_response(record, which='rejected')
  return {'inputs': prompt, 'chosen': chosen, 'rejected': rejected}


def parse_sft(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns the preferred comment as a demonstration."""
  prompt, response = to_prompt_and_response(record)
  return {'inputs': prompt, 'targets': response}


def parse_prompt(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns only the post."""
  return {'inputs': to_prompt_and_response(record)[0]}


def add_shp_tasks(name: str, min_score_ratio: float = MIN_SCORE_RATIO):
  """Registers `name`_rm, `name`_sft, `name`_prompts and `name`_x_rm.

  Args:
    name: prefix of the names of the tasks.
    min_score_ratio: minimum ratio of training pairs of rm and sft tasks; 1
      keeps all pairs. Validation and test pairs and prompts are not filtered.
  """
  clear = functools.partial(_clear_only, min_score_ratio)
  pair, sft = clear(parse_pair), clear(parse_sft)
  _add(f'{name}_rm', 'pairwise', pair, '*', json_rows.read_lines)
  _add(f'{name}_sft', 'sft', sft, '*', _read_distinct(sft))
  prompts = _read_distinct(parse_prompt)
  _add(f'{name}_prompts', 'prompts', parse_prompt, '*', prompts)
  for domain in DOMAINS:
    _add(f'{name}_{domain}_rm', 'pairwise', pair, domain, json_rows.read_lines)


def _clear_only(min_score_ratio: float, parse: sources.Parse) -> sources.Parse:
  """Returns a `parse` that leaves out training pairs below the ratio."""

  def parse_clear(record):
    # `domain` is subreddit and split, such as askbaking_train.
    is_train = record['domain'].endswith('_train')
    if is_train and record['score_ratio'] < min_score_ratio:
      return None
    return parse(record)

  return parse_clear


def _read_distinct(parse: sources.Parse) -> sources.Read:
  """Reads a file without records that give the same example as earlier ones."""

  def read(path: str) -> Iterator[json_rows.Row]:
    seen = set()
    for row in json_rows.read_lines(path):
      try:
        example = None if row.problem else parse(row.record)
        key = None if example is None else tuple(example.values())
      except (KeyError, ValueError, TypeError, AttributeError):
        key = None  # The source parses it again, and reports the problem.
      if key not in seen:
        yield row
      if key is not None:
        seen.add(key)

  return read


def _add(
  name: str, kind: str, parse: sources.Parse, folder: str, read: sources.Read
):
  """Registers a task on one folder, or on all of them (`*`)."""
  preference_tasks.add_preference_task(
    name,
    kind,
    parse,
    (
      [
        sources.FileGroup(
          tuple(
            f'{place}/{folder}/{split}.{suffix}'
            for place in ('SHP', 'shp')
            for suffix in ('json', 'jsonl')
          ),
          {split: 1.0},
        )
        for split in _SPLITS
      ],
    ),
    info=sources.DatasetInfo(
      description='SHP' if folder == '*' else f'SHP {folder}',
      homepage='https://huggingface.co/datasets/stanfordnlp/SHP',
      licence="MIT by its card; text of Reddit's users",
      files=f'SHP/{folder}/{{train,validation,test}}.json[l]',
    ),
    read=read,
  )


add_shp_tasks('shp')
