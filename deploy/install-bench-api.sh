#!/bin/sh
# Installs what `make bench-api` needs and the machine lacks: wrk, and Node with npm for the recipe it compares with.
# Debian and Ubuntu by apt-get, macOS by brew. Does nothing when all are there.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

missing=""
has wrk || missing="$missing wrk"
has node || missing="$missing nodejs"
has npm || missing="$missing npm"
[ -n "$missing" ] || exit 0

if has apt-get; then
  sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    has sudo || { echo "cannot install$missing: run as root, or install sudo" >&2; exit 1; }
    sudo=sudo
  fi
  echo "installing$missing" >&2
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
elif has brew; then
  has wrk || brew install wrk
  has npm || brew install node
else
  echo "please install$missing" >&2
  exit 1
fi
