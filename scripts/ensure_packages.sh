#!/usr/bin/env bash
# Installs the Debian packages that the given commands or files come from, if they are missing.
#   ensure_packages.sh PACKAGE=PROBE ...      PROBE is a command's name, or an absolute path (globs allowed)
# Installs as root, or with sudo where that asks for no password; otherwise says what to run and fails.
set -euo pipefail

missing=()
for pair in "$@"; do
  package="${pair%%=*}" probe="${pair#*=}"
  case "$probe" in
    /*) compgen -G "$probe" >/dev/null || missing+=("$package") ;;
    *) command -v "$probe" >/dev/null || missing+=("$package") ;;
  esac
done
[ "${#missing[@]}" -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  else
    echo "Missing system packages. Please run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
fi
command -v apt-get >/dev/null || { echo "Missing: ${missing[*]} (no apt-get here: install them with your package manager)" >&2; exit 1; }
echo "Installing system packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
