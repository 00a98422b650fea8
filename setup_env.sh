#!/usr/bin/env bash
# Make ./venv with Python 3.11 or newer and install the exact pins of requirements.txt.
#
#   ./setup_env.sh                      # uses python3.11, else a python3 of at least 3.11
#   ./setup_env.sh --dev                # also what only the tests and benchmarks need (requirements-dev.txt)
#   PYTHON=/path/to/python ./setup_env.sh
#
# Safe to run again: it returns in a moment when nothing changed, installs after a change of the
# pins, and repairs a half-made venv. No sudo; nothing outside this folder is touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

readonly VENV=venv

fail() { printf 'setup_env.sh: %s\n' "$1" >&2; exit 1; }

case "${1:-}" in
    "") files=(requirements.txt) ;;
    --dev) files=(requirements.txt requirements-dev.txt) ;;
    *) fail "unknown option '$1'; there is only --dev" ;;
esac

is_recent_enough() { [ "$("$1" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null)" = True ]; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_recent_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of at least 3.11"
        printf '%s' "$PYTHON"
        return
    fi
    local candidate
    for candidate in python3.11 python3; do
        if is_recent_enough "$candidate"; then printf '%s' "$candidate"; return; fi
    done
    fail "Python 3.11 or newer is needed and was not found. Install it (Debian/Ubuntu: apt install python3.11 python3.11-venv; macOS: brew install python@3.11) or name one: PYTHON=/path/to/python ./setup_env.sh"
}

stamp() { printf '%s/.%s.installed' "$VENV" "$1"; }

is_complete() {
    local file
    for file in "${files[@]}"; do cmp -s "$file" "$(stamp "$file")" || return 1; done
    # From another folder, so that it is the environment that finds the project.
    (root=$PWD && cd / && "$root/$VENV/bin/python" -c 'import config') >/dev/null 2>&1
}
has_working_pip() { "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }

make_venv() {
    local python
    python=$(find_python)
    echo "Making ./$VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV" ||
        fail "'$python -m venv' failed. On Debian/Ubuntu the module comes separately: apt install python3-venv"
}

# Scripts in subfolders import the project's modules: this folder goes onto the path of the environment.
add_project_to_path() {
    local packages
    packages=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    pwd >"$packages/project_root.pth"
}

if is_complete; then
    echo "./$VENV is up to date"
    exit 0
fi
# Delete the old stamps, so that an interrupted installation does not look complete.
for file in "${files[@]}"; do rm -f "$(stamp "$file")"; done
has_working_pip || make_venv
add_project_to_path
echo "Installing ${files[*]} into ./$VENV (a few minutes the first time)"
# --no-cache-dir: pip's cache lies outside this folder.
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir "${files[@]/#/--requirement=}" ||
    fail "pip could not install ${files[*]}; its message is above. Check the network and run ./setup_env.sh again"
for file in "${files[@]}"; do
    cp "$file" "$(stamp "$file").part"
    mv "$(stamp "$file").part" "$(stamp "$file")"
done
echo "Done. Next: ./$VENV/bin/python verify_project.py"
