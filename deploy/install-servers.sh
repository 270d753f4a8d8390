#!/bin/sh
# Installs what the demo and the tests need and the machine lacks: a C compiler for linking, PostgreSQL's
# and Redis's programs. Debian and Ubuntu by apt-get, macOS by brew. Does nothing when all are there.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }

has_postgres() {
  [ -n "${UNSTALE_PG_BIN:-}" ] && [ -x "$UNSTALE_PG_BIN/initdb" ] && return 0
  for initdb in /usr/lib/postgresql/*/bin/initdb /opt/homebrew/opt/postgresql@*/bin/initdb /usr/local/opt/postgresql@*/bin/initdb; do
    [ -x "$initdb" ] && return 0
  done
  has initdb
}

missing=""
has cc || missing="$missing gcc libc6-dev"
has_postgres || missing="$missing postgresql"
has redis-server || has valkey-server || missing="$missing redis-server"
[ -n "$missing" ] || exit 0

if has apt-get; then
  sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    has sudo || { echo "cannot install$missing: run as root, or install sudo" >&2; exit 1; }
    sudo=sudo
  fi
  echo "installing$missing" >&2
  $sudo apt-get update -qq
  # At run level 1 the packages do not start their services: we start servers of our own.
  $sudo env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
elif has brew; then
  has_postgres || brew install postgresql@17
  has redis-server || brew install redis
else
  echo "please install$missing (or name PostgreSQL's programs in UNSTALE_PG_BIN and Redis in UNSTALE_REDIS_SERVER)" >&2
  exit 1
fi
