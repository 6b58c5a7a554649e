# Sourced by the other scripts, with `extras` set to the extras to install ("" or
# "[test]"). Installs this checkout into the active environment, or into .venv if none is
# active, unless that is already done, and sets `python` to its interpreter. Makes glibc
# request huge pages from Linux, since XLA maps its temporaries anew at every step.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

fail() {
  echo "iterinf: $1" >&2
  exit 1
}

is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate recent=
  for candidate in python3.11 python3.12 python3.13 python3; do
    is_recent "$candidate" || continue
    recent=$candidate
    "$candidate" -c 'import ensurepip, venv' 2>/dev/null || continue
    base=$candidate
    return
  done
  [[ -z $recent ]] || fail "$recent has no venv module: install it (on Debian and \
Ubuntu the package python3-venv), or activate an environment."
  fail "no Python 3.11 or newer was found: install one, or activate an environment \
that has it."
}

environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
if [[ -n $environment ]]; then
  python=$environment/bin/python
  is_recent "$python" || fail "the active environment $environment has no Python 3.11 \
or newer: activate another, or deactivate it and a .venv will be made."
else
  environment=$PWD/.venv
  python=$environment/bin/python
fi

stamp=$environment/iterinf$extras.stamp
wanted="$PWD $(cat setup.cfg pyproject.toml requirements.txt | cksum)"
if [[ ! -x $python || $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
  base=
  if [[ $environment == "$PWD/.venv" ]]; then
    is_recent "$python" && "$python" -m pip --version >/dev/null 2>&1 || find_python
  fi
  echo "Installing iterinf into $environment (a few minutes, once) ..."
  [[ -z $base ]] || "$base" -m venv --clear .venv || fail "$base could not make .venv."
  "$python" -m pip --version >/dev/null 2>&1 ||
    fail "$environment has no pip: install it there, or deactivate the environment."
  # The pins are for Python 3.11 and would replace the jax of an active environment, which
  # may be built for its accelerator; there only the bounds of setup.cfg apply.
  constraints=()
  if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' &&
    { [[ $environment == "$PWD/.venv" ]] || ! "$python" -c 'import jax' 2>/dev/null; }; then
    constraints=(-c requirements.txt)
  fi
  # compat: installs a plain path, which a folder of the same name cannot shadow.
  "$python" -m pip install --quiet --no-input --disable-pip-version-check \
    --config-settings editable_mode=compat \
    ${constraints[@]+"${constraints[@]}"} -e ".$extras" ||
    fail "pip could not install the packages: the reason stands above."
  echo "$wanted" >"$stamp"
fi
