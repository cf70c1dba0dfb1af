"""Folders to report on, written by hand, and reports taken apart."""

import html.parser
import json
import re

CONFIG = """
from perlhf_jax.stages import {command}
TRAIN_STEPS = 40
{command}.{command}.loop = @train_loop.LoopConfig()
"""
# Elements without an end.
_VOID = {'meta', 'img', 'link', 'br', 'hr', 'input'}
_LOADS = ('src', 'href', 'xlink:href', 'data', 'action', 'poster', 'srcset')


class Parsed(html.parser.HTMLParser):
  """What a page holds.

  Attributes:
    elements: (name, attributes) of each element.
    text: all text outside of styles.
  """

  def __init__(self, text):
    super().__init__()
    self.elements, self._open, self._texts = [], [], []
    self.feed(text)
    self.close()
    assert not self._open, 'elements are not closed'
    self.text = ' '.join(' '.join(self._texts).split())

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] != 'style':
      self._texts.append(data)

  def all(self, name):
    """Returns the attributes of all elements of a name."""
    return [attrs for tag, attrs in self.elements if tag == name]

  def loaded(self):
    """Returns all that a browser would fetch."""
    found = [
      attrs[name]
      for _, attrs in self.elements
      for name in _LOADS
      if name in attrs
    ]
    return [each for each in found if not each.startswith(('#', 'data:image/'))]


def parse(path):
  """Reads a report, and checks what holds for each."""
  text = path.read_text(encoding='utf-8')
  page = Parsed(text)
  assert page.loaded() == []
  assert not re.search(r'@import|url\((?!#)', text)
  names = {tag for tag, _ in page.elements}
  assert not names & {'script', 'iframe', 'object', 'embed', 'link', 'base'}
  for _, attrs in page.elements:
    assert not [name for name in attrs if name.startswith('on')]
  assert len(page.all('h1')) == 1
  assert page.all('html')[0]['lang'] == 'en'
  for svg in page.all('svg'):
    assert svg['role'] == 'img'
    assert svg['aria-label']
    assert re.match(r'0 0 \d', svg['viewbox'])
    assert 'width' not in svg
  for image in page.all('img'):
    assert image['alt']
  for header in page.all('th'):
    assert header['scope'] in ('col', 'row')
  return page


def write(folder, **files):
  """Writes files, named with __ for a dot; lists become lines."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in files.items():
    path = folder / name.replace('__', '.')
    if isinstance(content, list):
      content = ''.join(json.dumps(each) + '\n' for each in content)
    elif not isinstance(content, str):
      content = json.dumps(content)
    path.write_text(content)
  return folder


def records(names, steps=40, period=10):
  """Records of training at each step, and of validation now and then."""
  found = []
  for step in range(1, steps + 1):
    numbers = {name: step / (place + 1) for place, name in enumerate(names)}
    found.append({'step': step, 'split': 'train', **numbers})
    if step % period == 0:
      found.append({'step': step, 'split': 'eval', **numbers})
  return found


SUMMARY = {
  'trainable_fraction': 0.0455,
  'steps': 40,
  'examples_per_second': 676.4,
  'seconds_per_step': 0.095,
  'step_memory_bytes': 64_800_000,
  'devices': 2,
  'device_kind': 'cpu',
}


def reward_evaluation(accuracy):
  """The eval.json of a reward model on pairs."""
  bins = {
    'edges': [0.5, 0.75, 1.0],
    'examples': [40, 60],
    'value': [0.6, 0.9],
    'outcome': [0.65, accuracy],
    'standard_error': [0.05, None],
  }
  return {
    'task': 'demo_rm',
    'split': 'test',
    'examples': 100,
    'pairwise_accuracy': accuracy,
    'pairwise_accuracy/chosen_longer': 0.875,
    'calibration_error': 0.0125,
    'bins': {'reliability': bins, 'length_difference': bins},
  }


def policy_evaluation(score, response):
  """The eval.json of a policy, with one sample."""
  return {
    'checkpoint': '/runs/policy/checkpoints/40',
    'step': 40,
    'task': 'demo_prompts',
    'split': 'test',
    'examples': 1,
    'judge_score': score,
    'kl_k1': 1.5,
    'win_rate': 0.8,
    'win_rate_standard_error': 0.01,
    'samples': [
      {'prompt': 'todo: Vet tea', 'response': response, 'judge_score': score}
    ],
  }


def config(command):
  """A config.gin."""
  return CONFIG.format(command=command)
