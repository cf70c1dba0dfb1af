r"""TL;DR: summaries of Reddit posts, and which of two summaries is better.

Source: https://github.com/openai/summarize-from-feedback (Stiennon et al.
2020). The comparisons are under a modified MIT licence; the posts are from
https://zenodo.org/record/1168855, CC BY 4.0.

Files, as upstream has them, under PERLHF_DATA_DIR directly, in `tldr/` or in
`summarize-from-feedback/`:
  [dataset/]comparisons/*.json: JSON lines, despite the suffix. A record has
    `info` (id, post, title, subreddit), two `summaries` (text, policy, note),
    `choice` (0 or 1, the better one) and `split`. Records on CNN/DM articles,
    which have `info.article` and no post, are left out.
  [datasets/]tldr_3_filtered/{train,valid,test}.jsonl: records with id,
    subreddit, title, post and summary.

Tasks: tldr_rm (pairwise, the comparisons), tldr_sft and tldr_prompts (the
filtered posts).

Splits are upstream's. tldr_sft and tldr_prompts: train, validation (their
`valid`) and test. tldr_rm uses the `split` of each record: `train` is train,
`valid1`, on which upstream selected models, is validation, and `valid2`, on
which they reported results, is test.

A prompt is
  SUBREDDIT: r/legaladvice
  TITLE: A question about a parking ticket
  POST: I found a ticket on my car ...
  TL;DR:
with one line break between fields; upstream used two.
"""

from collections.abc import Mapping
from typing import Any

from perlhf_jax.data import json_rows
from perlhf_jax.data import preference_tasks
from perlhf_jax.data import sources

HOMEPAGE = 'https://github.com/openai/summarize-from-feedback'

# Our splits, and their names in upstream's files and records.
_POSTS = {'train': 'train', 'validation': 'valid', 'test': 'test'}
_COMPARISONS = {'train': 'train', 'validation': 'valid1', 'test': 'valid2'}
_PLACES = ('summarize-from-feedback/', 'tldr/', '')
_COMPARISON_FILES = tuple(
  f'{place}{folder}comparisons/*.json'
  for place in _PLACES
  for folder in ('', 'dataset/')
)


def render_prompt(post: str, title: str = '', subreddit: str = '') -> str:
  """Writes a post as a prompt that asks for its summary.

  Args:
    post: text to summarise.
    title: title of the post; the line is left out if empty.
    subreddit: subreddit of the post, without `r/`; likewise.

  Raises:
    ValueError: the post is empty.
  """
  if not post.strip():
    raise ValueError('the post is empty')
  lines = [f'SUBREDDIT: r/{subreddit.strip()}'] * bool(subreddit.strip())
  lines += [f'TITLE: {title.strip()}'] * bool(title.strip())
  return '\n'.join([*lines, f'POST: {post.strip()}', 'TL;DR:'])


def to_prompt_and_response(
  record: Mapping[str, Any], which: str = 'chosen'
) -> tuple[str, str]:
  """Returns prompt and response of a raw record, as the tasks read them.

  Args:
    record: a comparison, or a post with its summary.
    which: for a comparison, the response to return, `chosen` or `rejected`.

  Raises:
    ValueError: the post is empty, or a comparison does not have two summaries
      and a valid choice.
  """
  if 'info' not in record:
    return _prompt_of(record), record['summary'].strip()
  summaries, choice = record['summaries'], record['choice']
  if len(summaries) != 2:
    raise ValueError(f'there are {len(summaries)} summaries, not 2')
  if choice not in (0, 1):
    raise ValueError(f'the choice is {choice!r}, neither 0 nor 1')
  summary = summaries[choice if which == 'chosen' else 1 - choice]
  return _prompt_of(record['info']), summary['text'].strip()


def parse_pair(record: Mapping[str, Any]) -> dict[str, str] | None:
  """Returns a comparison's pairwise features; None for a CNN/DM article."""
  if 'article' in record['info'] and not record['info'].get('post'):
    return None
  prompt, chosen = to_prompt_and_response(record)
  _, rejected = to_prompt_and_response(record, which='rejected')
  return {'inputs': prompt, 'chosen': chosen, 'rejected': rejected}


def parse_sft(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns the author's own summary as a demonstration."""
  prompt, response = to_prompt_and_response(record)
  return {'inputs': prompt, 'targets': response}


def parse_prompt(record: Mapping[str, Any]) -> dict[str, str]:
  """Returns only the prompt."""
  return {'inputs': _prompt_of(record)}


def _prompt_of(post: Mapping[str, Any]) -> str:
  return render_prompt(post['post'], post['title'], post['subreddit'])


def find_split(record: Mapping[str, Any]) -> str:
  """Returns our split of a comparison.

  Raises:
    ValueError: upstream's split is unknown.
  """
  for split, upstream in _COMPARISONS.items():
    if record['split'] == upstream:
      return split
  raise ValueError(
    f'the split is {record["split"]!r}, not one of'
    f' {", ".join(_COMPARISONS.values())}'
  )


def _post_files(upstream_split: str) -> tuple[str, ...]:
  return tuple(
    f'{place}{folder}tldr_3_filtered/{upstream_split}.jsonl'
    for place in _PLACES
    for folder in ('', 'datasets/')
  )


preference_tasks.add_text_task(
  'tldr_rm',
  sources.FileSource(
    'pairwise',
    (
      (sources.FileGroup(_COMPARISON_FILES, dict.fromkeys(_COMPARISONS, 1.0)),),
    ),
    parse_pair,
    sources.DatasetInfo(
      description='TL;DR comparisons',
      homepage=HOMEPAGE,
      licence='modified MIT, posts CC BY 4.0',
      files='[tldr/][dataset/]comparisons/*.json',
    ),
    read=json_rows.read_lines,
    find_splits=lambda path: find_split,
  ),
)

for _name, _kind, _parse in (
  ('tldr_sft', 'sft', parse_sft),
  ('tldr_prompts', 'prompts', parse_prompt),
):
  preference_tasks.add_preference_task(
    _name,
    _kind,
    _parse,
    (
      [
        sources.FileGroup(_post_files(upstream), {split: 1.0})
        for split, upstream in _POSTS.items()
      ],
    ),
    info=sources.DatasetInfo(
      description='filtered TL;DR posts',
      homepage=HOMEPAGE,
      licence='CC BY 4.0',
      files='[tldr/][datasets/]tldr_3_filtered/{train,valid,test}.jsonl',
    ),
  )
