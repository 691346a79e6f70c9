#!/bin/sh
# A stand-in for python:3.11-slim where no registry can be reached: Debian's own packages, through the machine's apt.
#
#   containers/stand_in_base.sh [IMAGE]     default martlet-stand-in:bookworm; an image that is there is left as it is
#   make image ENVIRONMENT=core BASE_IMAGE=martlet-stand-in:bookworm
#
# Needs mmdebstrap (apt-get install mmdebstrap) and a Docker daemon. Takes half a minute.
set -eu
image=${1:-martlet-stand-in:bookworm}
docker=${DOCKER:-docker}

if $docker image inspect "$image" >/dev/null 2>&1; then
  echo "$image is there"
  exit
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mmdebstrap --quiet --variant=minbase \
  --include=ca-certificates,python3-venv,libpython3-dev \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  bookworm "$folder/base.tar"
$docker import --change 'CMD ["python3"]' "$folder/base.tar" "$image" >/dev/null
echo "$image made"
