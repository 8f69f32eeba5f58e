#!/bin/bash
# One stage of a recipe on this machine, without Slurm.
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/local.sh STAGE recipe=NAME [cluster=NAME] [KEY=VALUE | STAGE.KEY=VALUE | STAGE=PATH]...

Runs one stage of a recipe here, as `nemo-tvkd submit` would in its job: one process for each rank, in this
environment. Stages write to the same run folder, so one after the other makes the chain:

    launch/local.sh student_sft recipe=tvkd-llama-8b-1b run_dir=/runs/first
    launch/local.sh train recipe=tvkd-llama-8b-1b run_dir=/runs/first teacher_dpo=/models/teacher

cluster=local is the default. SIGUSR1, SIGTERM and Ctrl-C make training and scoring save their work and leave with
exit code 85; the same command goes on from there. PYTHON=... names another interpreter than the .venv of this checkout.
TEXT
}

case ${1-} in
  -h | --help)
    usage
    exit 0
    ;;
  "" | -* | *=*)
    echo "launch/local.sh: the first word is the name of a stage; see launch/local.sh --help" >&2
    exit 2
    ;;
esac
stage=$1
shift

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${PYTHON-} ]]; then
  PYTHON=python3
  [[ ! -x $repository/.venv/bin/python ]] || PYTHON=$repository/.venv/bin/python
fi
has_cluster=
for word in "$@"; do
  [[ $word != cluster=* ]] || has_cluster=1
done
[[ -n $has_cluster ]] || set -- cluster=local "$@"

export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
exec "$PYTHON" -m nemo_tvkd submit "$@" --here "$stage" # exec: signals reach it
