"""A tiny PaLI with random weights, prompts with images, and images in files."""

import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import tensorflow as tf
import tiny_models

from perlhf_jax.models import pali_config
from perlhf_jax.models import vit_config

VIT = vit_config.ViTConfig(
  image_size=6, patch_size=2, width=20, depth=2, mlp_dim=28, num_heads=4
)
CONFIG = pali_config.PaliConfig(
  **{
    field.name: getattr(tiny_models.CONFIG, field.name)
    for field in dataclasses.fields(tiny_models.CONFIG)
  },
  vit=VIT,
)


def prompts(seed, batch, length, num_images=1):
  """Ragged prompts, each with noise for images; none is absent."""
  rng = np.random.default_rng(seed)
  side = VIT.image_size
  shape = (batch, num_images, side, side, 3)
  return tiny_models.prompts(seed, batch, length).replace(
    images=jnp.asarray(rng.integers(0, 256, shape), jnp.uint8),
    image_mask=jnp.ones((batch, num_images), bool),
  )


def png(seed, height=6, width=6):
  """An encoded image of noise."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
  return tf.io.encode_png(pixels).numpy()


def jpeg(seed, height=6, width=6):
  """The same as a JPEG."""
  return tf.io.encode_jpeg(tf.io.decode_png(png(seed, height, width))).numpy()


def pixels_of(content):
  """Pixels of an encoded image, by another decoder."""
  from PIL import Image

  return np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))
