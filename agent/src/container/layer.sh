# Makes the environment of a conda file inside an image: layer.sh FOLDER PREFIX KEY
#
# FOLDER has what layer.rs put there: the conda file, what takes its packages' place where no conda is,
# the node's uv if it has one, and the variables of all of them. What goes wrong is told by a line that
# begins with 'error:', as installers do.
set -eu
here=$1 into=$2
. "$here/variables"

fail() {
  echo "error: $1"
  exit 1
}

conda_of_image() {
  for one in micromamba mamba conda; do
    command -v "$one" && return
  done
  for one in /opt/*/bin/mamba /opt/*/bin/conda; do
    if [ -x "$one" ]; then
      echo "$one"
      return
    fi
  done
  return 1
}

by_conda() {
  name=${1##*/}
  echo "the image's $name installs the packages"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  # pip's part of the file is written beside it.
  cp "$here/conda.yml" "$work/conda.yml"
  export CONDA_PKGS_DIRS="$work/packages" CONDA_ALWAYS_YES=true MAMBA_ALWAYS_YES=true
  case $name in
    micromamba) set -- "$1" create ;;
    *) set -- "$1" env create ;;
  esac
  {
    code=0
    "$@" --prefix "$into" --file "$work/conda.yml" || code=$?
    echo "$code" >"$work/code"
  } 2>&1 | tee "$work/said"
  if [ "$(cat "$work/code")" != 0 ]; then
    echo "error: $name cannot make the environment:"
    tail -n 12 "$work/said"
    exit 1
  fi
}

# What is not conda's to install has to be there.
check_translation() {
  [ -z "$untranslatable" ] || fail "$untranslatable"
  missing=
  for one in $wanted_programs; do
    command -v "$one" >/dev/null 2>&1 || missing="$missing $one"
  done
  [ -z "$missing" ] || fail "of conda packages that are programs, not Python packages, the image lacks:$missing"
  cat "$here/notes"
}

by_uv() {
  check_translation
  make() { UV_HTTP_RETRIES=1 "$here/uv" venv --relocatable --no-project --python "$1" "$into" 2>&1; }
  if ! said=$(make "${wanted_python:->=3.8}"); then
    if [ -z "$wanted_python" ] || ! make '>=3.8' >/dev/null; then
      echo "$said"
      fail "the image has no Python, and none could be fetched"
    fi
    echo "environment: Python $wanted_python is not in the image and cannot be fetched: using the image's own"
  fi
  "$into/bin/python" --version
  "$here/uv" pip install --python "$into/bin/python" --requirement "$here/requirements.txt"
}

by_pip() {
  check_translation
  command -v python3 >/dev/null || fail "the image has neither a conda nor a Python, and the node's uv does not run in it"
  python3 -m venv "$into" || fail "the image's Python cannot make virtual environments"
  echo "environment: $("$into/bin/python" --version) of the image is used"
  "$into/bin/python" -m pip install --progress-bar off --requirement "$here/requirements.txt"
}

if conda=$(conda_of_image); then
  by_conda "$conda"
elif [ -f "$here/uv" ] && "$here/uv" --version >/dev/null 2>&1; then
  by_uv
else
  by_pip
fi
# Whoever a job runs as may install more, in its own container.
chmod -R a+rwX "$into"
