#!/bin/bash
# A shell, or one command, in the NeMo container on this node.
# shellcheck disable=SC2016 # what is in single quotes is expanded in the container
set -euo pipefail

usage() {
  cat <<'TEXT'
launch/container.sh [--runtime docker|enroot|apptainer] [--image IMAGE] [--mount HOST:CONTAINER]... [--dry-run]
                    [--] [COMMAND...]

Runs COMMAND (a shell without one) in the container, with this checkout and the current directory under their own
paths and all GPUs of this node. This checkout is installed for it with `pip install --no-deps` into a temporary
folder, never into the image: torch, Transformer Engine, apex and Megatron stay the image's own. The versions found are
printed first.

    launch/container.sh
    launch/container.sh --mount /data:/data -- nemo-tvkd train algorithm=tvkd ...

--runtime   default: the first of docker, enroot, apptainer (or singularity) that is installed here
--image     default: nvcr.io/nvidia/nemo:25.11; apptainer: also a .sif file; enroot: also a .sqsh file or the name of a
            container that was created (an image of a registry is imported to ~/.cache/nemo_tvkd once)
--mount     HOST:CONTAINER, as often as needed
--dry-run   print the command that would be run, and nothing else
TEXT
}

fail() {
  echo "launch/container.sh: $*" >&2
  exit 2
}

runtime=
image=nvcr.io/nvidia/nemo:25.11
mounts=()
dry_run=
while [[ $# -gt 0 ]]; do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --runtime | --image | --mount)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      case $1 in
        --runtime) runtime=$2 ;;
        --image) image=$2 ;;
        --mount) mounts+=("$2") ;;
      esac
      shift 2
      ;;
    --dry-run)
      dry_run=1
      shift
      ;;
    --)
      shift
      break
      ;;
    -*) fail "there is no option $1; see launch/container.sh --help" ;;
    *) break ;;
  esac
done
[[ $# -gt 0 ]] || set -- bash

if [[ -z $runtime ]]; then
  for candidate in docker enroot apptainer singularity; do
    if command -v "$candidate" >/dev/null; then
      runtime=$candidate
      break
    fi
  done
  [[ -n $runtime ]] || fail "none of docker, enroot, apptainer and singularity is installed here"
fi
for mount in ${mounts[@]+"${mounts[@]}"}; do
  [[ $mount == /*:/* ]] || fail "--mount $mount: write /HOST/PATH:/CONTAINER/PATH"
done

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nemo_tvkd
mounts=("$repository:$repository" ${mounts[@]+"${mounts[@]}"})
[[ $PWD == "$repository" ]] || mounts=("$PWD:$PWD" "${mounts[@]}")

# What runs in the container: install a copy of what the package is made of (pip builds inside a checkout), then the
# command in the place of this shell, so that signals reach it.
inside='set -eu
software=$(mktemp -d)
mkdir "$software/source"
(cd "$1" && cp -r pyproject.toml README.md LICENSE nemo_tvkd conf slurm "$software/source")
python -m pip install --quiet --no-deps --no-build-isolation --target "$software/installed" "$software/source"
rm -rf "$software/source"
export PYTHONPATH=$software/installed${PYTHONPATH:+:$PYTHONPATH} PATH=$software/installed/bin:$PATH
shift
python -m nemo_tvkd.commands.doctor.versions
exec "$@"'
command=(bash -c "$inside" launch/container.sh "$repository" "$@")

has_gpus=
if command -v nvidia-smi >/dev/null; then
  has_gpus=1
fi
words=()
import=()
bind() { # OPTION: it and a mount, for each mount
  local mount
  for mount in "${mounts[@]}"; do
    words+=("$1" "$mount")
  done
}
case $runtime in
  docker)
    words=(docker run --rm --interactive)
    [[ ! -t 0 ]] || words+=(--tty)
    [[ -z $has_gpus ]] || words+=(--gpus all)
    words+=(--network host --ipc host --ulimit memlock=-1 --ulimit stack=67108864)
    words+=(--user "$(id -u):$(id -g)" --env HOME=/tmp --env USER --workdir "$PWD")
    bind --volume
    ;;
  enroot)
    if [[ ! -e $image && $image == */* ]]; then # enroot starts files; REGISTRY#IMAGE is its way to write a name
      name=${image#docker://}
      [[ $name != *.*/* || $name == *"#"* ]] || name=${name/\//#}
      image=$cache/${name//[^A-Za-z0-9._-]/+}.sqsh
      import=(enroot import --output "$image.partial" "docker://$name")
    fi
    words=(enroot start --rw)
    bind --mount
    command=(bash -c 'cd "$0" && exec "$@"' "$PWD" "${command[@]}")
    ;;
  apptainer | singularity)
    [[ $image == *.sif || $image == *://* || -d $image ]] || image=docker://$image
    words=("$runtime" exec)
    [[ -z $has_gpus ]] || words+=(--nv)
    words+=(--pwd "$PWD")
    bind --bind
    ;;
  *) fail "--runtime $runtime is none of docker, enroot, apptainer" ;;
esac
words+=("$image" "${command[@]}")

[[ ${#import[@]} -eq 0 || ! -e $image ]] || import=()

if [[ -n $dry_run ]]; then
  if [[ ${#import[@]} -gt 0 ]]; then
    printf '%q ' "${import[@]}"
    printf '&& mv %q %q\n' "$image.partial" "$image"
  fi
  printf '%q ' "${words[@]}"
  echo
  exit 0
fi
command -v "${words[0]}" >/dev/null || fail "${words[0]} is not installed here"
if [[ ${#import[@]} -gt 0 ]]; then
  mkdir -p "$cache"
  "${import[@]}" || fail "enroot could not import ${import[-1]}"
  mv "$image.partial" "$image"
fi
exec "${words[@]}"
