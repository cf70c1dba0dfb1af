#!/usr/bin/env bash
# Measures the large models on one GPU, in at most 8 minutes: T5 1.1 XL and XXL
# with random weights in bfloat16, the reward step, an iteration of
# reinforcement learning and the sampler, LoRA against full tuning where both
# fit, and the shares of the GPU's measured rates. A plain PyTorch + PEFT loop
# is measured, too, if the same Python has torch, transformers, peft and trl.
#
#   launch/gpu_check.sh [--dry] OUTPUT_DIR
#
# Installs nothing. PYTHON (default python3) needs jax with CUDA, flax, optax,
# orbax-checkpoint, gin-config and jaxtyping. OUTPUT_DIR gets the logs and the
# figures. --dry runs tiny shapes on a CPU, to check the script itself.
set -euo pipefail

usage() {
  sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
}

dry=
if [[ "${1:-}" == --dry ]]; then
  dry=1
  shift
fi
[[ $# == 1 && "$1" != -* ]] || usage
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
python="${PYTHON:-python3}"
mkdir -p "$1"
output="$(cd "$1" && pwd -P)"
export PYTHONPATH="$root" PYTHONDONTWRITEBYTECODE=1
cd "$output"

modules='jax, flax, optax, orbax.checkpoint, gin, jaxtyping'
if ! "$python" -c "import $modules" 2>/dev/null; then
  echo "$python cannot import one of $modules. In an environment of its own:" \
    'pip install "jax[cuda12]" flax optax orbax-checkpoint gin-config' \
    'jaxtyping; then give it as PYTHON.' >&2
  exit 1
fi
platform="$("$python" -c 'import jax; print(jax.default_backend())')"
if [[ -z "$dry" && "$platform" != gpu ]]; then
  echo "jax of $python finds no GPU (it uses the $platform). Install" \
    '"jax[cuda12]", or give --dry to try the script.' >&2
  exit 1
fi

limit=480
left() { # SECONDS at most
  local rest=$((limit - SECONDS))
  ((rest < $1)) && echo "$rest" || echo "$1"
}

# A part that fails, as for want of memory, leaves the others to come.
part() { # SECONDS NAME COMMAND...
  local seconds name="$2"
  seconds="$(left "$1")"
  if ((seconds < 5)); then
    printf '\n== %s: no time is left\n' "$name"
    return
  fi
  printf '\n== %s\n' "$name"
  if ! timeout "$seconds" "${@:3}" 2>"$name.log"; then
    echo "did not end well within $seconds s; the end of $output/$name.log:"
    tail -n 3 "$name.log"
  fi
}

benchmark() { # SECONDS NAME MODEL BATCH_SIZE TUNINGS, then more bindings
  part "$1" "$2" "$python" -m perlhf_jax benchmark \
    --gin_file="gin/models/$3.gin" --gin_file=gin/rl/reinforce.gin \
    --gin.TASK_FEATURE_LENGTHS="{'inputs': $inputs, 'targets': $targets}" \
    --gin.BATCH_SIZE="$4" --gin.TUNINGS="$5" --gin.REPEATS=3 \
    --output="$output/$2.json" "${@:6}"
}

loop() { # SECONDS NAME SIZE DTYPE BATCH_SIZE
  "$python" - "$inputs" "$targets" >rows.jsonl <<'EOF'
import json, random, sys

inputs, targets = map(int, sys.argv[1:])


def tokens(length):
  size = random.randint(-(-length // 4), length)
  return [random.randint(2, 32000) for _ in range(size - 1)] + [1]


for _ in range(256):
  row = {'inputs': tokens(inputs)}
  row |= {name: tokens(targets) for name in ('chosen', 'rejected')}
  print(json.dumps(row))
EOF
  echo 0 | part "$1" "$2" "$python" "$root/tests/peers/torch_reward.py" \
    --model=loop --rows=rows.jsonl --size="$3" --dtype="$4" \
    --batch_size="$5" --per_round=3 --num_rounds=1 | tee "$2.txt"
}

has_torch() {
  "$python" -c 'import torch, transformers, peft, trl' 2>/dev/null
}

if [[ -n "$dry" ]]; then
  inputs=16 targets=8
  tiny=()
  for field in emb_dim=16 num_heads=2 head_dim=8 mlp_dim=32 \
    num_encoder_layers=1 num_decoder_layers=1; do
    tiny+=("--gin.T5Config.$field")
  done
  benchmark 300 tiny t5_tiny 2 "('lora',)" "${tiny[@]}"
  ! has_torch || loop 120 loop_tiny tiny float32 2
else
  inputs=512 targets=64
  benchmark 250 xl t5_1_1_xl 16 "('lora', 'full')"
  # Of no use where the first part succeeded.
  [[ -e xl.json ]] || benchmark 120 xl_lora t5_1_1_xl 16 "('lora',)"
  benchmark 150 xxl t5_1_1_xxl 8 "('lora',)"
  if has_torch; then
    loop 60 loop_xl xl bfloat16 16
    loop 60 loop_xxl xxl bfloat16 8
  fi
fi
printf '\nTook %d s; figures and logs are in %s.\n' "$SECONDS" "$output"
