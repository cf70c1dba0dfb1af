"""What a report holds, before it is HTML.

Texts are plain: the template escapes them. `rendering` bounds each text.
"""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Fact:
  """A headline figure.

  Attributes:
    label: what it is.
    value: the figure.
    note: where it is from, in a few words.
  """

  label: str
  value: str
  note: str = ''


@dataclasses.dataclass(frozen=True)
class Figure:
  """A plot.

  Attributes:
    title: title and accessible name.
    svg: an `svg` element, as `drawing` makes it.
    caption: what it shows, below it.
  """

  title: str
  svg: str
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class Figures:
  """Plots side by side, as many as fit."""

  figures: Sequence[Figure]
  kind: str = 'figures'


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; the first cell of each row is its header.

  Attributes:
    caption: title.
    columns: headers.
    rows: cells.
    note: what to know about it.
  """

  caption: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str]]
  note: str = ''
  kind: str = 'table'


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph."""

  text: str
  kind: str = 'text'


@dataclasses.dataclass(frozen=True)
class Listing:
  """Preformatted text that opens on demand."""

  title: str
  text: str
  kind: str = 'listing'


@dataclasses.dataclass(frozen=True)
class Answer:
  """A response.

  Attributes:
    label: who gave it.
    text: the response.
    scores: its figures, as text.
  """

  label: str
  text: str
  scores: str = ''


@dataclasses.dataclass(frozen=True)
class Sample:
  """A prompt and its responses.

  Attributes:
    prompt: text.
    answers: responses.
    references: right answers.
    images: data URIs of its images.
  """

  prompt: str
  answers: Sequence[Answer]
  references: Sequence[str] = ()
  images: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Samples:
  """Prompts and responses."""

  samples: Sequence[Sample]
  kind: str = 'samples'


Block = Figures | Table | Text | Listing | Samples


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a page with a heading."""

  title: str
  blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Page:
  """A report.

  Attributes:
    title: heading.
    subtitle: what was run.
    facts: headline figures.
    notes: what is missing or damaged, as sentences.
    sections: parts; those without blocks are left out.
  """

  title: str
  subtitle: str
  facts: Sequence[Fact]
  notes: Sequence[str]
  sections: Sequence[Section]
