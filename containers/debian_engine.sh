#!/bin/sh
# Docker Engine of Debian's packages, installed and started where no daemon answers; needs root. For CI and new machines.
#
#   containers/debian_engine.sh && make test
set -eu
docker=/usr/bin/docker
if $docker info >/dev/null 2>&1; then
  echo "a Docker daemon answers"
  exit
fi
if ! command -v dockerd >/dev/null || ! command -v docker-compose >/dev/null || ! command -v mmdebstrap >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends docker.io docker-compose mmdebstrap \
    >/dev/null
fi
log=/var/log/dockerd.log
setsid dockerd >"$log" 2>&1 </dev/null &
for _ in $(seq 60); do
  if $docker info >/dev/null 2>&1; then
    echo "dockerd runs, its log is $log"
    exit
  fi
  sleep 1
done
echo "error: dockerd does not answer: $(tail -n 1 "$log")" >&2
exit 1
