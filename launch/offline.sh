#!/usr/bin/env bash
# Runs Table 1 on a machine without a network that limits call time and upload size.
#
#   launch/offline.sh pack CAMVID [PYTHON]    here: fills offline/ (ignored by git) with
#       wheels for that Python (3.12) and with CamVid in parts of at most 52 MiB; a copy
#       of CamVid with lossless WebP images under the same names takes a quarter less
#   launch/offline.sh unpack                  there, once per uploaded part: installs the
#       wheels and adds the part; the last part unpacks CamVid
#   launch/offline.sh run MINUTES OUT CONFIG...   there, repeatedly: resumes
#       launch.table1, then copies tables, curves and figures to OUT
#
# The machine must have JAX for its accelerator, Flax, Optax, Orbax and Matplotlib. Files
# are kept in $ITERINF_HOME (default ~/iterinf); $ITERINF_FLAGS holds flags for every run,
# $ITERINF_JOBS the number of concurrent processes (1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

home=${ITERINF_HOME:-$HOME/iterinf}
# Packages that such machines usually lack.
packages=(ml-collections grain array-record portpicker jaxtyping wadler-lindig tqdm cloudpickle)
part_size=52M

pack() {
  rm -rf offline
  mkdir -p offline/wheels offline/parts
  python3 -m pip download --quiet --no-deps --only-binary=:all: -c requirements.txt \
    --python-version "${2:-3.12}" --platform manylinux_2_28_x86_64 \
    --platform manylinux2014_x86_64 --dest offline/wheels "${packages[@]}"
  tar -C "$1" -c . | split -b "$part_size" -d - offline/parts/camvid.
  ls offline/parts | wc -l >offline/num_parts
  du -sh offline/wheels offline/parts/*
}

unpack() {
  mkdir -p "$home/parts"
  if [[ ! -d $home/site ]]; then
    rm -rf "$home/site.tmp"
    python3 -m pip install --quiet --no-index --no-deps --target "$home/site.tmp" \
      offline/wheels/*.whl
    mv "$home/site.tmp" "$home/site"
  fi
  cp offline/parts/camvid.* "$home/parts"
  if [[ $(ls "$home/parts" | wc -l) == "$(cat offline/num_parts)" ]]; then
    mkdir -p "$home/camvid"
    cat "$home"/parts/camvid.* | tar -C "$home/camvid" -x
  fi
  ls "$home"
}

run() {
  local minutes=$1 out=$2 configs=("${@:3}") status=0
  export PYTHONPATH=$PWD:$home/site JAX_COMPILATION_CACHE_DIR=$home/cache
  python3 -m launch.table1 --configs="$(IFS=,; echo "${configs[*]}")" \
    --workdir="$home/runs" --minutes="$minutes" --jobs="${ITERINF_JOBS:-1}" -- \
    --config.dataset.options.path="$home/camvid" ${ITERINF_FLAGS:-} || status=$?
  cp "$home"/runs/table1.* "$out" 2>/dev/null || true
  tar -C "$home/runs" -czf "$out/results.tar.gz" --exclude=checkpoints .
  return $status
}

case ${1:-} in
  pack | unpack | run) "$@" ;;
  *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
