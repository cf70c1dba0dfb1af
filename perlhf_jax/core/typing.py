"""Type aliases shared by all packages.

Dimension names in annotations: `batch` examples, `length` positions,
`prompt_length` and `response_length` lengths of the encoder's and the decoder's
input, `embed` model width, `heads` attention heads, `head_dim` width of one
head, `vocab` token ids, `responses` responses of one prompt, `rows` responses
of all prompts (batch x responses).
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
