"""The paper's results by rank, to hold a sweep against.

arXiv:2403.10704 v2, tables 2 and 3, the rows of PaLM 2 S. One run each, without
intervals.
"""

from collections.abc import Mapping, Sequence
import dataclasses

SOURCE = 'arXiv:2403.10704 v2'


@dataclasses.dataclass(frozen=True)
class PaperTable:
  """A table of the paper.

  Attributes:
    title: what it holds, with its number.
    measure: what the numbers are, all in percent.
    data_sets: names of the columns.
    full: the row of full tuning.
    by_rank: the rows of LoRA by rank.
    start: the row of the SFT model; None for reward models.
  """

  title: str
  measure: str
  data_sets: Sequence[str]
  full: Sequence[float]
  by_rank: Mapping[int, Sequence[float]]
  start: Sequence[float] | None = None


REWARD = PaperTable(
  title='Table 2: reward models, PaLM 2 S',
  measure='pairwise accuracy',
  data_sets=('Harmless', 'SHP', 'TL;DR', 'UI'),
  full=(76.6, 83.2, 78.7, 93.1),
  by_rank={
    16: (75.0, 81.3, 77.0, 92.2),
    8: (79.1, 81.6, 77.3, 92.0),
    4: (78.7, 82.2, 79.7, 91.2),
    1: (76.0, 80.9, 77.2, 90.8),
  },
)
POLICY = PaperTable(
  title='Table 3: reinforcement learning, PaLM 2 S',
  measure='harmless rate, win rate (SHP, TL;DR, BOLT) or right actions (UI)',
  data_sets=('Harmless', 'SHP', 'TL;DR', 'BOLT', 'UI'),
  full=(96.6, 63.0, 87.0, 73.2, 81.6),
  by_rank={
    16: (96.4, 61.3, 86.5, 75.5, 86.4),
    8: (97.7, 58.3, 85.7, 73.4, 85.4),
    4: (96.7, 60.1, 84.2, 73.9, 84.5),
    1: (98.2, 57.9, 85.0, 73.1, 77.7),
  },
  start=(75.5, 50.0, 50.0, 50.0, 77.7),
)
OF_COMMAND = {'train_reward': REWARD, 'train_policy': POLICY}
