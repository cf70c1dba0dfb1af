"""Type aliases shared by every floor.

Dimension names in annotations, one meaning each: `batch` examples, `length`
positions, `prompt_length` and `response_length` the two sides of an
encoder-decoder, `embed` model width, `heads` attention heads, `head_dim` the
width of one head, `vocab` token ids, `responses` responses of one prompt,
`rows` the responses of all prompts (batch x responses).
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
PyTree = Any
Params = Mapping[str, Any]
Batch = Mapping[str, Array]
Shape = tuple[int, ...]
