#!/bin/sh
# Builds the image of one environment from the Dockerfile beside this file.
#
#   containers/build.sh core                                 make image ENVIRONMENT=core
#   BASE_IMAGE=… IMAGE=… containers/build.sh evaluate        default: python:3.11-slim, martlet-evaluate
#
# Of this machine's package settings it uses SSL_CERT_FILE, PIP_CONFIG_FILE and UV_CONFIG_FILE as secrets of the build,
# and the folders of PIP_FIND_LINKS as an image of wheels. None of them stays in the image.
set -eu
cd "$(dirname "$0")/.."
environment=${1:?usage: containers/build.sh ENVIRONMENT}
docker=${DOCKER:-docker}

known=$(sed -n 's/^FROM tools AS \(.*\)-packages$/\1/p' containers/Dockerfile)
if ! echo "$known" | grep -qx "$environment"; then
  echo "error: no image for $environment. Choose from: $(echo "$known" | tr '\n' ' ')" >&2
  exit 2
fi

secret() { # id, file: if there is such a file
  if test -n "$2" && test -e "$2"; then set -- "$1" "$2"; echo "--secret id=$1,src=$2"; fi
}

wheels=no-wheels
for folder in ${PIP_FIND_LINKS:-}; do
  if ! test -d "$folder"; then
    echo "error: PIP_FIND_LINKS names $folder, which is no folder. Only folders of wheels can be passed to a build" >&2
    exit 2
  fi
done
if test -n "${PIP_FIND_LINKS:-}"; then
  # shellcheck disable=SC2086  # several folders
  wheels=martlet-wheels:$(find $PIP_FIND_LINKS -name '*.whl' -printf '%f %s\n' | sort | sha256sum | cut -c 1-12)
  if ! $docker image inspect "$wheels" >/dev/null 2>&1; then
    gathered=$(mktemp -d)
    trap 'rm -rf "$gathered"' EXIT
    # shellcheck disable=SC2086
    find $PIP_FIND_LINKS -name '*.whl' -exec ln -sf -t "$gathered" {} +
    tar -C "$gathered" --dereference -cf - . | $docker import - "$wheels" >/dev/null
  fi
fi

commit=$(git rev-parse HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD -- stages flows 2>/dev/null || commit=$commit+changes
# shellcheck disable=SC2046  # each secret is one word or none
DOCKER_BUILDKIT=1 $docker build --file containers/Dockerfile --tag "${IMAGE:-martlet-$environment}" \
  --build-arg ENVIRONMENT="$environment" --build-arg BASE_IMAGE="${BASE_IMAGE:-python:3.11-slim}" --build-arg WHEELS="$wheels" \
  --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" --build-arg COMMIT="$commit" \
  $(secret ca "${SSL_CERT_FILE:-}") $(secret pip.conf "${PIP_CONFIG_FILE:-}") $(secret uv.toml "${UV_CONFIG_FILE:-}") .
