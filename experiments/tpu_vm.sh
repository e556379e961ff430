#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on all workers of a pod slice.
#
#   experiments/tpu_vm.sh [--dry-run] NAME STEP...
#
# Steps, in the order in which they are usually given:
#   create    creates the machine (ZONE, TYPE, VERSION)
#   install   copies this project to every worker and installs it there
#   run       starts training on every worker at once (FLAGS are those of hlrcml_jax.main)
#   log       follows the first worker's output
#   delete    deletes the machine
#   all       create, install, run and log
#
# --dry-run prints the commands, quoted for a shell, and runs none. NAME has lower-case letters,
# digits and hyphens, and begins with a letter. On a pod slice, all workers must share the --workdir,
# such as gs://BUCKET/RUN. Needs gcloud, with a project and credentials.
set -euo pipefail

: "${ZONE:=us-central2-b}"
: "${TYPE:=v4-8}"
: "${VERSION:=tpu-ubuntu2204-base}"
: "${FLAGS:=--config=configs/best.py --config.data.path=plays.csv --workdir=runs/tpu}"
: "${PYTHON:=python3.11}"

folder=$(cd "$(dirname "$0")/.." && pwd)
dry_run=
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=yes
  shift
fi
if (($# < 2)); then
  sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1
shift
if [[ ! $name =~ ^[a-z][a-z0-9-]*$ ]]; then
  echo "$0: '$name' cannot be the name of a TPU VM; see the comment at its beginning." >&2
  exit 2
fi
for step in "$@"; do
  case $step in
    create | install | run | log | delete | all) ;;
    *)
      echo "$0: there is no step '$step'; see the comment at its beginning." >&2
      exit 2
      ;;
  esac
done

# Runs a command, or prints it.
give() {
  if [[ -n "$dry_run" ]]; then
    local word
    for word in "$@"; do
      [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
      printf '%s ' "$word"
    done
    printf '\n'
  else
    "$@"
  fi
}

tpu() {
  local verb=$1
  shift
  give gcloud compute tpus tpu-vm "$verb" "$name" --zone="$ZONE" "$@"
}

on() {
  tpu ssh --worker="$1" --command="$2"
}

create() {
  tpu create --accelerator-type="$TYPE" --version="$VERSION"
}

install() {
  local archive
  archive=$(mktemp -d)/hlrcml_jax.tar.gz
  give git -C "$folder" archive --format=tar.gz --prefix=hlrcml_jax/ --output="$archive" HEAD
  give gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$ZONE" --worker=all
  on all "tar xzf hlrcml_jax.tar.gz && cd hlrcml_jax && $PYTHON -m venv .venv && .venv/bin/pip install -q '.[tpu,gcs]'"
}

run() {
  on all "cd hlrcml_jax && nohup .venv/bin/python -m hlrcml_jax.main $FLAGS > train.log 2>&1 < /dev/null &"
}

log() {
  on 0 "tail -n +1 -f hlrcml_jax/train.log"
}

delete() {
  tpu delete --quiet
}

for step in "$@"; do
  if [[ $step == all ]]; then
    for each in create install run log; do "$each"; done
  else
    "$step"
  fi
done
