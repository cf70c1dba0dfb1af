# The steps of a demo, from SFT to policies that are judged. Sourced by
# launch/demo.sh, launch/demo_vqa.sh and launch/easy_vqa.sh.
# shellcheck shell=bash

say_how_long() { # MINUTES, which it took on two CPU cores
  echo "This takes about $1 minutes on two CPU cores (this machine has" \
    "$(nproc)), and a few minutes more on the first start, which installs." \
    "Start it again after a stop, and it goes on where it stopped."
}

# WORLD is the prefix of the tasks and the folder of gin/ that describes them.
start_demo() { # ROOT WORLD MODEL OUTPUT_DIR, then extras to install
  root="$1" world="$2" model="$3"
  "$root/launch/setup_venv.sh" "${@:5}"
  export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
  export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"
  # A device per core: two of them trained the text demo's models 1.4 times as
  # fast as one device with two threads did.
  if [[ -z "${JAX_NUM_CPU_DEVICES:-}" && -z "${XLA_FLAGS:-}" ]]; then
    local cores=8 # A power of two, by which the batch can be divided.
    while ((cores > $(nproc))); do ((cores /= 2)); done
    export JAX_NUM_CPU_DEVICES="$cores"
  fi
  mkdir -p "$4"
  output="$(cd "$4" && pwd -P)"
  cd "$root" || exit
  env | grep '^JAX_' | sort | sed 's/^/$ export /'
  SECONDS=0
}

perlhf() {
  printf '\n$ perlhf' && printf ' %q' "$@" && echo
  .venv/bin/perlhf "$@"
}

train() { # COMMAND NAME TASK TUNING, then more bindings
  perlhf "$1" --gin_file="gin/models/$model.gin" --gin_file="gin/lora/$4.gin" \
    --gin_file=gin/optimizers/adamw.gin \
    --gin_file="gin/$world/world.gin" \
    --gin.MODEL_DIR="'$output/$2'" \
    --gin.MIXTURE_OR_TASK_NAME="'${world}_$3'" "${@:5}"
}

sft() { # TASK, then bindings
  train train_sft sft "$1" none "${@:2}"
}

reward() { # NAME TUNING, then more bindings
  train train_reward "$1" rm "$2" \
    --gin.INITIAL_CHECKPOINT_PATH="'$output/sft'" "${@:3}"
  perlhf evaluate --checkpoint="$output/$1/checkpoints/best"
}

policy() { # NAME TUNING, then more bindings
  train train_policy "$1" prompts "$2" \
    --gin_file=gin/rl/reinforce.gin --gin_file="gin/$world/policy.gin" \
    --gin.INITIAL_CHECKPOINT_PATH="'$output/sft'" \
    --gin.REWARD_CHECKPOINT="'$output/reward_lora/checkpoints/best'" "${@:3}"
}

preference() { # NAME TUNING, then more bindings: DPO on the pairs of `reward`
  train train_dpo "$1" rm "$2" \
    --gin.INITIAL_CHECKPOINT_PATH="'$output/sft'" "${@:3}"
}

judge() { # CHECKPOINT, then more bindings: the gold score of sampled answers
  perlhf evaluate --gin_file="gin/$world/gold.gin" --checkpoint="$1" \
    --gin.MIXTURE_OR_TASK_NAME="'${world}_prompts'" --gin.TEMPERATURE=1.0 \
    "${@:2}"
}

judge_all() { # names of policies; SFT is judged too
  local name
  judge "$output/sft"
  for name in "$@"; do
    judge "$output/$name" --gin.BASELINE_CHECKPOINT="'$output/sft'"
  done
}

print_table() {
  .venv/bin/python launch/demo_table.py "$output" "$SECONDS"
}

write_report() { # With the extra `report`.
  perlhf report --model_dir="$output"
}
